"""Samplers over time: many of one client, inflight ones, cancelled requests, seeds, the end of context."""

import asyncio
import json
import time

import psutil
import pytest
import tinker
from stub import Server, prompt, train
from stub_memory import MIB, RANK, lora_parameters, settles_below
from tinker import types

from helpers.stub_tinker.samplers import KEPT_ADAPTERS

QUESTION = (5, 6, 7, 8, 9)


def sampler_of(client, **options) -> tinker.SamplingClient:
    made = client.save_weights_and_get_sampling_client(**options)
    return made.result() if hasattr(made, "result") else made


def scores(sampler) -> list[float]:
    return sampler.compute_logprobs(prompt(*QUESTION)).result()[1:]


def status(server: Server) -> dict:
    return json.loads(server.ask("GET", "/")[1])


def test_a_sampler_at_each_step_does_not_fill_the_memory(wide_model, tmp_path):
    """As RL loops make them: the memory of a few adapters, whatever their number, and each keeps its own
    weights.
    """
    server = Server(wide_model, tmp_path / "state")
    process, adapter = psutil.Process(server.process.pid), 4 * lora_parameters(wide_model)
    service = server.connect()
    client = service.create_lora_training_client(server.model, rank=RANK, train_unembed=False).result()
    made = []

    def make(number: int) -> None:
        for _ in range(number):
            train(client, 1)
            sampler = sampler_of(client)
            made.append((sampler, scores(sampler)))

    make(KEPT_ADAPTERS + 2)
    before = process.memory_info().rss
    make(12)
    fits, memory = settles_below(process, before + 4 * adapter)
    assert fits, f"{memory - before // MIB} MiB more for 12 samplers of {adapter // MIB} MiB"
    # Weights of the client and three samplers, and of one of these a second form, 1.6 times as large.
    assert [row["memory_mib"] for row in status(server)["clients"]] < [7 * adapter / MIB]
    assert len({tuple(values) for _, values in made}) == len(made)
    for sampler, values in made[::4]:
        assert scores(sampler) == values
    assert len(list((server.state / "samplers").rglob("*.safetensors"))) >= len(made) - KEPT_ADAPTERS
    service.close("success").result()
    assert not list((server.state / "samplers").rglob("*.safetensors"))
    server.stop()


def test_inflight_samplers_take_the_newest_weights_and_snapshots_keep_theirs(server, service):
    client = service.create_lora_training_client(server.model, rank=4, seed=1, train_unembed=False).result()
    first, fixed = sampler_of(client, kind="inflight"), sampler_of(client)
    at_first = scores(first)
    assert scores(fixed) == at_first
    train(client, 2)
    second = sampler_of(client, kind="inflight")
    assert scores(second) != pytest.approx(at_first, abs=1e-4)
    assert scores(first) == scores(second) and scores(fixed) == at_first


def test_a_cancelled_sample_stops_and_makes_room(server):
    service = server.connect()
    sampler = service.create_sampling_client(base_model=server.model).result()
    long = types.SamplingParams(max_tokens=240, temperature=1.0, stop=[])
    sampler.sample(
        prompt(*QUESTION), 1, types.SamplingParams(max_tokens=1)
    ).result()  # the model is loaded now
    before = status(server)["tokens_sampled"]

    async def give_up() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(sampler.sample(prompt(*QUESTION), 256, long).result_async(), timeout=1)

    asyncio.run(give_up())
    deadline = time.monotonic() + 10
    while status(server)["queued"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert status(server)["queued"] == 0 and time.monotonic() < deadline
    assert (
        len(
            sampler.sample(prompt(*QUESTION), 1, types.SamplingParams(max_tokens=3, stop=[]))
            .result()
            .sequences[0]
            .tokens
        )
        == 3
    )
    assert status(server)["tokens_sampled"] - before == 3  # what was cancelled had not come to its end
    service.close("success").result()


def test_neighbouring_seeds_share_no_samples(server, service):
    sampler = service.create_sampling_client(base_model=server.model).result()

    def drawn(seed: int, number: int) -> list[tuple[int, ...]]:
        params = types.SamplingParams(max_tokens=12, temperature=1.0, seed=seed, stop=[])
        return [
            tuple(sequence.tokens)
            for sequence in sampler.sample(prompt(*QUESTION), number, params).result().sequences
        ]

    every = [sample for seed in range(4) for sample in drawn(seed, 8)]
    assert len(set(every)) == 32
    assert drawn(2, 3) == every[16:19]  # and a sample does not depend on how many are asked for


def test_at_the_end_of_the_context(server, service):
    """256 tokens: a full prompt leaves no room and says so; a prompt with room for three gets three."""
    sampler = service.create_sampling_client(base_model=server.model).result()
    with pytest.raises(
        tinker.BadRequestError, match="256 tokens, and the model's context is 256: there is no room"
    ):
        sampler.sample(prompt(*[9] * 256), 1, types.SamplingParams(max_tokens=1)).result()
    with pytest.raises(tinker.BadRequestError, match="257 tokens, and the model's context is 256"):
        sampler.sample(prompt(*[9] * 257), 1, types.SamplingParams(max_tokens=1)).result()
    sequence = (
        sampler.sample(prompt(*[9] * 253), 1, types.SamplingParams(max_tokens=30, stop=[]))
        .result()
        .sequences[0]
    )
    assert len(sequence.tokens) == 3 and sequence.stop_reason == "length"
