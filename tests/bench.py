"""`make bench`: the stub Tinker backend through the real SDK, beside what else one would run on the same machine.

    make bench                                  every part, about 20 minutes on two quiet cores
    make bench ARGS="--quick"                   small sizes, to see that it works; its numbers mean nothing
    make bench ARGS="--only sampling wire"      some parts; the others keep the numbers they have
    make bench ARGS="--only --readme"           measure nothing; write the table into the READMEs

Contestants take turns (ABAB) on the same work, and medians are reported. Numbers go to benchmarks.json, part by part, with the
machine they were taken on; those of quick runs to benchmarks-quick.json. Ends with status 1 where a bound does not hold.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # every contestant computes on the CPU
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import tinker
import torch
from stub import OwnServer
from tinker import types

import helpers  # noqa: F401  (sets how idle threads wait, before torch is loaded)
from helpers import local_model
from helpers.evaluate.evaluation import evaluate_model
from helpers.files import read_json, write_json, write_text
from helpers.paths import ROOT, package_versions
from helpers.train import models
from helpers.train.prompts import build_datum, get_format

GIB = 1 << 30
IDLE_GIB, TRAINING_GIB, LOSS_DIFFERENCE = 1.2, 4.0, 0.03  # bounds; of the loss in relative terms
MINUTES = {"training": 5.5, "sampling": 5.5, "wire": 1, "growth": 7, "evaluation": 1}  # on two cores
MARKS = "<!-- bench -->", "<!-- /bench -->"


def mean_nll(output, datums) -> float:
    """As in notebook 02: negative log likelihood in nats per weighted token."""
    weights = [datum.loss_fn_inputs["weights"].to_numpy() for datum in datums]
    logprobs = [result["logprobs"].to_numpy() for result in output.loss_fn_outputs]
    return -sum((lp * w).sum() for lp, w in zip(logprobs, weights, strict=True)) / sum(
        w.sum() for w in weights
    )


def target_tokens(datums) -> int:
    """Tokens that carry weight, over all datums."""
    return sum(int((datum.loss_fn_inputs["weights"].to_numpy() != 0).sum()) for datum in datums)


class Bench:
    """What the parts share: the base model, texts, sizes, and stubs that end with the part that started them."""

    def __init__(self, quick: bool):
        self.quick = quick
        self.folder = local_model.local_base_model()
        self.fmt = get_format("guide", models.load_tokenizer(self.folder))
        self.records = json.loads((ROOT / "data" / "word_problems.json").read_text(encoding="utf-8"))
        np.random.default_rng(0).shuffle(self.records)
        self.datums = [build_datum(record, self.fmt) for record in self.records[:512]]
        self.prompts = [self.fmt.prompt_tokens(record) for record in self.records]
        self._unused = 0
        self._services: list[tinker.ServiceClient] = []
        self.stream = [token for datum in self.datums for token in datum.model_input.to_ints()]

    def size(self, full: Any, quick: Any) -> Any:
        return quick if self.quick else full

    def fresh_prompts(self, count: int) -> list[list[int]]:
        """Prompts that nothing read before, so that no cache of prompts helps anyone; after 1,248 they begin again."""
        start, self._unused = self._unused, self._unused + count
        return [self.prompts[i % len(self.prompts)] for i in range(start, start + count)]

    @contextlib.contextmanager
    def stub(self, state: Path | None = None) -> Iterator[OwnServer]:
        """A stub in its default precision, in a folder that goes away unless `state` is given."""
        with tempfile.TemporaryDirectory() as folder:
            server = OwnServer(self.folder, state or Path(folder), "--idle-exit", "600", precision="auto")
            try:
                yield server
            finally:
                while self._services:  # or they go on to look for their server
                    self._services.pop().close("success").result()
                server.stop()

    def service(self, server: OwnServer) -> tinker.ServiceClient:
        self._services.append(server.connect())
        return self._services[-1]

    def trainer(self, server: OwnServer, rank: int = 32) -> tinker.TrainingClient:
        """A training client in a session of its own."""
        return (
            self.service(server)
            .create_lora_training_client(server.model, rank=rank, seed=1, train_unembed=False)
            .result()
        )

    def base_sampler(self, server: OwnServer) -> tinker.SamplingClient:
        return self.service(server).create_sampling_client(base_model=server.model).result()

    def sampler(self, trainer: tinker.TrainingClient) -> tinker.SamplingClient:
        """Of an adapter that has learned something: one that is still zero might be left out."""
        train_step(trainer, self.datums[:2])
        client = trainer.save_weights_and_get_sampling_client()
        return client.result() if hasattr(client, "result") else client

    def uniform(self, batch: int, length: int) -> list[types.Datum]:
        """Datums of exactly `length` tokens, the second half of each with weight."""
        made = []
        for i in range(batch):
            tokens = [self.stream[(i * length + j) % len(self.stream)] for j in range(length + 1)]
            fields = {
                "target_tokens": np.array(tokens[1:]),
                "weights": np.array([0.0] * (length // 2) + [1.0] * (length - length // 2), np.float32),
            }
            made.append(
                types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=fields)
            )
        return made


# ---- measuring


def say(text: str) -> None:
    print(f"[{time.perf_counter() - START:4.0f} s] {text}", flush=True)


def seconds_of(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alternate(contestants: dict[str, Callable[[int], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round. In a round they take turns, and all get the same work by its number."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for i in range(rounds):
        for name, run in contestants.items():
            seconds[name].append(seconds_of(lambda: run(i)))
    return seconds


def memory_gib(server: OwnServer, field: str) -> float:
    """`VmRSS` or `VmHWM` (the peak) of a server."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / GIB


def settled_gib(server: OwnServer) -> float:
    """Resident memory once it has not fallen for two seconds: an idle server gives memory back."""
    seen = [memory_gib(server, "VmRSS")]
    while len(seen) < 40 and (len(seen) < 9 or seen[-1] < seen[-9] - 0.01):
        time.sleep(0.25)
        seen.append(memory_gib(server, "VmRSS"))
    return seen[-1]


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text()
    name = next(
        (line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")),
        platform.machine(),
    )
    fast = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in info]
    return {
        "cpu": name,
        "cores": len(os.sched_getaffinity(0)),
        "features": fast,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "packages": package_versions(),
    }


def precision(server: OwnServer) -> str:
    return re.search(r"\(\w+, (float32|bfloat16)\)", server.log.read_text())[1]


# ---- contestants


def train_step(client: Any, datums: list, rate: float = 1e-3) -> float:
    """One optimizer step as in notebook 02: both calls are sent before either is waited for. Returns nats a target token."""
    forward = client.forward_backward(datums, "cross_entropy")
    update = client.optim_step(types.AdamParams(learning_rate=rate))
    loss = mean_nll(forward.result(), datums)
    update.result()
    return loss


def token_count(datums: list) -> int:
    return sum(datum.model_input.length for datum in datums)


def sample(samplers: list, prompts: list[list[int]], new_tokens: int) -> None:
    """Greedy answers of exactly `new_tokens` tokens, all sent at once, prompt i to sampler i modulo their number."""
    params = types.SamplingParams(max_tokens=new_tokens, temperature=0.0, stop=[])
    futures = [
        samplers[i % len(samplers)].sample(types.ModelInput.from_ints(prompt), 1, params)
        for i, prompt in enumerate(prompts)
    ]
    assert all(len(future.result().sequences[0].tokens) == new_tokens for future in futures)


class PeftLoop:
    """The plain loop: transformers and peft, a padded batch, logits at every position, AdamW."""

    def __init__(self, model_folder: Path, adapter_folder: str, dtype: torch.dtype):
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        self.model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype), adapter_folder, is_trainable=True
        )
        self.lora = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        adam = types.AdamParams()
        self.optimizer = torch.optim.AdamW(
            self.lora, betas=(adam.beta1, adam.beta2), eps=adam.eps, weight_decay=adam.weight_decay
        )

    def step(self, datums: list, rate: float = 1e-3) -> float:
        def pad(values: list) -> torch.Tensor:
            return torch.nn.utils.rnn.pad_sequence([torch.tensor(v) for v in values], batch_first=True)

        tokens = pad([datum.model_input.to_ints() for datum in datums])
        mask = pad([[1] * datum.model_input.length for datum in datums])
        targets, weights = (
            pad([datum.loss_fn_inputs[key].tolist() for datum in datums])
            for key in ("target_tokens", "weights")
        )
        logits = self.model(input_ids=tokens, attention_mask=mask).logits.float()
        loss = (
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            * weights.flatten()
        ).sum()
        loss.backward()
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach() / weights.sum())

    def flops(self, tokens: int, targets: int) -> float:
        """Of a step that wastes nothing: frozen matrices forward and back to activations, LoRA also to weights, the output layer
        where there is weight. Attention's own products (2% at 80 tokens) are left out."""
        layers = sum(
            value.numel()
            for name, value in self.model.named_parameters()
            if ".layers." in name and value.ndim == 2 and "lora_" not in name
        )
        output = self.model.get_output_embeddings().weight.numel()
        return (4 * layers + 6 * sum(value.numel() for value in self.lora)) * tokens + 4 * output * targets


class Transformers:
    """`generate` on a left-padded batch."""

    def __init__(self, folder: Path, dtype: torch.dtype):
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self.model.generation_config.eos_token_id = None

    def generate(self, prompts: list[list[int]], new_tokens: int) -> None:
        longest = max(map(len, prompts))
        tokens = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=tokens,
                attention_mask=mask,
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        assert out.shape == (len(prompts), longest + new_tokens)


class Vllm:
    """vLLM as notebook 06 starts it, in a process of its own that answers a line of JSON with a line of JSON."""

    def __init__(self, folder: Path):
        self.log = tempfile.TemporaryFile("w+")
        start = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--vllm", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )
        self._answer()
        self.start_seconds = time.perf_counter() - start

    def _answer(self) -> dict:
        ready, _, _ = select.select([self.process.stdout], [], [], 300)
        line = self.process.stdout.readline() if ready else b""
        if not line:
            self.stop()
            self.log.seek(0)
            raise RuntimeError(f"vLLM gave no answer: {self.log.read()[-2000:]}")
        return json.loads(line)

    def generate(self, prompts: list[list[int]], new_tokens: int) -> None:
        self.process.stdin.write(json.dumps([prompts, new_tokens]).encode() + b"\n")
        self.process.stdin.flush()
        assert self._answer()["tokens"] == len(prompts) * new_tokens

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def serve_vllm(folder: str) -> None:
    """The other end of `Vllm`. vLLM's own output goes to stderr. No prefix is cached: every contestant reads every prompt."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from helpers.serve.engine import load_vllm

    llm = load_vllm(folder, dtype="bfloat16", enable_prefix_caching=False)
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        prompts, new_tokens = json.loads(line)
        params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
        outputs = llm.generate([TokensPrompt(prompt_token_ids=p) for p in prompts], params, use_tqdm=False)
        print(
            json.dumps({"tokens": sum(len(output.outputs[0].token_ids) for output in outputs)}),
            file=answers,
            flush=True,
        )


# ---- parts: each returns {"data": all numbers, "rows": [(what, stub, beside it, ratio)], "broken": bounds that did not hold}


def training(bench: Bench) -> dict:
    """Tokens/s, loss curve, share of the machine's peak and memory, beside a plain PEFT loop."""
    steps, rounds = bench.size(30, 3), bench.size(3, 1)
    peaks = matmul_peaks(bench.size((1024, 2048, 4096), (1024,)))
    with bench.stub() as server, tempfile.TemporaryDirectory() as adapter:
        client, dtype = bench.trainer(server), precision(server)
        path = client.save_weights_external("initial").result().path
        for name, url in server.rest().get_external_weights_urls(path).result().urls.items():
            urllib.request.urlretrieve(url, Path(adapter) / name)
        peft, low = (PeftLoop(bench.folder, adapter, kind) for kind in (torch.float32, torch.bfloat16))
        plan = [(bench.datums[8 * i : 8 * i + 8], 1e-3 * (1 - i / steps)) for i in range(steps)]
        stub_loss, peft_loss = (
            np.array([step(*batch) for batch in plan])
            for step in (lambda *batch: train_step(client, *batch), peft.step)
        )
        low_loss = np.array(
            [low.step(*batch) for batch in plan[:6]]
        )  # the first steps differ most: Adam's are the largest then
        difference, low_difference = (
            float(abs(losses / peft_loss[: len(losses)] - 1).max()) for losses in (stub_loss, low_loss)
        )
        say(f"losses of {steps} steps differ by {difference:.2%} at most")
        loops = {
            "stub": lambda datums: train_step(client, datums),
            "PEFT, float32": peft.step,
            "PEFT, bfloat16": low.step,
        }
        speeds = {}
        for size in (8, 16):
            batches = [bench.datums[256 + size * i : 256 + size * (i + 1)] for i in range(rounds)]
            times = alternate(
                {name: lambda i, loop=loop: loop(batches[i]) for name, loop in loops.items()}, rounds
            )
            speeds[size] = {
                name: median(token_count(batch) / s for batch, s in zip(batches, times[name]))
                for name in loops
            }
            say(
                f"batch {size}: "
                + ", ".join(f"{name} {speed:.0f}" for name, speed in speeds[size].items())
                + " tokens/s"
            )
        tokens, targets = token_count(bench.datums[256:272]), target_tokens(bench.datums[256:272])
        rate = peft.flops(tokens, targets) / tokens * speeds[16]["stub"]
    with bench.stub() as server:  # a fresh one: a peak is of a process's whole life
        sample([bench.base_sampler(server)], bench.prompts[:1], 1)
        idle, client = settled_gib(server), bench.trainer(server)
        for _ in range(bench.size(3, 1)):
            train_step(client, bench.uniform(16, 256))
        peak = memory_gib(server, "VmHWM")
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
    rows += [
        [
            f"arithmetic of it, share of the {name} peak",
            f"{rate / 1e9:.0f} GFLOP/s",
            f"{value / 1e9:.0f}, matrix product",
            f"{rate / value:.0%}",
        ]
        for name, value in peaks.items()
    ]
    measured = [
        ("loss", difference, LOSS_DIFFERENCE),
        ("idle memory", idle, IDLE_GIB),
        ("training memory", peak, TRAINING_GIB),
    ]
    rows += [
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
    return {
        "data": {
            "tokens_per_second": speeds,
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


def matmul_peaks(sizes: tuple[int, ...]) -> dict[str, float]:
    """FLOP/s of torch's fastest square matrix product."""
    peaks = {}
    for name in ("bfloat16", "float32"):
        for n in sizes:
            a = torch.randn(n, n).to(getattr(torch, name))
            peaks[name] = max(
                peaks.get(name, 0.0), 2 * n**3 / min(seconds_of(lambda: a @ a) for _ in range(4))
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
            times = alternate(
                {name: lambda i, run=run: run(batches[i], new_tokens) for name, run in contestants.items()},
                rounds,
            )
            found[count] = {name: count * new_tokens / median(s) for name, s in times.items()}
            say(
                f"{count} prompts: "
                + ", ".join(f"{name} {speed:.0f}" for name, speed in found[count].items())
                + " tokens/s"
            )
        times = alternate(
            {
                "1": lambda i: sample(adapters[:1], bench.fresh_prompts(16), new_tokens),
                "4": lambda i: sample(adapters, bench.fresh_prompts(16), new_tokens),
            },
            bench.size(3, 1),
        )
        one, four = (16 * new_tokens / median(s) for s in times.values())
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
    rows += [["start of vLLM, model loaded", "", f"{start:.0f} s", ""]] if start else []
    return {
        "data": {
            "tokens_per_second": found,
            "one_adapter": one,
            "four_adapters": four,
            "vllm_start_seconds": start,
            "new_tokens": new_tokens,
            "precision": dtype,
        },
        "rows": rows,
        "broken": [],
    }


def wire(bench: Bench) -> dict:
    """What the protocol costs: calls that compute next to nothing, as shares of a training step."""
    with bench.stub() as server:
        client = bench.trainer(server)
        sampler, idle = bench.sampler(client), types.AdamParams(learning_rate=0.0)
        step = median(
            seconds_of(lambda: train_step(client, bench.datums[16 * i : 16 * i + 16]))
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
                seconds_of(lambda: sample([base], bench.fresh_prompts(n), new_tokens))
                for _ in range(rounds if n < 32 else 1)
            )
            for n in bench.size((1, 2, 4, 8, 16, 32, 64), (1, 4))
        }
        say("prompts: done")
    by_clients, mine, room = many_clients(bench, bench.size((1, 2, 4, 8, 16), (1, 2)), new_tokens)
    by_checkpoints = many_checkpoints(bench, bench.size((0, 1000, 5000), (0, 100)))
    rows = [
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
            f"{1024 * mine:.0f} MiB a client of rank 32",
            f"{room} in 8 GiB",
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


def series(values: dict, form: str = "{:.0f}", key: str | None = None) -> str:
    return ", ".join(f"{n}: {form.format(value[key] if key else value)}" for n, value in values.items())


def many_clients(
    bench: Bench, counts: tuple[int, ...], new_tokens: int
) -> tuple[dict[int, dict], float, int]:
    """Tokens/s of all clients together, 4 sequences each, and resident memory, by their number; memory of one more; how many fit in 8 GiB."""
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
                    "sample": lambda i: sample(samplers, bench.fresh_prompts(4 * count), new_tokens),
                },
                bench.size(2, 1),
            )
            found[count] = {
                "trained": count * token_count(batch) / median(seconds["train"]),
                "sampled": 4 * count * new_tokens / median(seconds["sample"]),
                "gib": settled_gib(server),
            }
            say(
                f"{count} clients: {found[count]['trained']:.0f} tokens/s trained, {found[count]['sampled']:.0f} sampled, {found[count]['gib']:.2f} GiB"
            )
        mine = float(np.polyfit(counts, [found[count]["gib"] for count in counts], 1)[0])
        rest = memory_gib(server, "VmHWM") - counts[-1] * mine  # the model and the work of one request
    return found, mine, int((8 - rest) / mine)


def many_checkpoints(bench: Bench, counts: tuple[int, ...]) -> dict[int, dict]:
    """Seconds to start, save and list with so many checkpoints on disk: copies of one of rank 1, its tensors hard-linked."""

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

                def list_some(_: int = 0) -> None:
                    answer = rest.list_user_checkpoints(limit=100).result()
                    assert (
                        len(answer.checkpoints) == min(100, answer.cursor.total_count)
                        and answer.cursor.total_count > count
                    ), answer.cursor

                first = seconds_of(list_some)
                times = alternate(
                    {"save": lambda i: client.save_state(f"{count}-{i}").result(), "list": list_some}, 3
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
    """64 prompts through evaluate_model, beside the guide's loop of one `sample().result()` after the other."""
    count, max_tokens = bench.size((64, 24), (8, 8))
    records, scores, answers = bench.records[-count:], [], []
    with bench.stub() as server:
        sampler = bench.sampler(bench.trainer(server))
        params = types.SamplingParams(max_tokens=max_tokens, temperature=0.0, stop=bench.fmt.stop)

        def one_by_one(i: int) -> None:  # a half of the prompts a round, so that the two take turns
            for record in records[i * count // 2 : (i + 1) * count // 2]:
                prompt = types.ModelInput.from_ints(bench.fmt.prompt_tokens(record))
                answers.append(
                    bench.fmt.answer_text(
                        sampler.sample(prompt, num_samples=1, sampling_params=params)
                        .result()
                        .sequences[0]
                        .tokens
                    )
                )

        def all_at_once(_: int) -> None:
            scores.append(
                evaluate_model(sampler, records, bench.fmt.tokenizer, fmt=bench.fmt, max_tokens=max_tokens)
            )

        sample([sampler], bench.prompts[:2], 4)
        times = alternate({"loop": one_by_one, "evaluate_model": all_at_once}, 2)
    batched, loop = median(times["evaluate_model"]), sum(times["loop"])
    same = sum(answer == scored["output"] for answer, scored in zip(answers, scores[0]["samples"]))
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

PARTS = {"training": training, "sampling": sampling, "wire": wire, "growth": growth, "evaluation": evaluation}
READMES = {ROOT / "helpers" / "stub_tinker" / "README.md": tuple(PARTS)}


def markdown(results: dict, names: tuple[str, ...] = tuple(PARTS)) -> str:
    """Where and how it was measured, and a table, aligned for a terminal too."""
    m, parts = results["machine"], [results["parts"][name] for name in names if name in results["parts"]]
    rows = [["what", "stub", "beside it", "ratio"], *(row for part in parts for row in part["rows"])]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return (
        f"From `make bench` of {' and '.join(sorted({part['date'][:10] for part in parts}))} on {m['cpu']}, {m['cores']} cores ({', '.join(m['features'])}), "
        f"torch {m['torch']}, {m['threads']} threads. Both sides of a row took turns on the same work; medians. Ratios with × are of speed: above 1 the stub is faster.\n\n"
        + "\n".join(lines)
    )


def write_readmes(results: dict) -> None:
    for path, names in READMES.items():
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if [text.count(mark) for mark in MARKS] != [1, 1]:
            say(f"{path.relative_to(ROOT)}: no marks {' … '.join(MARKS)}, left as it is")
            continue
        before, after = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
        write_text(path, f"{before}{MARKS[0]}\n{markdown(results, names)}\n{MARKS[1]}{after}")
        say(f"{path.relative_to(ROOT)}: table written")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument(
        "--only",
        nargs="*",
        choices=list(PARTS),
        metavar="PART",
        help=f"some of {', '.join(PARTS)}; none: only print",
    )
    parser.add_argument(
        "--readme", action="store_true", help=f"write the table between {' and '.join(MARKS)} in the READMEs"
    )
    parser.add_argument("--vllm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.vllm:
        serve_vllm(options.vllm)
        return 0
    if options.quick and options.readme:
        parser.error("numbers of --quick mean nothing: they don't go into a README")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end with this process
    path, here = ROOT / f"benchmarks{'-quick' * options.quick}.json", machine()
    results = read_json(path) if path.exists() else {"machine": here, "parts": {}}
    chosen = list(PARTS) if options.only is None else options.only
    if chosen and results["machine"] != here:
        results = {
            "machine": here,
            "parts": {},
        }  # numbers of another machine or other packages don't stand beside these
    bench = Bench(options.quick) if chosen else None
    for number, name in enumerate(chosen, 1):
        left = (
            ""
            if options.quick
            else f", about {sum(MINUTES[later] for later in chosen[number - 1 :]):.0f} minutes left"
        )
        say(f"part {number} of {len(chosen)}, {name}{left}")
        load, start = os.getloadavg()[0], time.perf_counter()
        part = PARTS[name](bench)
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()
        date = datetime.now(UTC).isoformat(timespec="seconds")
        results["parts"][name] = {
            "date": date,
            "commit": commit,
            "seconds": round(time.perf_counter() - start),
            "load_before": round(load, 2),
            **part,
        }
        write_json(path, results)
    print(f"\n{markdown(results)}\n\nAll numbers are in {path.name}.\n", flush=True)
    if options.readme:
        write_readmes(results)
    broken = [f"{name}: {what}" for name, part in results["parts"].items() for what in part["broken"]]
    print("".join(f"out of bounds: {what}\n" for what in broken), end="")
    return 1 if broken else 0


START = time.perf_counter()
if __name__ == "__main__":
    sys.exit(main())
