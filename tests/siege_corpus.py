"""Hostile requests written by hand: what random mutation would seldom hit."""

import json
import math
import re
from functools import partial
from typing import Any

from siege import API, Case, World, dumps
from siege_requests import bodies
from siege_values import DEEP, NUMBERS, TEXTS, replaced
from tinker import types


def corpus(world: World) -> list[Case]:
    return [
        *malformed(world),
        *numbers(world),
        *texts(world),
        *odd_bodies(world),
        *odd_addresses(),
        *forged_urls(world),
    ]


def changed(world: World, route: str, **changes: Any) -> Case:
    """A valid request with other values; `a__b` is the field b of a."""
    body = json.loads(dumps(bodies(world)[route]()))
    for key, value in changes.items():
        body = replaced(body, tuple(key.split("__")), value)
    return Case("POST", f"{API}/{route.split('?')[0]}", dumps(body))


def no_objects(valid: bytes) -> list[bytes]:
    """Bodies that are no JSON object, or only nearly the valid one."""
    return [
        b"",
        b"null",
        b"3",
        b'"x"',
        b"[]",
        b"[{}]",
        b"{}",
        b"{",
        b"}",
        b"\xff\xfe\x00",
        b"\x00",
        b'{"a": "\xed\xa0\x80"}',
        b"NaN",
        b"1e400",
        b"9" * 5000,
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"{" + b'"a": 1, ' * 10_000 + b'"b": 2}',
        valid[:-1],
        valid + b"x",
        valid * 2,
        valid.decode().encode("utf-16"),
        b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--",
        b"a=1&b=2",
    ]


def malformed(world: World) -> list[Case]:
    routes, cases = bodies(world), []
    for route in routes:
        address = f"{API}/{route.split('?')[0]}"
        valid = dumps(routes[route]())
        cases += [Case("POST", address, body) for body in no_objects(valid)]
        for method in ("GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "QUERY"):
            cases.append(Case(method, address, valid))
        for value in ("@@" + "9" * 5000 + "@@", DEEP, "\ud800", "\x00", math.nan):
            cases += [
                Case("POST", address, dumps(replaced(json.loads(valid), (key,), value)))
                for key in json.loads(valid)
            ]
    return cases


def numbers(world: World) -> list[Case]:
    change, cases = partial(changed, world), []
    for value in NUMBERS:
        cases += [
            change("asample", num_samples=value),
            change("asample", sampling_params__max_tokens=value),
            change("asample", sampling_params__temperature=value),
            change("asample", sampling_params__top_p=value),
            change("asample", sampling_params__top_k=value),
            change("asample", sampling_params__seed=value),
            change("asample", seq_id=value),
            change("asample?scored", topk_prompt_logprobs=value),
            change("asample?scored", topk_sample_logprobs=value),
            change("asample?scored", prompt_logprobs_last_n=value),
            change("asample", prompt_alt_tokens_k=value),
            change("create_model", lora_config__rank=value),
            change("create_model", lora_config__seed=value),
            change("create_model", model_seq_id=value),
            change("save_weights", ttl_seconds=value),
            change("save_weights_external", ttl_seconds=value),
            change("save_weights_for_sampler", ttl_seconds=value),
            change("save_weights", seq_id=value),
            change("create_sampling_session", sampling_session_seq_id=value),
            Case(
                "PUT",
                f"{API}/training_runs/{world.model}/checkpoints/weights/base/ttl",
                dumps({"ttl_seconds": value}),
            ),
            Case("GET", f"{API}/training_runs?limit={dumps(value).decode()}"),
            Case("GET", f"{API}/checkpoints?offset={dumps(value).decode()}&limit=1"),
        ]
        cases += [
            change("optim_step", **{f"adam_params__{key}": value}) for key in types.AdamParams.model_fields
        ]
        cases.append(
            change("load_weights", path=world.paths[0])
        )  # puts back what an absurd learning rate has spoilt
    return cases


def texts(world: World) -> list[Case]:
    change, cases = partial(changed, world), []
    for text in TEXTS:
        cases += [
            change("save_weights", path=text),
            change("save_weights_for_sampler", path=text),
            change("save_weights_external", path=text),
            change("load_weights", path=text),
            change("load_weights?create", path=text),
            change("create_sampling_session", model_path=text),
            change("weights_info", tinker_path=text),
            change("asample", sampling_session_id=text),
            change("retrieve_future", request_id=text),
            change("get_info", model_id=text),
            change("create_model", base_model=text),
            change("create_model", session_id=text),
            change("session_heartbeat", session_id=text),
            change("save_weights_external", age_encryption_recipients=[text]),
            change("asample", sampling_params__stop=text),
            change("asample", sampling_params__stop=[text, ""]),
            change("create_session", display_name=text, tags=[text], user_metadata={text: text}),
        ]
    return cases


def odd_bodies(world: World) -> list[Case]:
    change = partial(changed, world)
    return [
        change("asample", sampling_params__stop=[f"stop {i}" for i in range(10_000)]),
        change("asample", sampling_params__stop=["x" * 1_000_000]),
        change("asample", sampling_params__stop=list(range(10_000))),
        change("asample", sampling_params__stop=[10**30]),
        change("asample", sampling_params__stop=[-1]),
        change("asample", prompt={"chunks": []}),
        change("asample", prompt={"chunks": [{"type": "encoded_text", "tokens": []}]}),
        change("asample", prompt={"chunks": [{"type": "encoded_text", "tokens": [1] * 100_000}]}),
        change("asample", prompt={"chunks": [{"type": "encoded_text", "tokens": [2**40]}]}),
        change("asample", prompt={"chunks": [{"type": "encoded_text", "tokens": [-1]}]}),
        change("asample", prompt={"chunks": [{"type": "image", "data": "AAAA", "format": "png"}]}),
        change("asample", prompt={"chunks": [{"type": "dmel", "dmel": "AAAA"}]}),
        change("asample", prompt={"chunks": [{"type": "encoded_text", "tokens": [1]}] * 5000}),
        change(
            "asample",
            prompt={
                "chunks": [{"type": "image_asset_pointer", "location": "file:///etc/passwd", "format": "png"}]
            },
        ),
        change("asample", target_prompt_logprobs={"data": [1, 2, 3], "dtype": "int64", "shape": [3, 1]}),
        change("asample", record_stability_info=True),
        change("save_weights_external", age_encryption_recipients=[]),
        change("save_weights_external", age_encryption_recipients=["age1" + "q" * 58] * 1000),
        change("optim_step", adam_params={"type": "dimuon", "learning_rate": 1}),
        change("create_model", optimizer_config={"type": "dimuon"}),
        change("create_model", lora_config={"rank": 2, "train_mlp": False, "train_attn": False}),
        change("create_model", user_metadata={"k" * 10_000: "v" * 100_000}),
    ]


def odd_addresses() -> list[Case]:
    return [
        Case("POST", f"{API}/no_such_route", b"{}"),
        Case("GET", "/" + "a/" * 3000),
        Case("GET", "//etc/passwd"),
        Case("GET", "/files/../../etc/passwd"),
        Case("GET", "/files/a/b"),
        Case("GET", "*"),
        Case("OPTIONS", "*"),
        Case("GET", "http://evil.example/api/v1/healthz"),
        Case("GET", f"{API}/training_runs?" + "limit=1&" * 2000),
        Case("GET", f"{API}/training_runs?limit=%00&offset=%ff"),
        Case("GET", f"{API}/checkpoints?limit=%c2%b2"),
        Case("GET", f"{API}/sessions?limit=-1"),
        Case("GET", f"{API}/sessions?limit=99999999999999999999999"),
    ]


def forged_urls(world: World) -> list[Case]:
    cases = []
    for url in world.files:
        address, query = url.split("?")
        expires, _, signature = (part.split("=")[1] for part in query.split("&"))
        for path in (
            address,
            f"{address}?expires={expires}",
            f"{address}?signature={signature}",
            f"{address}?expires={expires}&signature=",
            f"{address}?expires={int(expires) + 1}&signature={signature}",
            f"{address}?expires=1&signature={signature}",
            f"{address}?expires={'9' * 5000}&signature={signature}",
            f"{address}?expires=%c2%b2&signature={signature}",
            f"{address}?expires=-1&signature={signature}",
            f"{address}?expires={expires}&signature=%c3%a9{signature}",
            f"{address}?expires={expires}&signature=%ff%00",
            f"{address}?expires={expires}&expires=1&signature={signature}",
            f"{address}/..?{query}",
            f"{address[:-4]}?{query}",
            re.sub("[^/]+$", "..%2fcheckpoint.json", address) + f"?{query}",
            re.sub("[^/]+$", "checkpoint.json", address) + f"?{query}",
        ):
            cases.append(Case("GET", path))
    return cases
