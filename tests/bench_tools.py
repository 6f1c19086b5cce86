"""What the parts of the benchmark share: the contestants, the work they take turns on, and the clock."""

import contextlib
import json
import os
import platform
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import tinker
import torch
from stub import OwnServer
from tinker import types

import helpers  # noqa: F401  (sets how idle threads wait, before torch is loaded)
from helpers import local_model
from helpers.paths import ROOT, package_versions
from helpers.train import models
from helpers.train.renderers import build_datum, get_renderer, prompt_tokens

START = time.perf_counter()
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # as the stub chooses it
GIB = 1 << 30
IDLE_GIB, TRAINING_GIB, LOSS_DIFFERENCE = 1.2, 4.0, 0.03  # bounds; of the loss in relative terms
MINUTES = {
    "training": 5.5,
    "sampling": 7,
    "profile": 0.5,
    "wire": 1,
    "growth": 7,
    "evaluation": 1,
    "loop": 7,
}  # on two cores
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
    """What the parts share: the base model, texts, sizes, and stubs that end with their part."""

    def __init__(self, quick: bool):
        self.quick = quick
        self.folder = local_model.local_base_model()
        self.renderer = get_renderer("guide", models.load_tokenizer(self.folder))
        self.records = json.loads((ROOT / "data" / "word_problems.json").read_text(encoding="utf-8"))
        np.random.default_rng(0).shuffle(self.records)
        self.datums = [build_datum(record, self.renderer) for record in self.records[:512]]
        self.prompts = [prompt_tokens(record, self.renderer) for record in self.records]
        self._unused = 0
        self._services: list[tinker.ServiceClient] = []
        self.stream = [token for datum in self.datums for token in datum.model_input.to_ints()]

    def size(self, full: Any, quick: Any) -> Any:
        return quick if self.quick else full

    def fresh_prompts(self, count: int) -> list[list[int]]:
        """Prompts that nothing read before, so that no cache of prompts helps anyone; after 1,248 they begin
        again.
        """
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
        return [weighted(self._piece(i * length, length + 1), length // 2) for i in range(batch)]

    def groups(self, prompts: int, samples: int, before: int, after: int) -> list[types.Datum]:
        """Datums of a step of reinforcement learning: `samples` answers of `after` tokens, which alone have
        weight, to each of the prompts of `before` tokens.
        """
        asked = [self._piece(i * before, before) for i in range(prompts)]
        return [
            weighted(prompt + self._piece(1000 + 31 * (samples * i + j), after), before - 1)
            for i, prompt in enumerate(asked)
            for j in range(samples)
        ]

    def _piece(self, start: int, length: int) -> list[int]:
        return [self.stream[(start + i) % len(self.stream)] for i in range(length)]


def weighted(tokens: list[int], without: int) -> types.Datum:
    """Each token predicts the next; the first `without` of them have weight 0."""
    weights = np.array([0.0] * without + [1.0] * (len(tokens) - 1 - without), np.float32)
    fields = {"target_tokens": np.array(tokens[1:]), "weights": weights}
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=fields)


# ---- measuring


def say(text: str) -> None:
    print(f"[{time.perf_counter() - START:4.0f} s] {text}", flush=True)


def seconds_of(work: Callable[[], Any]) -> float:
    """Wall time, until a GPU has done its part."""
    start = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def alternate(contestants: dict[str, Callable[[int], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round. In a round they take turns, and all get the same work by its
    number.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for i in range(rounds):
        for name, run in contestants.items():
            seconds[name].append(seconds_of(lambda run=run, i=i: run(i)))
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
        "gpu": torch.cuda.get_device_name() if DEVICE.type == "cuda" else None,
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
    """One optimizer step as in notebook 02: both calls are sent before either is waited for. Returns nats a
    target token.
    """
    forward = client.forward_backward(datums, "cross_entropy")
    update = client.optim_step(types.AdamParams(learning_rate=rate))
    loss = mean_nll(forward.result(), datums)
    update.result()
    return loss


def token_count(datums: list) -> int:
    return sum(datum.model_input.length for datum in datums)


def sample(samplers: list, prompts: list[list[int]], new_tokens: int) -> None:
    """Greedy answers of exactly `new_tokens` tokens, all sent at once, prompt i to sampler i modulo their
    number.
    """
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
        ).to(DEVICE)
        self.lora = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        adam = types.AdamParams()
        self.optimizer = torch.optim.AdamW(
            self.lora, betas=(adam.beta1, adam.beta2), eps=adam.eps, weight_decay=adam.weight_decay
        )

    def step(self, datums: list, rate: float = 1e-3) -> float:
        def pad(values: list) -> torch.Tensor:
            rows = [torch.tensor(row) for row in values]
            return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(DEVICE)

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
        """Of a step that wastes nothing: frozen matrices forward and back to activations, LoRA also to
        weights, the output layer where there is weight. Attention's own products (2% at 80 tokens) are left
        out.
        """
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

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(DEVICE)
        self.model.generation_config.eos_token_id = None

    def generate(self, prompts: list[list[int]], new_tokens: int) -> None:
        longest = max(map(len, prompts))
        tokens = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=DEVICE)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=DEVICE)
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
    """vLLM as notebook 06 starts it, in a process of its own that answers lines of JSON."""

    def __init__(self, folder: Path):
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (as long as the process)
        start = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("bench.py"), "--vllm", str(folder)],
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
    """The other end of `Vllm`. vLLM's own output goes to stderr. No prefix is cached: every contestant reads
    every prompt.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from helpers.serve import starting_vllm

    with starting_vllm(folder) as on_cpu:
        from vllm import LLM, SamplingParams

        llm = LLM(
            folder, dtype="bfloat16", max_model_len=1024, enforce_eager=on_cpu, enable_prefix_caching=False
        )
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


# ---- parts: each returns {"data": all numbers, "rows": [(what, stub, beside it, ratio)], "broken": bounds
# that did not hold}
