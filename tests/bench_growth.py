"""Parts of the benchmark: what the protocol costs, how time and memory grow, an evaluation as one runs it."""

import json
import os
import shutil
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
from bench_tools import (
    Bench,
    alternate,
    memory_gib,
    sample,
    say,
    seconds_of,
    settled_gib,
    token_count,
    train_step,
)
from tinker import types

import helpers  # noqa: F401  (sets how idle threads wait, before torch is loaded)
from helpers.evaluate.evaluation import evaluate_model
from helpers.train.renderers import answer_text, prompt_tokens


def wire(bench: Bench) -> dict:
    """What the protocol costs: calls that compute next to nothing, as shares of a training step."""
    with bench.stub() as server:
        client = bench.trainer(server)
        sampler, idle = bench.sampler(client), types.AdamParams(learning_rate=0.0)
        step = median(
            seconds_of(lambda i=i: train_step(client, bench.datums[16 * i : 16 * i + 16]))
            for i in range(bench.size(3, 1))
        )
        info = json.dumps({"model_id": client.model_id, "type": "get_info"}).encode()
        assert server.post("/api/v1/get_info", info, **{"X-API-Key": "tml-test"})[0] == 200
        calls = {
            "GET /healthz, no SDK": lambda i: urllib.request.urlopen(f"{server.url}/api/v1/healthz").read(),
            "POST /get_info, no SDK": lambda i: server.post(
                "/api/v1/get_info", info, **{"X-API-Key": "tml-test"}
            ),  # the SDK asks once only
            "optim_step with learning rate 0": lambda i: client.optim_step(idle).result(),
            "forward of 1 token": lambda i: client.forward(bench.uniform(1, 1), "cross_entropy").result(),
            "first token of a sample": lambda i: sample([sampler], bench.fresh_prompts(1), 1),
        }
        for call in calls.values():
            call(0)
        times = {name: median(seconds) for name, seconds in alternate(calls, bench.size(40, 5)).items()}
    rows = [
        [f"round trip, {name}", f"{1000 * s:.1f} ms", f"{step:.2f} s, training step of 16", f"{s / step:.1%}"]
        for name, s in times.items()
    ]
    return {"data": {"seconds": times, "training_step_seconds": step}, "rows": rows, "broken": []}


def growth(bench: Bench) -> dict:
    """How time and memory grow with tokens, prompts, clients and checkpoints."""
    rounds, new_tokens = bench.size(2, 1), bench.size(32, 4)
    with bench.stub() as server:
        client = bench.trainer(server)
        base = bench.base_sampler(server)

        def step_seconds(batch: int, length: int) -> float:
            return median(
                seconds_of(lambda: train_step(client, bench.uniform(batch, length)))
                for _ in range(rounds if batch * length < 4096 else 1)
            )

        step_seconds(4, 80)
        by_batch = {batch: step_seconds(batch, 80) for batch in bench.size((1, 2, 4, 8, 16, 32), (1, 4))}
        by_length = {
            total: {n: step_seconds(total // n, n) for n in bench.size((64, 128, 256, 512, 1024), (64, 256))}
            for total in bench.size((1024, 4096), (512,))
        }
        say("training steps: done")
        sample([base], bench.prompts[-2:], 4)
        by_prompts = {
            n: n
            * new_tokens
            / median(
                seconds_of(lambda n=n: sample([base], bench.fresh_prompts(n), new_tokens))
                for _ in range(rounds if n < 32 else 1)
            )
            for n in bench.size((1, 2, 4, 8, 16, 32, 64), (1, 4))
        }
        say("prompts: done")
    by_clients, mine, room = many_clients(bench, bench.size((1, 2, 4, 8, 16), (1, 2)), new_tokens)
    by_checkpoints = many_checkpoints(bench, bench.size((0, 1000, 5000), (0, 100)))
    rows = growth_rows(by_batch, by_length, by_prompts, by_clients, by_checkpoints)
    rows.append(["memory of a client of rank 32", f"{1024 * mine:.0f} MiB", "", f"{room} in 8 GiB"])
    return {
        "data": {
            "step_seconds_by_batch": by_batch,
            "step_seconds_by_length": by_length,
            "sampled_by_prompts": by_prompts,
            "clients": by_clients,
            "gib_a_client": mine,
            "clients_in_8_gib": room,
            "checkpoints": by_checkpoints,
        },
        "rows": rows,
        "broken": [],
    }


def growth_rows(
    by_batch: dict, by_length: dict, by_prompts: dict, by_clients: dict, by_checkpoints: dict
) -> list[list[str]]:
    """A row for each thing that grows."""
    return [
        ["training step, s, by batch × 80 tokens", series(by_batch, "{:.2f}"), "", ""],
        *[
            [f"training step, s, by length, {total} tokens in all", series(values, "{:.2f}"), "", ""]
            for total, values in by_length.items()
        ],
        ["new tokens/s, by prompts at once", series(by_prompts), "", ""],
        ["tokens/s trained, by clients (all together)", series(by_clients, key="trained"), "", ""],
        ["tokens/s sampled, by clients (all together)", series(by_clients, key="sampled"), "", ""],
        [
            "resident GiB, by clients",
            series(by_clients, "{:.2f}", "gib"),
            "",
            "",
        ],
        *[
            [f"{what}, by checkpoints on disk", series(by_checkpoints, "{:.2f}", key), "", ""]
            for what, key in (
                ("start of the server, s", "start"),
                ("save, s", "save"),
                ("first list of 100, s", "first_list"),
                ("list of 100, s", "list"),
            )
        ],
    ]


def series(values: dict, form: str = "{:.0f}", key: str | None = None) -> str:
    return ", ".join(f"{n}: {form.format(value[key] if key else value)}" for n, value in values.items())


def many_clients(
    bench: Bench, counts: tuple[int, ...], new_tokens: int
) -> tuple[dict[int, dict], float, int]:
    """Tokens/s of all clients together, 4 sequences each, and resident memory, by their number; memory of one
    more; how many fit in 8 GiB.
    """
    found, trainers, samplers, batch = {}, [], [], bench.uniform(4, 80)

    def train(_: int) -> None:
        futures = [
            f
            for t in trainers
            for f in (
                t.forward_backward(batch, "cross_entropy"),
                t.optim_step(types.AdamParams(learning_rate=1e-4)),
            )
        ]
        for future in futures:
            future.result()

    with bench.stub() as server:
        for count in counts:
            while len(trainers) < count:
                trainers.append(bench.trainer(server))
                samplers.append(bench.sampler(trainers[-1]))
            seconds = alternate(
                {
                    "train": train,
                    "sample": lambda i, n=count: sample(samplers, bench.fresh_prompts(4 * n), new_tokens),
                },
                bench.size(2, 1),
            )
            found[count] = {
                "trained": count * token_count(batch) / median(seconds["train"]),
                "sampled": 4 * count * new_tokens / median(seconds["sample"]),
                "gib": settled_gib(server),
            }
            row = found[count]
            speeds = f"{row['trained']:.0f} tokens/s trained, {row['sampled']:.0f} sampled"
            say(f"{count} clients: {speeds}, {row['gib']:.2f} GiB")
        mine = float(np.polyfit(counts, [found[count]["gib"] for count in counts], 1)[0])
        rest = memory_gib(server, "VmHWM") - counts[-1] * mine  # the model and the work of one request
    return found, mine, int((8 - rest) / mine)


def many_checkpoints(bench: Bench, counts: tuple[int, ...]) -> dict[int, dict]:
    """Seconds to start, save and list with so many checkpoints on disk: copies of one of rank 1, its tensors
    hard-linked.
    """

    def link_tensors(source: str, target: str) -> None:
        shutil.copy2(source, target) if source.endswith(".json") else os.link(source, target)

    found: dict[int, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        state, made = Path(folder), 0
        with bench.stub(state) as server:
            client = bench.trainer(server, rank=1)
            train_step(client, bench.uniform(1, 8))
            client.save_state("template").result()
        template = next(state.glob("runs/*/weights/template"))
        for count in counts:
            while made < count:
                shutil.copytree(template, template.with_name(f"copy-{made:05}"), copy_function=link_tensors)
                made += 1
            start = time.perf_counter()
            with bench.stub(state) as server:
                urllib.request.urlopen(f"{server.url}/api/v1/healthz").read()
                started, rest, client = (
                    time.perf_counter() - start,
                    server.rest(),
                    bench.trainer(server, rank=1),
                )

                def list_some(_: int = 0, rest=rest, count=count) -> None:
                    answer = rest.list_user_checkpoints(limit=100).result()
                    assert (
                        len(answer.checkpoints) == min(100, answer.cursor.total_count)
                        and answer.cursor.total_count > count
                    ), answer.cursor

                first = seconds_of(list_some)
                times = alternate(
                    {
                        "save": lambda i, n=count, c=client: c.save_state(f"{n}-{i}").result(),
                        "list": list_some,
                    },
                    3,
                )
                found[count] = {
                    "start": started,
                    "first_list": first,
                    **{name: median(seconds) for name, seconds in times.items()},
                }
            say(
                f"{count} checkpoints: "
                + ", ".join(f"{name} {1000 * s:.0f} ms" for name, s in found[count].items())
            )
    return found


def evaluation(bench: Bench) -> dict:
    """64 prompts through evaluate_model, beside a loop that awaits each `sample().result()`."""
    count, max_tokens = bench.size((64, 24), (8, 8))
    records, scores, answers = bench.records[-count:], [], []
    with bench.stub() as server:
        sampler = bench.sampler(bench.trainer(server))
        tokenizer, stop = bench.renderer.tokenizer, bench.renderer.get_stop_sequences()
        params = types.SamplingParams(max_tokens=max_tokens, temperature=0.0, stop=stop)

        def one_by_one(i: int) -> None:  # a half of the prompts a round, so that the two take turns
            for record in records[i * count // 2 : (i + 1) * count // 2]:
                prompt = types.ModelInput.from_ints(prompt_tokens(record, bench.renderer))
                answers.append(
                    answer_text(
                        sampler.sample(prompt, num_samples=1, sampling_params=params)
                        .result()
                        .sequences[0]
                        .tokens,
                        bench.renderer,
                    )
                )

        def all_at_once(_: int) -> None:
            scores.append(
                evaluate_model(sampler, records, tokenizer, renderer=bench.renderer, max_tokens=max_tokens)
            )

        sample([sampler], bench.prompts[:2], 4)
        times = alternate({"loop": one_by_one, "evaluate_model": all_at_once}, 2)
    batched, loop = median(times["evaluate_model"]), sum(times["loop"])
    same = sum(
        answer == scored["output"] for answer, scored in zip(answers, scores[0]["samples"], strict=True)
    )
    row = [
        f"evaluation, {count} prompts, {max_tokens} tokens at most",
        f"{batched:.1f} s, evaluate_model",
        f"{loop:.1f} s, one after the other ({same} answers the same)",
        f"{loop / batched:.2f}×",
    ]
    return {
        "data": {
            "evaluate_model_seconds": batched,
            "loop_seconds": loop,
            "same_answers": same,
            "prompts": count,
        },
        "rows": [row],
        "broken": [],
    }


# ---- results
