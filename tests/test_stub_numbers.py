"""The stub's numbers on a toy model, in each precision: a row's own, and those of transformers.

`test_stub_levels.py` runs some of this file again at each instruction-set level that the processor has.
"""

import os
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.stub_tinker import kernels, steady
from helpers.stub_tinker.kernels import PIECE, STEP
from helpers.stub_tinker.lora import Layout, LoraState
from helpers.stub_tinker.losses import Example
from helpers.stub_tinker.model import Model
from helpers.stub_tinker.pieces import attend_in_pieces
from helpers.stub_tinker.sampling import SampleJob, Sampler, ScoreJob
from helpers.stub_tinker.steady import SIZES, Steady, by_rows, trial_operands
from helpers.stub_tinker.training import forward_backward

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]
VOCAB = 1999


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A toy model is faster so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield before
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A llama that is wide enough for kernels with blocks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=192,
        intermediate_size=320,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        initializer_range=0.1,
    )
    path = tmp_path_factory.mktemp("toy")
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def model(folder, request) -> Model:
    return Model(folder, CPU, request.param)


def trained(model: Model, seed: int) -> LoraState:
    """LoRA weights whose B is not zero."""
    state = LoraState(Layout(model.config, 8, True, True, train_unembed=seed == 2), seed, CPU)
    noise = torch.randn(state.flat.shape, generator=torch.Generator().manual_seed(seed))
    state.flat.data.add_(noise, alpha=0.02)
    return state


@pytest.fixture
def fresh_trials():
    """What an earlier test has found out about products is forgotten, and what this one finds out too."""
    caches = kernels.linear_trials, steady.batched
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


# ---- a sample's numbers are its own


def jobs_of(model: Model) -> list:
    """Samples of many lengths, three adapters and both temperatures, and a prompt to score."""
    adapters = [None, *(trained(model, seed).snapshot(model.dtype) for seed in (1, 2))]
    rng = np.random.default_rng(0)
    jobs: list = []
    for i in range(23):
        prompt = rng.integers(0, VOCAB, 3 + 9 * (i % 8)).tolist()
        options = (0.0 if i % 2 else 1.0), (5 if i % 5 == 0 else -1), (0.9 if i % 3 == 0 else 1.0), i
        jobs.append(
            SampleJob(
                f"{i % 4}", prompt, 3 + i % 7, *options, frozenset(), [], adapters[i % 3], topk_logprobs=2
            )
        )
    for i in range(3):
        prompt = rng.integers(0, VOCAB, 20 + 30 * i).tolist()
        jobs.append(ScoreJob("s", prompt, adapters[i], last=len(prompt) - 1, topk=3))
    return jobs


def results(model: Model, chosen: list[int]) -> list[tuple]:
    """What these of the jobs get when they are asked together."""
    sampler, jobs = Sampler(model, tokenizer=None), jobs_of(model)
    chosen_jobs = [jobs[i] for i in chosen]
    for job in chosen_jobs:
        sampler.add(job)
    while sampler.busy:
        sampler.work(2)
    answers = []
    for job in chosen_jobs:
        result = job.future.result()
        if isinstance(job, ScoreJob):
            answers.append((result.own[1:].tolist(), *(part.tolist() for part in result.topk)))
        else:
            answers.append(
                (result.tokens, result.logprobs, [[p.tolist() for p in best] for best in result.topk])
            )
    return answers


def assert_nobody_notices_the_others(model: Model, alone: tuple[int, ...] = (0, 1, 7, 22, 25)) -> None:
    everyone = list(range(len(jobs_of(model))))
    crowd = results(model, everyone)
    for i in alone:
        assert results(model, [i]) == [crowd[i]], f"job {i} alone"
    some = [22, 9, 24, 2, 7, 0]
    assert results(model, some) == [crowd[i] for i in some]


@pytest.fixture(params=[1, 2])
def threads(request):
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


def test_spoilt_weights_reach_no_prompt_that_is_read_with_theirs(model, threads):
    """Prompts of one length are read in one product each for keys and values, whatever their adapter."""
    spoilt, healthy = trained(model, 1), trained(model, 2).snapshot(model.dtype)
    spoilt.flat.data.fill_(torch.nan)
    adapters = [None, spoilt.snapshot(model.dtype), healthy]

    def answers(chosen: range) -> list[tuple]:
        sampler = Sampler(model, tokenizer=None)
        jobs = [
            SampleJob("s", [(7 * i + j) % VOCAB for j in range(20)], 3, 0.0, -1, 1.0, 1, frozenset(), [], a)
            for i, a in enumerate(adapters * 6)
        ]
        for i in chosen:
            sampler.add(jobs[i])
        while sampler.busy:
            sampler.work(8)
        return [(jobs[i].tokens, jobs[i].logprobs) for i in chosen if i % 3 != 1]

    together = answers(range(18))
    assert np.isfinite([logprob for _, logprobs in together for logprob in logprobs]).all()
    assert together == [answer for i in range(18) for answer in answers(range(i, i + 1))]


def test_to_the_last_bit_a_sample_is_the_same_alone_and_in_a_crowd(model, threads):
    assert_nobody_notices_the_others(model, alone=(7, 25))


def prompts_that_share() -> list[list[int]]:
    """Prefixes of one another, of whole pieces or not; with other ends, twice, too long for one pass."""
    rng = np.random.default_rng(1)
    tokens, other = rng.integers(0, VOCAB, (2, 1200)).tolist()
    prompts = [tokens[:n] for n in (PIECE, 2 * PIECE, 2 * PIECE + 1, 9, PIECE - 1, 150, 150)]
    prompts += [tokens[:140] + other[:n] for n in (10, 50)]
    return [*prompts, tokens[:1100], tokens[:1050] + other[:20], tokens[:600]]


def sampled(sampler: Sampler, adapters: list, chosen: Callable[[list], list] = list) -> list[tuple]:
    """What samples of these prompts get together, greedy and not, with each adapter."""
    jobs = [
        SampleJob("s", list(prompt), 3, temperature, -1, 1.0, i, frozenset(), [], adapter, topk_logprobs=1)
        for i, prompt in enumerate(prompts_that_share())
        for adapter in adapters
        for temperature in (0.0, 1.0)
    ]
    jobs = chosen(jobs)
    for job in jobs:
        sampler.add(job)
    while sampler.busy:
        sampler.work(2)
    return [(result.tokens, result.logprobs, result.topk) for result in (job.future.result() for job in jobs)]


def test_to_the_last_bit_it_does_not_matter_how_much_of_a_prompt_is_known(model):
    """Nothing, what others that wait read, or all, alone and in a crowd."""
    adapters = [None, trained(model, 1).snapshot(model.dtype)]
    every = range(4 * len(prompts_that_share()))

    def one_by_one(sampler: Callable[[], Sampler]) -> list[tuple]:
        return [sampled(sampler(), adapters, lambda jobs, i=i: jobs[i : i + 1])[0] for i in every]

    unknown = one_by_one(lambda: Sampler(model, tokenizer=None))
    sampler = Sampler(model, tokenizer=None)
    assert sampled(sampler, adapters) == unknown
    assert sampler.prefixes.positions > 4 * PIECE
    assert sampled(sampler, adapters) == unknown
    assert one_by_one(lambda: sampler) == unknown
    assert sampled(Sampler(model, tokenizer=None), adapters, lambda jobs: jobs[::-1]) == unknown[::-1]


def test_spoilt_weights_reach_no_other_prompt(model):
    """A key may sample the same prompt with weights of NaN, with others and with none."""
    state = trained(model, 1)
    healthy = [None, state.snapshot(model.dtype)]
    state.flat.data.fill_(float("nan"))
    sampler, expected = Sampler(model, tokenizer=None), sampled(Sampler(model, tokenizer=None), healthy)
    sampled(sampler, [state.snapshot(model.dtype)])
    assert sampled(sampler, healthy) == expected


def attend_alone(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """`attend_in_pieces` of one prompt, from (positions, heads, dim) each."""
    grids = [torch.nn.functional.pad(x, (0, 0, 0, 0, 0, -len(q) % STEP))[None] for x in (q, keys, values)]
    return attend_in_pieces(grids[0], *(x.transpose(1, 2).contiguous() for x in grids[1:]))[0, : len(q)]


@pytest.mark.parametrize("heads, kv_heads", [(6, 2), (4, 4), (1, 1)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_to_the_last_bit_prompts_that_are_read_together_have_the_attention_they_have_alone(
    heads, kv_heads, dtype, threads
):
    generator = torch.Generator().manual_seed(0)
    for known in (0, 2 * PIECE):
        for count in (2, 7, 40):
            q = torch.randn(count, 80, heads, 32, generator=generator).to(dtype)
            keys, values = torch.randn(2, count, kv_heads, known + 80, 32, generator=generator).to(dtype)
            together = attend_in_pieces(q, keys, values)
            for i in range(count):
                assert (
                    attend_in_pieces(q[i : i + 1], keys[i : i + 1], values[i : i + 1])[0] == together[i]
                ).all()


@pytest.mark.parametrize("heads, kv_heads", [(6, 2), (4, 4), (1, 1)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_to_the_last_bit_a_piece_has_the_attention_it_has_in_any_prompt(heads, kv_heads, dtype):
    """Of whatever length, and read from whatever piece on; as a slice of a pass's rows, or not."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(400, heads + 2 * kv_heads, 32, generator=generator).to(dtype)
    whole: dict[int, torch.Tensor] = {}
    for first, last in [
        (0, 321),
        (64, 321),
        (192, 321),
        (0, 64),
        (0, 192),
        (128, 192),
        (64, 200),
        (192, 256),
    ]:
        q, keys, values = rows.split([heads, kv_heads, kv_heads], dim=1)
        attended = attend_alone(q[first:last], keys[:last], values[:last])
        for start in range(first, last // PIECE * PIECE, PIECE):
            piece = attended[start - first :][:PIECE]
            assert (piece == whole.setdefault(start, piece)).all(), (first, last, start)


@pytest.mark.parametrize("known", [0, PIECE, 3 * PIECE])
@pytest.mark.parametrize("length", [1, 16, PIECE, PIECE + 1, 200])
def test_attention_in_pieces_is_attention(known, length):
    q, k, v = torch.randn(3, 6, known + length, 32, generator=torch.Generator().manual_seed(0))
    k, v = k[:2], v[:2]
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    keys, values = ((k * 32**-0.5).transpose(0, 1), v.transpose(0, 1))
    attended = attend_alone(q.transpose(0, 1)[known:], keys, values)
    torch.testing.assert_close(attended.view(length, 6, 32), expected.transpose(0, 1)[known:])


class Moody(TorchDispatchMode):
    """Products whose digits depend on how many rows they have, or on a row's place, as kernels' may. `rows`
    collects how many rows products with two-dimensional operands had.
    """

    PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "mkldnn::_linear_pointwise")

    def __init__(self, mood):
        super().__init__()
        self.mood, self.rows = mood, set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if function._schema.name in self.PRODUCTS:
            if function._schema.name != "aten::bmm":
                self.rows.add(len(result))
            result.mul_(1 + self.mood(len(result)).to(result.dtype).view(-1, *[1] * (result.dim() - 1)) / 32)
        return result


def last_of(rows: int) -> torch.Tensor:
    return (torch.arange(rows) == rows - 1) * (rows > 2)  # of an attention with two heads, both stand alone


MOODS = {
    "few rows": lambda rows: torch.full((rows,), rows < 16),  # as with AMX
    "many rows": lambda rows: torch.full((rows,), rows > 48),
    "every number": lambda rows: torch.full((rows,), rows % 29 / 29),
    "the last row": last_of,
}


@pytest.mark.parametrize("mood", MOODS)
def test_a_kernel_that_depends_on_the_number_of_rows_changes_nothing(model, mood, fresh_trials):
    """Whatever the processor at hand does: here its products do what another's might."""
    with Moody(MOODS[mood]):
        assert_nobody_notices_the_others(model)


def test_without_the_trials_such_a_kernel_would_show(model, fresh_trials, monkeypatch):
    monkeypatch.setattr(Steady, "_try", lambda self, size: True)
    with Moody(MOODS["few rows"]), pytest.raises(AssertionError, match="alone"):
        assert_nobody_notices_the_others(model)


def test_products_are_asked_for_few_numbers_of_rows(model, fresh_trials):
    """So what the trials say of these is what holds for all."""
    with Moody(lambda rows: torch.zeros(rows)) as seen:
        results(model, list(range(23)))
        results(model, [1])
    assert seen.rows <= set(SIZES) and len([rows for rows in seen.rows if rows <= 24]) > 1


# ---- the trials


@pytest.mark.parametrize("depth", [64, 576, 1536])
def test_a_trial_shows_another_order_of_summation_in_each_element(depth):
    """The exact result is zero, so its digits are those that the order of summation decides."""
    row, matrix = trial_operands(256, depth, torch.bfloat16, CPU)
    terms = matrix.float() * row.float()
    assert terms.double().sum(dim=1).abs().max() < 1e-6
    forward, blocks = torch.zeros(256), torch.zeros(256, 4)
    for i in range(depth):
        forward += terms[:, i]
        blocks[:, i % 4] += terms[:, i]
    assert (forward.bfloat16() != blocks.sum(dim=1).bfloat16()).float().mean() > 0.9


def test_products_cover_the_rows_with_numbers_that_agree():
    def trial(agreeing):
        return Steady(lambda n: torch.full((n, 3), 0.0 if n in agreeing else 1.0 * n))

    every, only = trial(SIZES), trial({16})
    assert [every.sizes(n) for n in (1, 4, 13, 33, 50, 96)] == [(4,), (4,), (16,), (32, 4), (48, 4), (96,)]
    assert [only.sizes(n) for n in (1, 16, 17, 64)] == [(16,), (16,), (16, 16), (16,) * 4]
    assert trial({16, 32, 64}).sizes(3) == (16,) and trial({4, 16, 24}).sizes(70) == (24, 24, 24)
    places = Steady(lambda n: torch.arange(n)[:, None].float())
    assert places.sizes(3) == (1, 1, 1)


@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_element_wise_work_is_not_cut_within_a_row(threads, dtype):
    """PyTorch cuts the elements into as many parts as there are threads; a row with a cut in it would have
    another exp there.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        row = torch.randn(1001, generator=torch.Generator().manual_seed(0)).to(dtype)
        for rows in (16, 64, 176):
            gate = torch.cat([row, row]).repeat(rows, 1).chunk(2, dim=1)[0]
            crowd = by_rows(torch.nn.functional.silu, gate)
            assert (crowd == crowd[0]).all(), rows
    finally:
        torch.set_num_threads(before)


# ---- the numbers are those of transformers


def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    made = []
    for length in (9, 40, 23):
        tokens = rng.integers(0, VOCAB, length + 1)
        weights = rng.uniform(0.5, 2, (length, 1)).astype(np.float32)
        made.append(Example(tokens[:-1].tolist(), tokens[1:, None], {"weights": weights}))
    return made


@pytest.fixture(scope="module")
def expected(folder):
    """Of `trained(…, 1)` by transformers in float32: logprobs of each example's targets, and the gradient by
    name.
    """
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
    state = trained(Model(folder, CPU, torch.float32), 1)
    named = {
        name: value.clone().requires_grad_() for name, value in state.layout.named(state.flat.data).items()
    }
    for name, module in list(plain.named_modules()):
        if f"base_model.model.{name}.lora_A.weight" in named:
            a, b = (named[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
            module.register_forward_hook(
                lambda _, x, y, a=a, b=b: y + state.layout.scale * (x[0] @ a.T) @ b.T
            )
    logprobs = []
    for example in examples():
        logits = plain(torch.tensor([example.tokens])).logits[0]
        logprobs.append(torch.log_softmax(logits, -1).gather(1, torch.from_numpy(example.targets)))
        (-logprobs[-1] * torch.from_numpy(example.inputs["weights"])).sum().backward()
    return [values.detach().numpy() for values in logprobs], {name: v.grad for name, v in named.items()}


def test_logprobs_and_gradients_are_those_of_transformers(model, expected):
    logprobs, gradients = expected
    near, within = (1e-3, 1e-3) if model.dtype == torch.float32 else (0.15, 0.05)
    state = trained(model, 1)
    work = forward_backward(model, state, examples(), "cross_entropy", {}, forward_only=False)
    while True:
        try:
            next(work)
        except StopIteration as end:
            values, _ = end.value
            break
    for own, wanted in zip(values, logprobs, strict=True):
        np.testing.assert_allclose(own, wanted, atol=near)
    for name, gradient in state.layout.named(state.grad).items():
        assert (gradient - gradients[name]).norm() <= within * gradients[name].norm(), name


def test_sampled_logprobs_are_those_of_transformers(model, expected):
    """The prompt's pass and the steps after it, against one pass over the whole: a sample's logprobs are
    those of its scores.
    """
    adapter = trained(model, 1).snapshot(model.dtype)
    prompt = examples()[1].tokens
    sampler = Sampler(model, tokenizer=None)
    job = SampleJob("a", prompt, 40, 1.0, -1, 1.0, 5, frozenset(), [], adapter)
    sampler.add(job)
    while sampler.busy:
        sampler.work(8)
    sequence = job.future.result()
    whole = ScoreJob("a", prompt + sequence.tokens, adapter, last=40)
    known = ScoreJob("a", [*prompt, int(examples()[1].targets[-1, 0])], adapter, last=len(prompt))
    for score in (whole, known):
        sampler.add(score)
    while sampler.busy:
        sampler.work(1)
    near = 1e-3 if model.dtype == torch.float32 else 0.15
    np.testing.assert_allclose(sequence.logprobs, whole.future.result().own[-40:], atol=near)
    np.testing.assert_allclose(known.future.result().own[1:], expected[0][1][:, 0], atol=1e-3)


def test_pytorch_took_the_level_that_it_was_given():
    """By `test_stub_levels.py`; without it PyTorch takes the best there is."""
    asked = os.environ.get("ATEN_CPU_CAPABILITY", torch.backends.cpu.get_cpu_capability())
    assert torch.backends.cpu.get_cpu_capability().lower() == asked.lower()
