"""What the stub keeps of prompts: what it spares, for whom, how much, and for how long."""

import gc

import numpy as np
import pytest
import torch

from helpers.stub_tinker import places, prefixes
from helpers.stub_tinker.cache import Shelf
from helpers.stub_tinker.engine import Base, Engine
from helpers.stub_tinker.kernels import PIECE
from helpers.stub_tinker.lora import Adapter, Layout, LoraState
from helpers.stub_tinker.model import Model
from helpers.stub_tinker.sampling import PREFILL_TOKENS, SampleJob, Sampler

CPU = torch.device("cpu")
TOKENS, OTHERS = np.random.default_rng(0).integers(0, 40000, (2, 1300)).tolist()


@pytest.fixture(scope="module")
def model(tmp_path_factory, base_model) -> Model:
    from tiny_models import save_llama

    folder = save_llama(tmp_path_factory.mktemp("prefixes"), base_model, max_position_embeddings=2048)
    return Model(folder, CPU, torch.float32)


@pytest.fixture
def sampler(model) -> Sampler:
    return Sampler(model, tokenizer=None)


@pytest.fixture
def read(model, monkeypatch) -> list[int]:
    """Tokens that each pass reads."""
    counts, original = [], model.hidden_in_layers
    monkeypatch.setattr(
        model, "hidden_in_layers", lambda batch, *rest: (counts.append(batch.size), original(batch, *rest))[1]
    )
    return counts


def asked(
    prompt: list[int], owner: str = "a", session: str = "s", adapter: Adapter | None = None
) -> SampleJob:
    return SampleJob(session, prompt, 1, 0.0, -1, 1.0, 0, frozenset(), [], adapter, owner=owner)


def sample(sampler: Sampler, *jobs: SampleJob) -> None:
    for job in jobs:
        sampler.add(job)
    while sampler.busy:
        sampler.work(1)
    assert all(len(job.future.result().tokens) == 1 for job in jobs)


def unread(sampler: Sampler, job: SampleJob) -> int:
    return len(sampler.prefixes.look_up(job))


def adapter_of(model: Model) -> Adapter:
    return LoraState(Layout(model.config, 4, True, True), 1, CPU).snapshot(model.dtype)


def sharing(count: int, shared: int, own: int) -> list[list[int]]:
    return [TOKENS[:shared] + OTHERS[i * own :][:own] for i in range(count)]


def test_little_is_copied_when_shelves_grow(sampler, monkeypatch):
    """A shelf grows once for prompts that are read together, and one of long sequences has few slots."""
    grown, original = [], Shelf.resize

    def resize(shelf: Shelf, slots: int) -> None:
        grown.append((shelf.slots, slots, shelf.capacity))
        original(shelf, slots)

    monkeypatch.setattr(Shelf, "resize", resize)
    sample(sampler, *map(asked, sharing(20, 0, 20)))
    assert [slots for before, slots, _ in grown if slots > before] == [20]
    grown.clear()
    sample(sampler, *map(asked, sharing(20, 1100, 3)))
    assert {capacity for *_, capacity in grown} == {1280} and max(slots for _, slots, _ in grown) == 8


def test_a_shelf_that_grows_one_by_one_is_copied_a_few_times(sampler):
    """By half of its slots at a time, and to no more sequences than it may hold."""
    shelf = sampler.cache.alone(100)
    seen = []
    for count in range(1, shelf.most + 1):
        shelf.fit(count)
        seen.append(shelf.slots)
        assert count <= shelf.slots <= max(shelf.most, sum(shelf.sizes(count)[0]))
    assert len(set(seen)) <= 9


def test_what_waiting_prompts_share_is_read_once(sampler, read):
    sample(sampler, *map(asked, sharing(10, 150, 20)))
    assert read == [170, 9 * (170 - 2 * PIECE)]


def test_what_an_earlier_prompt_shares_is_not_read_again(sampler, read):
    for prompt in sharing(3, 150, 20):
        sample(sampler, asked(prompt))
    assert read == [170, 42, 42]


@pytest.mark.parametrize("length", [1, PIECE - 1, PIECE, PIECE + 1, 150, PREFILL_TOKENS + 100])
def test_the_same_prompt_is_not_read_again(sampler, read, length):
    """One request's samples, other requests that wait with it, and later ones."""
    prompt = TOKENS[:length]
    sample(sampler, asked(prompt), asked(prompt), asked(list(prompt)))
    sample(sampler, asked(list(prompt)), asked(list(prompt)))
    assert read == [length]


def test_a_long_prompt_that_is_mostly_known_is_read_with_others(sampler, read):
    sample(sampler, asked(TOKENS[:1200]))
    sample(sampler, *map(asked, sharing(3, 1190, 50)), asked(OTHERS[:70]))
    assert read == [1200, 3 * (1240 - 18 * PIECE) + 70]


def test_another_key_or_other_weights_find_nothing(model, sampler, read):
    """Neither later nor when they wait together, so that no time shows whether a prompt was there."""
    adapters, prompt = [adapter_of(model) for _ in range(2)], TOKENS[:150]
    sample(sampler, asked(prompt), asked(prompt, "b"))
    assert read == [300]
    assert unread(sampler, asked(prompt, "a", "t")) == 0
    for job in (asked(prompt, "c"), *(asked(prompt, "a", "s", adapter) for adapter in adapters)):
        assert unread(sampler, job) == 150
        sample(sampler, job)
        assert unread(sampler, job) == 0


def test_what_is_kept_is_bounded_and_the_longest_unused_goes_first(sampler, monkeypatch):
    monkeypatch.setattr(prefixes, "POSITIONS", 512)
    first, second, third = TOKENS[: 3 * PIECE], OTHERS[: 3 * PIECE], TOKENS[200:][: 3 * PIECE]
    for prompt in (first, second, first, third):
        sample(sampler, asked(prompt))
        assert 0 < sampler.prefixes.positions <= 512
    assert [unread(sampler, asked(prompt)) for prompt in (first, third)] == [0, 0]
    assert unread(sampler, asked(second)) == PIECE  # the end of a prompt goes before its beginning
    sample(sampler, asked(TOKENS[:1200]))
    assert sampler.prefixes.positions <= 512 and unread(sampler, asked(TOKENS[:1200])) < 1200 - 400
    sample(sampler, *(asked([token]) for token in range(50)))
    assert sampler.prefixes.positions <= 512


def test_the_memory_of_the_sampler_is_as_large_as_before_prefixes_were_kept():
    assert places.POSITIONS + prefixes.POSITIONS == 64 * 1024


def test_what_is_kept_goes_with_its_adapter(model, sampler):
    adapter = adapter_of(model)
    sample(sampler, asked(TOKENS[:150], adapter=adapter))
    assert sampler.prefixes.positions == 160
    del adapter
    gc.collect()
    assert sampler.prefixes.positions == 0


def test_what_is_kept_goes_with_the_last_session_that_asked(small_model):
    """Of one key: what two sessions asked stays until both have ended."""
    engine = Engine({"m": Base(small_model, CPU, torch.float32)})
    sampler = engine.bases["m"].load()[1]
    engine.start()

    def kept_after(*ended: str) -> int:
        for session in ended:
            engine.drop(session)
        job = asked([1], "other", "other")
        engine.sample("m", job)
        job.future.result(timeout=10)
        engine.drop("other")
        return engine.call(lambda: sampler.prefixes.positions) - 16

    for session in ("one", "two"):
        job = asked(TOKENS[:100], session=session)
        engine.sample("m", job)
        job.future.result(timeout=10)
    assert [kept_after(), kept_after("one"), kept_after("two")] == [112, 112, 0]
    engine.stop()
    engine.join(timeout=10)
