"""A part of the benchmark: where the time of a training step and of a sampled token goes, in the stub's own
code without a server. It bounds what could be gained, and
shows where.
"""

import functools
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from bench_speed import matmul_peaks
from bench_tools import DEVICE, Bench, say, seconds_of, token_count
from tinker import types

from helpers.stub_tinker import losses, model
from helpers.stub_tinker.cache import Step
from helpers.stub_tinker.engine import best_precision
from helpers.stub_tinker.jobs import SampleJob
from helpers.stub_tinker.kernels import Attention, Frozen, RmsNorm, Rotate, SwiGlu
from helpers.stub_tinker.lora import Layout, LoraState
from helpers.stub_tinker.lora_layer import LoraGroup, LoraLinear, SteadyLora
from helpers.stub_tinker.sampling import Sampler
from helpers.stub_tinker.training import forward_backward

FROZEN, LORA, ATTENTION, SMALL = "frozen products", "LoRA", "attention", "norms, rotation, activation"
WHERE: list[tuple[str, Any, str]] = [
    (FROZEN, Frozen, "__call__"),
    (FROZEN, Frozen, "steady"),
    (FROZEN, Frozen, "pull"),
    (LORA, LoraGroup, "delta"),
    (LORA, LoraLinear, "_pull_lora"),
    (LORA, SteadyLora, "delta"),
    (ATTENTION, model, "_attend"),
    (ATTENTION, Attention, "backward"),
    (ATTENTION, Step, "attend"),
    *((SMALL, kind, name) for kind in (RmsNorm, SwiGlu) for name in ("__call__", "again", "pull")),
    (SMALL, model, "rotate"),
    (SMALL, Rotate, "forward"),
    (SMALL, Rotate, "backward"),
]
KINDS = tuple(dict.fromkeys(kind for kind, *_ in WHERE))
TOKENS = 20  # of each sequence, that are timed


class Shares:
    """Seconds by kind of work, where a call inside another counts for the outer one, and the operations of
    frozen products.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.flops = 0
        self._within = False

    def watch(self, kind: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if self._within:
                return function(*args, **kwargs)
            if kind == FROZEN:
                self.flops += 2 * len(args[1]) * args[0].shape.numel()
            self._within, start = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._within = False
                self.seconds[kind] += time.perf_counter() - start

        return watched


def shares_of(work: Callable[[], Any]) -> tuple[Shares, float]:
    """Of a run of `work`, and its seconds in all."""
    shares, before = Shares(), [(owner, name, vars(owner)[name]) for _, owner, name in WHERE]
    try:
        for kind, owner, name in WHERE:
            watched = shares.watch(kind, getattr(owner, name))
            kept = isinstance(vars(owner)[name], staticmethod)
            setattr(owner, name, staticmethod(watched) if kept else watched)
        return shares, seconds_of(work)
    finally:
        for owner, name, original in before:
            setattr(owner, name, original)


def profile(bench: Bench) -> dict:
    """Shares of a training step of 16 × 75 tokens, and of one token more for 1, 16 and 64 prompts."""
    if DEVICE.type == "cuda":  # its kernels run on while Python goes ahead
        return {"data": {}, "rows": [], "broken": []}
    dtype = best_precision(DEVICE)
    base = model.Model(bench.folder, DEVICE, dtype)
    peak = matmul_peaks((2048,))[str(dtype).removeprefix("torch.")]
    bandwidth = read_bandwidth(bench.size(1 << 30, 1 << 26))
    datums = bench.datums[256 : 256 + bench.size(16, 2)]
    step = training_step(base, datums)
    step()
    shares, seconds = shares_of(step)
    what = f"time of a training step, {len(datums)} × {token_count(datums) / len(datums):.0f} tokens"
    rows = [[what, f"{1000 * seconds:.0f} ms", said(shares, seconds), ""], at_peak(shares, peak)]
    data: dict[str, Any] = {"training": dict(shares.seconds) | {"all": seconds}}
    for count, adapters in bench.size(((64, 0), (16, 0), (16, 1), (16, 4), (1, 0)), ((1, 0),)):
        tokens = decoding(base, bench.fresh_prompts(count), adapters)
        shares, seconds = shares_of(tokens)
        what = f"time of one token more for {count} prompt{'s' * (count > 1)}"
        what += f", {adapters} adapter{'s' * (adapters > 1)}" * bool(adapters)
        rows.append([what, f"{1000 * seconds / TOKENS:.0f} ms", said(shares, seconds), ""])
        if not adapters:
            rows.append(at_peak(shares, peak) if count > 1 else at_bandwidth(base, shares, bandwidth))
        data[f"decoding {count}, {adapters} adapters"] = dict(shares.seconds) | {"all": seconds}
    data |= {"peak_flops": peak, "bandwidth": bandwidth}
    return {"data": data, "rows": rows, "broken": []}


def new_lora(base: model.Model, seed: int) -> LoraState:
    """Of rank 32, for all layers."""
    return LoraState(Layout(base.config, 32, True, True, False), seed, DEVICE)


def training_step(base: model.Model, datums: list[types.Datum]) -> Callable[[], None]:
    """A step of a client of rank 32, as the server does it."""
    state = new_lora(base, 1)
    adam = dict(learning_rate=1e-3, beta1=0.9, beta2=0.95, eps=1e-12, weight_decay=0.0, grad_clip_norm=0.0)
    examples = []
    for datum in datums:
        inputs = {
            name: datum.loss_fn_inputs[name].to_numpy()[:, None] for name in ("target_tokens", "weights")
        }
        targets = inputs["target_tokens"].astype(np.int64)
        examples.append(losses.Example(datum.model_input.to_ints(), targets, inputs))

    def step() -> None:
        for _ in forward_backward(base, state, examples, "cross_entropy", {}, False):
            pass
        state.step(adam)

    return step


def decoding(base: model.Model, prompts: list[list[int]], adapters: int) -> Callable[[], Any]:
    """Samples `TOKENS` greedy tokens more for each prompt; reading them and the first few tokens come before.
    The prompts are dealt out over so many adapters.
    """
    sampler, loras = Sampler(base, None), [new_lora(base, i).snapshot(base.dtype) for i in range(adapters)]
    for i, prompt in enumerate(prompts):
        lora = loras[i % adapters] if adapters else None
        sampler.add(SampleJob("", prompt, TOKENS + 8, 0.0, -1, 1.0, 1, frozenset(), [], lora))
    sampler.work(4)
    return lambda: sampler.work(TOKENS)


def read_bandwidth(size: int) -> float:
    """Bytes a second that all threads read together."""
    numbers = torch.ones(size // 4)
    return size / min(seconds_of(numbers.sum) for _ in range(4))


def said(shares: Shares, seconds: float) -> str:
    parts: dict[str, float] = {kind: shares.seconds[kind] for kind in KINDS if shares.seconds[kind]}
    parts["the rest"] = seconds - sum(parts.values())
    text = ", ".join(f"{kind} {part / seconds:.0%}" for kind, part in parts.items())
    say(text)
    return text


def at_peak(shares: Shares, peak: float) -> list[str]:
    rate = shares.flops / shares.seconds[FROZEN]
    numbers = f"{rate / 1e9:.0f} GFLOP/s", f"{peak / 1e9:.0f}, matrix product"
    return ["… its frozen products, share of the peak", *numbers, f"{rate / peak:.0%}"]


def at_bandwidth(base: model.Model, shares: Shares, bandwidth: float) -> list[str]:
    matrices = [base.output, *(layer[group] for layer in base.layers for group in model.GROUPS)]
    size = sum(frozen.shape.numel() for frozen in matrices) * base.dtype.itemsize
    rate = size * TOKENS / shares.seconds[FROZEN]
    numbers = f"{rate / 1e9:.0f} GB/s", f"{bandwidth / 1e9:.0f}, a sum"
    return ["… its frozen products, weights read", *numbers, f"{rate / bandwidth:.0%}"]
