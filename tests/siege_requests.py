"""Valid requests of every route, and strategies that put one to three things wrong with them."""

import json
import re
from collections.abc import Callable

from hypothesis import strategies as st
from siege import API, Case, World, dumps, sequence
from siege_values import FIELDS, HEADERS, TEXTS, anything, corrupted, fresh_numbers, positions, replaced
from tinker import types
from tinker.types import (
    client_config_request,
    future_retrieve_request,
    futures_retrieve_request,
    telemetry_send_request,
)
from tinker.types.copy_weights_request import CopyWeightsRequest
from tinker.types.get_info_request import GetInfoRequest
from tinker.types.join_sampling_session_request import JoinSamplingSessionRequest
from tinker.types.session_search_request import SessionSearchRequest

Fresh = Callable[[], int]
Bodies = dict[str, Callable[[], object]]


def bodies(world: World, fresh: Fresh = lambda: next(sequence)) -> Bodies:
    """Valid requests of every POST route with JSON, from the SDK's own models; `fresh` numbers them."""
    return {
        **session_bodies(world),
        **training_bodies(world, fresh),
        **sampling_bodies(world, fresh),
        **other_bodies(world, fresh),
    }


def session_bodies(world: World) -> Bodies:
    return {
        "client/config": lambda: client_config_request.ClientConfigRequest(sdk_version="0.38.0"),
        "client/dynamic_config": lambda: {},
        "auth/token": lambda: {},
        "create_session": lambda: types.CreateSessionRequest(
            tags=["a"], user_metadata={"k": "v"}, sdk_version="0.38.0", display_name="fuzz"
        ),
        "session_heartbeat": lambda: types.SessionHeartbeatRequest(session_id=world.session),
        "telemetry": lambda: telemetry_send_request.TelemetrySendRequest(
            events=[], platform="linux", sdk_version="0.38.0", session_id=world.session, process_uuid="u"
        ),
    }


def training_bodies(world: World, fresh: Fresh) -> Bodies:
    model = world.model

    def name() -> str:
        return f"made-{fresh()}"

    return {
        "create_model": lambda: types.CreateModelRequest(
            session_id=world.session,
            model_seq_id=fresh(),
            base_model=world.base,
            lora_config=types.LoraConfig(rank=2, seed=1),
        ),
        "get_info": lambda: GetInfoRequest(model_id=model),
        "optim_step": lambda: types.OptimStepRequest(
            model_id=model, seq_id=fresh(), optim_params=types.AdamParams(learning_rate=1e-4)
        ),
        "save_weights": lambda: types.SaveWeightsRequest(
            model_id=model, path=name(), seq_id=fresh(), ttl_seconds=3600, user_metadata={"a": "b"}
        ),
        "save_weights_for_sampler": lambda: types.SaveWeightsForSamplerRequest(
            model_id=model, path=name(), seq_id=fresh()
        ),
        "save_weights_for_sampler?ephemeral": lambda: types.SaveWeightsForSamplerRequest(
            model_id=model, sampling_session_seq_id=fresh(), seq_id=fresh()
        ),
        "save_weights_external": lambda: types.SaveWeightsExternalRequest(
            model_id=model, path=name(), seq_id=fresh(), ttl_seconds=3600
        ),
        "load_weights": lambda: types.LoadWeightsRequest(
            model_id=model, seq_id=fresh(), path=world.paths[0], optimizer=False
        ),
        "load_weights?create": lambda: types.LoadWeightsRequest(
            session_id=world.session, model_seq_id=fresh(), path=world.paths[0], optimizer=True
        ),
    }


def sampling_bodies(world: World, fresh: Fresh) -> Bodies:
    tokens = types.ModelInput.from_ints([5, 6, 7, 8])
    sampling = types.SamplingParams(max_tokens=3, temperature=1.0, seed=1)
    return {
        "create_sampling_session": lambda: types.CreateSamplingSessionRequest(
            session_id=world.session, sampling_session_seq_id=fresh(), model_path=world.paths[1]
        ),
        "asample": lambda: types.SampleRequest(
            sampling_session_id=world.samplers[fresh() % 2],
            seq_id=fresh(),
            num_samples=2,
            prompt=tokens,
            sampling_params=sampling,
        ),
        "asample?scored": lambda: types.SampleRequest(
            sampling_session_id=world.samplers[1],
            seq_id=fresh(),
            prompt=tokens,
            sampling_params=sampling,
            prompt_logprobs=True,
            topk_prompt_logprobs=2,
            topk_sample_logprobs=2,
        ),
        "retrieve_future": lambda: future_retrieve_request.FutureRetrieveRequest(
            request_id=f"{world.model}:create"
        ),
        "retrieve_futures": lambda: futures_retrieve_request.FuturesRetrieveRequest(
            target=futures_retrieve_request.SamplingSessionFuturesTarget(
                sampling_session_id=world.samplers[0]
            ),
            timeout=0.1,
        ),
        "cancel_future": lambda: {"request_id": f"{world.model}:create"},
    }


def other_bodies(world: World, fresh: Fresh) -> Bodies:
    return {
        "weights_info": lambda: {"tinker_path": world.paths[0]},
        "copy_weights": lambda: CopyWeightsRequest(
            session_id=world.session, model_seq_id=fresh(), source_path=world.paths[0]
        ),
        "join_sampling_session": lambda: JoinSamplingSessionRequest(sampling_session_id=world.samplers[0]),
        "create_custom_loss": lambda: {
            "session_id": world.session,
            "custom_loss_seq_id": 1,
            "name": "x",
            "inputs": [],
            "graph": {},
            "type": "create_custom_loss",
        },
        "sessions/search": lambda: SessionSearchRequest(),
    }


def paths(run: str, kind: str, name: str, session: str, sampler: str) -> list[tuple[str, str, object]]:
    """Method, path and body of every route with a parameter in its path, made from these parameters."""
    checkpoint = f"{API}/training_runs/{run}/checkpoints/{kind}/{name}"
    return [
        ("GET", f"{API}/training_runs/{run}", None),
        ("GET", f"{API}/training_runs/{run}/checkpoints", None),
        ("GET", f"{checkpoint}/external_weights_urls", None),
        ("DELETE", checkpoint, None),
        ("PUT", f"{checkpoint}/ttl", {"ttl_seconds": 3600}),
        ("POST", f"{checkpoint}/publish", {}),
        ("DELETE", f"{checkpoint}/publish", None),
        ("GET", f"{API}/samplers/{sampler}", None),
        ("GET", f"{API}/sessions/{session}", None),
        ("POST", f"{API}/sessions/{session}/finish", {"reason": {"type": "success"}, "detail": "done"}),
        ("PUT", f"{API}/sessions/{session}/project", {"project_id": "p"}),
        ("GET", f"{API}/sessions/{session}/trace_export", None),
        ("GET", f"/files/{run}/{kind}/{name}?expires=4102444800&signature=00", None),
    ]


@st.composite
def json_cases(draw, world: World) -> Case:
    """A valid request with one to three things wrong with it."""
    routes = bodies(world, lambda: draw(fresh_numbers))
    route = draw(st.sampled_from(sorted(routes)))
    valid = routes[route]()
    body = json.loads(dumps(valid))
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 3]))):
        at = draw(st.sampled_from(list(positions(body))))
        kind = draw(st.sampled_from(["replace", "replace", "replace", "drop", "add"]))
        if kind == "add":
            body = (
                replaced(body, (draw(st.sampled_from(FIELDS)),), draw(anything))
                if isinstance(body, dict)
                else body
            )
        else:
            body = replaced(body, at, draw(anything), drop=kind == "drop")
    text = dumps(body)
    if draw(st.integers(0, 9)) == 0:
        text = corrupted(draw, text)
    return Case("POST", f"{API}/{route.split('?')[0]}", text, dict(draw(st.sampled_from(HEADERS))))


def quoted(text: str) -> str:
    """Percent-encoded throughout, so that any text is one part of a path."""
    return "".join(f"%{byte:02x}" for byte in text.encode("utf-8", "surrogatepass"))


@st.composite
def path_cases(draw, world: World) -> Case:
    """A hostile value in one of the parameters of a path, encoded or not."""
    part = st.sampled_from([t[:4000] for t in TEXTS]) | st.text(min_size=1, max_size=12)
    text = draw(part)
    raw = re.sub(r"[^!-~]", "_", text) or "_"
    piece = draw(
        st.sampled_from(
            [
                raw,
                quoted(text),
                raw.replace("/", "%2f"),
                raw.replace(".", "%2e"),
                raw + "%00",
                raw + "?limit=" + raw,
                raw + "#x",
                "%",
                "%zz",
                "%c0%ae%c0%ae",
                "x" * 10_000,
            ]
        )
    )
    values = {
        "run": world.model,
        "kind": "weights",
        "name": "base",
        "session": world.spare,
        "sampler": world.samplers[0],
    }
    values[draw(st.sampled_from(sorted(values)))] = piece
    routes = paths(**values)
    method, path, body = draw(st.sampled_from(routes))
    if body is not None and draw(st.booleans()):
        body = {key: draw(anything) for key in body}
    if draw(st.integers(0, 4)) == 0:
        method = draw(
            st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "PROPFIND"])
        )
    return Case(method, path, b"" if body is None else dumps(body))
