"""Parts of the benchmark: training and sampling, beside PEFT, transformers and vLLM."""

import contextlib
import os
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
from bench_tools import (
    DEVICE,
    IDLE_GIB,
    LOSS_DIFFERENCE,
    TRAINING_GIB,
    Bench,
    PeftLoop,
    Transformers,
    Vllm,
    alternate,
    memory_gib,
    precision,
    sample,
    say,
    seconds_of,
    settled_gib,
    target_tokens,
    token_count,
    train_step,
)
from stub import OwnServer

import helpers  # noqa: F401  (sets how idle threads wait, before torch is loaded)


def training(bench: Bench) -> dict:
    """Tokens/s, loss curve, share of the machine's peak and memory, beside a plain PEFT loop."""
    steps, rounds = bench.size(30, 3), bench.size(3, 1)
    peaks = matmul_peaks(bench.size((1024, 2048, 4096), (1024,)))
    with bench.stub() as server, tempfile.TemporaryDirectory() as adapter:
        client, dtype = bench.trainer(server), precision(server)
        save_initial(client, server, adapter)
        peft, low = (PeftLoop(bench.folder, adapter, kind) for kind in (torch.float32, torch.bfloat16))
        plan = [(bench.datums[8 * i : 8 * i + 8], 1e-3 * (1 - i / steps)) for i in range(steps)]
        stub_loss, peft_loss = (
            np.array([step(*batch) for batch in plan])
            for step in (lambda *batch: train_step(client, *batch), peft.step)
        )
        # The first steps differ most: Adam's are the largest then.
        low_loss = np.array([low.step(*batch) for batch in plan[:6]])
        difference, low_difference = (
            float(abs(losses / peft_loss[: len(losses)] - 1).max()) for losses in (stub_loss, low_loss)
        )
        say(f"losses of {steps} steps differ by {difference:.2%} at most")
        loops: dict[str, Callable] = {"stub": lambda datums: train_step(client, datums)}
        loops |= {"PEFT, float32": peft.step, "PEFT, bfloat16": low.step}
        speeds = {}
        for size in (8, 16):
            batches = [bench.datums[256 + size * i : 256 + size * (i + 1)] for i in range(rounds)]
            speeds[size] = tokens_per_second(f"batch {size}", loops, batches, [*map(token_count, batches)])
        groups = [bench.groups(12, 8, 20, 14)] * rounds
        del loops["PEFT, float32"]
        grouped = tokens_per_second("groups", loops, groups, list(map(token_count, groups)))
        tokens, targets = token_count(bench.datums[256:272]), target_tokens(bench.datums[256:272])
        rate = peft.flops(tokens, targets) / tokens * speeds[16]["stub"]
    idle, peak = training_memory(bench)
    rows = training_rows(speeds, tokens, dtype, rate, peaks)
    measured = [("loss", difference, LOSS_DIFFERENCE)]
    if DEVICE.type == "cpu":  # CUDA's own libraries take a gigabyte or two
        measured += [("idle memory", idle, IDLE_GIB), ("training memory", peak, TRAINING_GIB)]
    rows += [
        [
            "training, 12 prompts of 20 tokens with 8 answers of 14 each",
            f"{grouped['stub']:.0f} tokens/s, {dtype}",
            f"{grouped['PEFT, bfloat16']:.0f}, PEFT, bfloat16",
            f"{grouped['stub'] / grouped['PEFT, bfloat16']:.2f}×",
        ],
        *bound_rows(difference, steps, low_difference, idle, peak),
    ]
    return {
        "data": {
            "tokens_per_second": speeds,
            "groups_tokens_per_second": grouped,
            "losses": {"stub": stub_loss.tolist(), "peft": peft_loss.tolist()},
            "loss_difference": difference,
            "peft_bfloat16_difference": low_difference,
            "flops": rate,
            "peak_flops": peaks,
            "idle_gib": idle,
            "training_gib": peak,
            "precision": dtype,
        },
        "rows": rows,
        "broken": [what for what, value, bound in measured if not value <= bound],
    }


def tokens_per_second(
    what: str, contestants: dict[str, Callable], batches: list, counts: list[int]
) -> dict[str, float]:
    """Median speed of each contestant over the batches, of which each takes its turn."""
    runs = {name: lambda i, run=run: run(batches[i]) for name, run in contestants.items()}
    times = alternate(runs, len(batches))
    speeds = {name: median(n / s for n, s in zip(counts, times[name], strict=True)) for name in contestants}
    say(f"{what}: {', '.join(f'{name} {speed:.0f}' for name, speed in speeds.items())} tokens/s")
    return speeds


def training_memory(bench: Bench) -> tuple[float, float]:
    """GiB of a server that has its model loaded, and its peak in training on 16 × 256 tokens."""
    with bench.stub() as server:  # a fresh one: a peak is of a process's whole life
        sample([bench.base_sampler(server)], bench.prompts[:1], 1)
        idle, client = settled_gib(server), bench.trainer(server)
        for _ in range(bench.size(3, 1)):
            train_step(client, bench.uniform(16, 256))
        return idle, memory_gib(server, "VmHWM")


def save_initial(client: Any, server: OwnServer, folder: str) -> None:
    """The untrained adapter's files, so that PEFT starts from the same weights."""
    path = client.save_weights_external("initial").result().path
    for name, url in server.rest().get_external_weights_urls(path).result().urls.items():
        urllib.request.urlretrieve(url, Path(folder) / name)


def training_rows(
    speeds: dict[int, dict[str, float]], tokens: int, dtype: str, rate: float, peaks: dict[str, float]
) -> list[list[str]]:
    """Speeds beside PEFT's, and the share of the processor's peak."""
    rows = [
        [
            f"training, batch {size} × {tokens / 16:.0f} tokens",
            f"{speeds[size]['stub']:.0f} tokens/s, {dtype}",
            f"{speed:.0f}, {name}",
            f"{speeds[size]['stub'] / speed:.2f}×",
        ]
        for size in speeds
        for name, speed in speeds[size].items()
        if name != "stub"
    ]
    return rows + [
        [
            f"arithmetic of it, share of the {name} peak",
            f"{rate / 1e9:.0f} GFLOP/s",
            f"{value / 1e9:.0f}, matrix product",
            f"{rate / value:.0%}",
        ]
        for name, value in peaks.items()
    ]


def bound_rows(
    difference: float, steps: int, low_difference: float, idle: float, peak: float
) -> list[list[str]]:
    """What has a bound: how far losses are from PEFT's, and GiB of a server."""
    return [
        [
            "largest difference of the loss",
            f"{difference:.2%}",
            f"bound {LOSS_DIFFERENCE:.0%}; to PEFT float32 over {steps} steps from the same weights",
            "",
        ],
        ["… of the first 6 steps, PEFT bfloat16 to PEFT float32", "", f"{low_difference:.2%}", ""],
        ["memory, idle with the model loaded", f"{idle:.2f} GiB", f"bound {IDLE_GIB}", ""],
        ["memory, peak in training 16 × 256 tokens", f"{peak:.2f} GiB", f"bound {TRAINING_GIB}", ""],
    ]


def matmul_peaks(sizes: tuple[int, ...]) -> dict[str, float]:
    """FLOP/s of torch's fastest square matrix product."""
    peaks = {}
    for name in ("bfloat16", "float32"):
        for n in sizes:
            a = torch.randn(n, n, device=DEVICE).to(getattr(torch, name))
            peaks[name] = max(
                peaks.get(name, 0.0), 2 * n**3 / min(seconds_of(lambda a=a: a @ a) for _ in range(4))
            )
    return peaks


def sampling(bench: Bench) -> dict:
    """New tokens/s, beside generate and vLLM."""
    new_tokens, sizes = (
        bench.size(64, 8),
        bench.size({1: 3, 16: 3, 64: 2}, {1: 1, 16: 1, 64: 1}),
    )  # prompts at once: rounds
    with bench.stub() as server, contextlib.ExitStack() as stack:
        dtype, base = precision(server), bench.base_sampler(server)
        adapters = [bench.sampler(bench.trainer(server)) for _ in range(4)]
        plain, low = (Transformers(bench.folder, kind) for kind in (torch.float32, torch.bfloat16))
        contestants = {
            "stub": lambda p, n: sample([base], p, n),
            "stub with an adapter": lambda p, n: sample(adapters[:1], p, n),
            "transformers, float32": plain.generate,
            "transformers, bfloat16": low.generate,
        }
        start = None
        try:
            vllm = Vllm(bench.folder)
            stack.callback(vllm.stop)
            contestants["vLLM, bfloat16"], start = vllm.generate, vllm.start_seconds
        except RuntimeError as error:
            say(f"without vLLM: {error}")
        for run in contestants.values():
            run(bench.prompts[-2:], 4)
        found = {}
        for count, rounds in sizes.items():
            batches = [bench.fresh_prompts(count) for _ in range(rounds)]
            runs = {name: lambda batch, run=run: run(batch, new_tokens) for name, run in contestants.items()}
            counts = [count * new_tokens] * rounds
            found[count] = tokens_per_second(f"{count} prompts", runs, batches, counts)
        times = alternate(
            {
                "1": lambda i: sample(adapters[:1], bench.fresh_prompts(16), new_tokens),
                "4": lambda i: sample(adapters, bench.fresh_prompts(16), new_tokens),
            },
            bench.size(3, 1),
        )
        one, four = (16 * new_tokens / median(s) for s in times.values())
        alike = first_tokens(bench, base)
    rows = [*sampling_rows(found, new_tokens, dtype, one, four), alike["row"]]
    rows += [["start of vLLM, model loaded", "", f"{start:.0f} s", ""]] if start else []
    return {
        "data": {
            "tokens_per_second": found,
            "one_adapter": one,
            "four_adapters": four,
            "first_token_seconds": alike["seconds"],
            "vllm_start_seconds": start,
            "new_tokens": new_tokens,
            "precision": dtype,
        },
        "rows": rows,
        "broken": [],
    }


def first_tokens(bench: Bench, sampler: Any) -> dict:
    """Until prompts that begin the same have their first token, beside prompts as long that share nothing."""
    count, shared, own = bench.size(64, 4), 700, 40
    rng = np.random.default_rng(0)

    def prompts(begin_the_same: bool) -> list[list[int]]:
        made = rng.integers(100, 40000, (count, shared + own))
        if begin_the_same:
            made[:, :shared] = made[0, :shared]
        return made.tolist()

    kinds = {"shared": True, "apart": False}
    runs = {name: lambda i, same=same: sample([sampler], prompts(same), 1) for name, same in kinds.items()}
    seconds = {name: median(times) for name, times in alternate(runs, bench.size(2, 1)).items()}
    say(f"first tokens: {seconds}")
    row = [
        f"first token of {count} prompts × {shared + own} tokens that share {shared}",
        f"{seconds['shared']:.1f} s",
        f"{seconds['apart']:.1f} s, stub, none shared",
        f"{seconds['apart'] / seconds['shared']:.2f}×",
    ]
    return {"seconds": seconds, "row": row}


def sampling_rows(
    found: dict[int, dict[str, float]], new_tokens: int, dtype: str, one: float, four: float
) -> list[list[str]]:
    """Speeds beside the others', and four adapters beside one."""
    rows = [
        [
            f"sampling, {count} prompt{'s' * (count > 1)}, {new_tokens} new tokens each",
            f"{speeds['stub']:.0f} tokens/s, {dtype}",
            f"{speed:.0f}, {name}",
            f"{speeds['stub'] / speed:.2f}×",
        ]
        for count, speeds in found.items()
        for name, speed in speeds.items()
        if name != "stub"
    ]
    rows.append(
        [
            f"sampling, 16 prompts, {new_tokens} new tokens each, 4 adapters of 4 clients",
            f"{four:.0f} tokens/s, {dtype}",
            f"{one:.0f}, stub, 1 adapter",
            f"{four / one:.2f}×",
        ]
    )
    return rows
