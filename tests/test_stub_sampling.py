"""Sampling in the stub's default precision: what a request gets is its own, and every prompt option is
answered truly.
"""

import threading

import numpy as np
import pytest
import tinker
import torch
from tinker import types

from helpers.stub_tinker.engine import Base, Engine, best_precision
from helpers.stub_tinker.kernels import Frozen
from helpers.stub_tinker.lora import Layout, LoraState
from helpers.stub_tinker.model import Model
from helpers.stub_tinker.sampling import SampleJob, Sampler, Sequence, draw, likeliest
from helpers.stub_tinker.snapshot import tensor_bytes

PROMPT = [10, 400, 3, 77, 20000, 9]


@pytest.fixture(scope="module")
def model(base_model) -> Model:
    device = torch.device("cpu")
    return Model(base_model, device, best_precision(device))


@pytest.fixture(scope="module")
def adapters(model) -> list:
    """None, and two adapters that change the model's answers."""
    made = [None]
    for seed in (1, 2):
        state = LoraState(Layout(model.config, 16, True, True, seed == 2), seed, model.device)
        with torch.no_grad():
            state.flat.add_(
                torch.randn(state.flat.shape, generator=torch.Generator().manual_seed(seed)) * 0.01
            )
        made.append(state.snapshot(model.dtype))
    return made


def test_a_sample_does_not_depend_on_its_neighbours(model, adapters):
    """Alone, or among eighteen others of other lengths, adapters and temperatures: the same tokens and
    logprobs, in the default precision.
    """

    def jobs() -> list[SampleJob]:
        rng = np.random.default_rng(0)
        return [
            SampleJob(
                f"client {i % 3}",
                rng.integers(0, 40000, 3 + 7 * (i % 5)).tolist(),
                10 + i,
                float(i % 2),  # the temperature
                -1,
                0.95,
                i,
                frozenset(),
                [],
                adapters[i % 3],
            )
            for i in range(19)
        ]

    def run(chosen: list[SampleJob]) -> list[Sequence]:
        sampler = Sampler(model, tokenizer=None)
        for job in chosen:
            sampler.add(job)
        while sampler.busy:
            sampler.work(4)
        return [job.future.result() for job in chosen]

    crowd = run(jobs())
    for i in (0, 1, 5, 12, 18):
        [alone] = run([jobs()[i]])
        assert alone.tokens == crowd[i].tokens
        assert alone.logprobs == crowd[i].logprobs


def test_a_place_that_spoilt_weights_have_left_does_not_spoil_the_next(model, adapters):
    """Weights of NaN leave keys and values of NaN in the cache, behind the next sequence's own."""
    state = LoraState(Layout(model.config, 16, True, True), 1, model.device)
    state.flat.data.fill_(float("nan"))
    spoilt = state.snapshot(model.dtype)

    def job(adapter, max_tokens: int) -> SampleJob:
        return SampleJob("a", PROMPT, max_tokens, 0.0, -1, 1.0, 0, frozenset(), [], adapter)

    sampler, first, ill, late = Sampler(model, tokenizer=None), job(None, 30), job(spoilt, 20), job(None, 8)
    sampler.add(first)
    sampler.add(ill)
    while not ill.future.done():
        sampler.work(1)
    sampler.add(late)
    while sampler.busy:
        sampler.work(1)
    assert late.future.result().tokens == first.future.result().tokens[:8]
    assert late.future.result().logprobs == pytest.approx(first.future.result().logprobs[:8], abs=1e-5)


def test_the_memory_of_an_adapter_in_use_can_be_told(model, adapters):
    """In whatever layout its factors are kept for sampling: the status page sums them up."""
    adapter = adapters[1]
    job = SampleJob("a", PROMPT, 2, 0.0, -1, 1.0, 0, frozenset(), [], adapter)
    sampler = Sampler(model, tokenizer=None)
    sampler.add(job)
    while sampler.busy:
        sampler.work(4)
    assert tensor_bytes([adapter]) > adapter.flat.numel() * (4 if model.dtype == torch.float32 else 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_small_delta_survives_the_rounding_of_the_sum(dtype):
    """What LoRA adds in its first steps is far below the last digit of bfloat16 of the sum it is added to."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(64, 256, generator=generator).to(dtype),
        torch.randn(320, 256, generator=generator).to(dtype),
    )
    delta = (torch.randn(64, 320, generator=generator) * 1e-3).to(dtype)
    gained = (Frozen(weight)(x, delta).double() - Frozen(weight)(x).double()).flatten()
    share = gained @ delta.double().flatten() / delta.double().square().sum()
    assert share == pytest.approx(1, abs=0.5 if dtype == torch.bfloat16 else 1e-3)
    if dtype == torch.bfloat16:
        lost = (
            (Frozen(weight)(x) + delta).double() - Frozen(weight)(x).double()
        ).flatten() @ delta.double().flatten()
        assert lost / delta.double().square().sum() < share / 2


def asking(number: int = 1, **options) -> list[SampleJob]:
    """Jobs with other seeds and the same options."""
    options = {"temperature": 1.0, "top_k": -1, "top_p": 1.0} | options
    return [
        SampleJob("a", PROMPT, 1, seed=i, stop_tokens=frozenset(), stop_strings=[], adapter=None, **options)
        for i in range(number)
    ]


def drawn_from(logits: list[float], vocab: int = 49152, **options) -> set[int]:
    """The tokens that 200 seeds get; all but the first logits are far below."""
    row = torch.full((vocab,), -30.0)
    row[: len(logits)] = torch.tensor(logits)
    jobs = asking(200, **options)
    return set(draw(row.repeat(len(jobs), 1), jobs).tolist())


def test_of_tied_tokens_top_k_keeps_the_lower_ids():
    """bfloat16 gives whole logits the same value often: exactly k stay all the same."""
    tied = [1.0, 5.0, 3.0, 5.0, 5.0, 3.0, 3.0]
    assert drawn_from(tied, top_k=1) == {1}
    assert drawn_from(tied, top_k=2) == {1, 3}
    assert drawn_from(tied, top_k=5, temperature=5.0) == {1, 2, 3, 4, 5}
    assert drawn_from([0.0] * 5000, top_k=3) == {0, 1, 2}


def test_of_tied_tokens_top_p_keeps_the_lower_ids():
    assert drawn_from([2.0] * 8, top_p=0.3) == {0, 1, 2}
    assert drawn_from([2.0] * 4000, vocab=4000, top_p=0.001) == {0, 1, 2, 3}
    assert drawn_from([1.0, 2.0, 2.0, 2.0], top_p=0.5) == {1, 2}
    assert drawn_from([1.0, 2.0, 2.0], top_p=1e-9) == {1}


@pytest.mark.parametrize("rows", [1, 2, 16])
def test_greedy_takes_the_lowest_of_tied_tokens(rows):
    """In one part of the vocabulary or far apart, whatever part a thread has, and as top_k=1 does."""
    logits = torch.randn(rows, 49152, generator=torch.Generator().manual_seed(0))
    best = torch.arange(rows) * 3000 + 7
    for offset in (0, 1, 40, 1000):
        logits[torch.arange(rows), best + offset] = 9.0
    sampler, jobs = Sampler.__new__(Sampler), [*asking(rows, temperature=0.0), *asking(rows, top_k=1)]
    sampler.cache = type("Nothing", (), {"remove": lambda self, job: None})()
    sampler._append(jobs, torch.cat([logits, logits]))
    assert [job.tokens for job in jobs] == [[token] for token in [*best.tolist(), *best.tolist()]]


def test_the_likeliest_tokens_are_in_order_and_the_lower_ids_first():
    assert likeliest(torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0, 2.0]), 4).tolist() == [1, 3, 2, 4]


@pytest.fixture(scope="module")
def sampler(server, service) -> tinker.SamplingClient:
    return service.create_sampling_client(base_model=server.model).result()


@pytest.fixture(scope="module")
def expected(server) -> np.ndarray:
    """log p of every token after each prompt token but the last, by transformers: (n - 1, vocab)."""
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(server.model)(torch.tensor([PROMPT])).logits[0, :-1]
    return torch.log_softmax(logits.double(), -1).numpy()


def ask(sampler: tinker.SamplingClient, **options) -> types.SampleResponse:
    params = types.SamplingParams(
        max_tokens=1, temperature=options.pop("temperature", 1.0), seed=options.pop("seed", 1)
    )
    return sampler.sample(types.ModelInput.from_ints(PROMPT), 1, params, **options).result()


def test_logprobs_of_chosen_tokens_at_each_place(sampler, expected):
    asked = np.array([[5, -1], [-1, -1], [7, 9], [0, 3], [2, 2]])
    dense = ask(sampler, target_prompt_logprobs=tinker.TensorData.from_numpy(asked)).target_prompt_logprobs
    wanted = np.where(asked < 0, 0.0, np.take_along_axis(expected, np.maximum(asked, 0), axis=1))
    np.testing.assert_allclose(dense.to_numpy(), wanted, atol=1e-4)
    sparse = tinker.TensorData(
        data=[5, 7, 9],
        dtype="int64",
        shape=[5, 40000],
        sparse_crow_indices=[0, 1, 1, 3, 3, 3],
        sparse_col_indices=[0, 0, 39999],
    )
    with pytest.raises(tinker.BadRequestError, match="k up to 1024"):
        ask(sampler, target_prompt_logprobs=sparse)
    sparse = tinker.TensorData(
        data=[5, 7, 9],
        dtype="int64",
        shape=[5, 4],
        sparse_crow_indices=[0, 1, 1, 3, 3, 3],
        sparse_col_indices=[3, 0, 2],
    )
    answer = ask(sampler, target_prompt_logprobs=sparse).target_prompt_logprobs
    assert (answer.shape, answer.sparse_crow_indices, answer.sparse_col_indices) == (
        [5, 4],
        [0, 1, 1, 3, 3, 3],
        [3, 0, 2],
    )
    np.testing.assert_allclose(answer.data, [expected[0, 5], expected[2, 7], expected[2, 9]], atol=1e-4)


def test_the_most_likely_tokens_and_only_the_last_places(sampler, expected):
    answer = ask(sampler, include_prompt_logprobs=True, topk_prompt_logprobs=3, prompt_logprobs_last_n=2)
    own = [expected[i, token] for i, token in enumerate(PROMPT[1:])]
    assert answer.prompt_logprobs[:4] == [None] * 4 and answer.prompt_logprobs[4:] == pytest.approx(
        own[3:], abs=1e-4
    )
    assert answer.topk_prompt_logprobs[:4] == [None] * 4
    for place in (3, 4):
        best = np.argsort(-expected[place])[:3]
        assert answer.topk_prompt_logprobs[place + 1] == [
            (token, pytest.approx(expected[place, token], abs=1e-4)) for token in best
        ]


def test_alternatives_are_drawn_from_the_model_at_each_place(sampler, expected):
    drawn = ask(sampler, prompt_alt_tokens_k=1000).prompt_alt_tokens
    tokens, logprobs = drawn.tokens.to_numpy(), drawn.logprobs.to_numpy()
    assert tokens.shape == logprobs.shape == (5, 1000)
    np.testing.assert_allclose(logprobs, np.take_along_axis(expected, tokens, axis=1), atol=1e-4)
    for place in range(5):  # how often the likeliest tokens come, within five standard deviations
        likely = np.argsort(-expected[place])[:200]
        p = np.exp(expected[place][likely]).sum()
        assert np.isin(tokens[place], likely).mean() == pytest.approx(p, abs=5 * (p * (1 - p) / 1000) ** 0.5)
    cold = ask(sampler, prompt_alt_tokens_k=3, temperature=0.0).prompt_alt_tokens.tokens.to_numpy()
    assert (cold == expected.argmax(axis=1)[:, None]).all()
    again = ask(sampler, prompt_alt_tokens_k=1000).prompt_alt_tokens.tokens.to_numpy()
    assert (again == tokens).all()


def test_a_model_is_loaded_once_and_on_the_thread_that_computes(small_model):
    """Threads that compute beside it would take OpenMP's spinning from it."""
    engine, threads = Engine({"m": Base(small_model, torch.device("cpu"), torch.float32)}), []
    load = engine.bases["m"].load
    engine.bases["m"].load = lambda: (threads.append(threading.current_thread()), load())[1]
    engine.start()
    first = engine.load("m")
    assert engine.load("m") is first and engine.call(lambda: engine.load("m")) is first
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda: 1 / 0)
    engine.stop()
    engine.join(timeout=10)
    assert threads == [engine] and not engine.is_alive()
