"""Part of the benchmark: the memory of a stub in a long loop of reinforcement learning."""

import threading

import numpy as np
from bench_tools import Bench, memory_gib, say
from stub import OwnServer, datum
from tinker import types

LOOP_GIB = 2.5  # resident at most
PROMPTS, SAMPLES = 16, 8  # of a step: 128 short samples in all


class Watch:
    """The largest resident memory of a server, looked at five times a second."""

    def __init__(self, server: OwnServer):
        self._server, self._over, self.largest = server, threading.Event(), 0.0
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._over.wait(0.2):
            self.largest = max(self.largest, memory_gib(self._server, "VmRSS"))

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def loop(bench: Bench) -> dict:
    """Sample, give every second answer an advantage, train on all of them, make a new sampler; again."""
    params = types.SamplingParams(max_tokens=bench.size(24, 4), temperature=1.0, stop=[])
    seen: list[float] = []
    with bench.stub() as server, Watch(server) as watch:
        client = bench.trainer(server)
        for step in range(bench.size(24, 2)):
            sampler = client.save_weights_and_get_sampling_client().result()
            prompts = bench.fresh_prompts(PROMPTS)
            futures = [sampler.sample(types.ModelInput.from_ints(p), SAMPLES, params) for p in prompts]
            answers = [
                (prompt, sequence)
                for prompt, future in zip(prompts, futures, strict=True)
                for sequence in future.result().sequences
            ]
            data = [_datum(prompt, answer, 1.0 - 2 * (i % 2)) for i, (prompt, answer) in enumerate(answers)]
            forward = client.forward_backward(data, "importance_sampling")
            update = client.optim_step(types.AdamParams(learning_rate=1e-5))
            forward.result()
            update.result()
            seen.append(memory_gib(server, "VmRSS"))
            say(f"step {step + 1}: {seen[-1]:.2f} GiB, {watch.largest:.2f} at most")
    text = f"{watch.largest:.2f} GiB"
    row = [f"memory, {len(seen)} steps of RL with 128 samples", text, f"bound {LOOP_GIB}", ""]
    broken = [f"{text} in a loop of RL"] if watch.largest > LOOP_GIB and not bench.quick else []
    return {"data": {"gib_after_step": seen, "largest_gib": watch.largest}, "rows": [row], "broken": broken}


def _datum(prompt: list[int], answer: types.SampledSequence, advantage: float) -> types.Datum:
    tokens, before = [*prompt, *answer.tokens], len(prompt) - 1
    after = len(answer.tokens)
    return datum(
        tokens[:-1],
        target_tokens=tokens[1:],
        logprobs=[0.0] * before + list(np.asarray(answer.logprobs, float)),
        advantages=[0.0] * before + [advantage] * after,
    )
