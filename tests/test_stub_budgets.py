"""What one key may hold and take of a stub: limits before memory, and turns by key."""

import gc
import json
import re
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tinker
import torch
import zstandard
from stub import Server, prompt
from stub_memory import forget_peak, peak
from tinker import types
from tinker.proto import tinker_public_pb2 as pb

from helpers.stub_tinker import engine as engines
from helpers.stub_tinker import places, training
from helpers.stub_tinker.budgets import Budgets, DiskUse, Limit
from helpers.stub_tinker.engine import Engine
from helpers.stub_tinker.errors import BadRequest
from helpers.stub_tinker.lora import Layout, LoraState
from helpers.stub_tinker.losses import Example
from helpers.stub_tinker.model import Model
from helpers.stub_tinker.results import Result, Results
from helpers.stub_tinker.sampling import PREFILL_TOKENS, SampleJob, Sampler, ScoreJob
from helpers.stub_tinker.training import forward_backward

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture(scope="module")
def model(small_model) -> Model:
    return Model(small_model, torch.device("cpu"), torch.float32)


def test_the_files_of_a_base_model_are_not_in_memory_beside_it(model):
    assert str(model.folder) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(
    ("mine", "everyones", "more", "passes", "status", "words"),
    [
        (0, 0, 11, True, 413, "needs 11 things, and one key can have 10. Do so"),
        (8, 8, 3, True, 429, "this key has 8 things and asks for 3 more: one key can have 10. Do so"),
        (8, 8, 3, False, 403, "one key can have 10"),
        (0, 30, 1, False, 429, "all keys together have 30 things"),
    ],
)
def test_a_refusal_says_which_limit_and_what_to_do(mine, everyones, more, passes, status, words):
    limit = Limit(10, 30, "things", "Do so", passes)
    limit.check(mine, min(everyones, 20), 10 - mine)
    with pytest.raises(BadRequest, match=re.escape(words)) as refused:
        limit.check(mine, everyones, more)
    assert refused.value.status == status


def test_a_hold_is_given_back_once_by_what_it_was_handed_on_to():
    budgets, future, thing = Budgets(GIB, GIB), Future(), Layout.__new__(Layout)
    most = budgets.limits["queued"].per_key
    with budgets.hold("a", queued=most, positions=1) as hold:
        hold.until(future)
    with budgets.hold("a", memory=5) as hold:
        hold.while_alive(thing)
    with pytest.raises(BadRequest, match="bytes of work that waits"):
        budgets.hold("a", positions=1, queued=1)
    budgets.hold("b", queued=most)
    future.set_result(None)
    budgets.hold("a", queued=most).release()
    whole = budgets.limits["memory"].per_key
    with pytest.raises(BadRequest, match="bytes of weights in memory"):
        budgets.hold("a", memory=whole)
    del thing
    gc.collect()
    budgets.hold("a", memory=whole).release()
    made, failed, thing = Future(), Future(), Layout.__new__(Layout)
    for future in (made, failed):
        with budgets.hold("a", memory=whole // 2) as hold:
            hold.until(future)
            if future is made:
                hold.while_alive(thing)
        future.set_result(None)
    budgets.hold("a", memory=whole // 2)
    with pytest.raises(BadRequest, match="bytes of weights in memory"):
        budgets.hold("a", memory=whole // 2)


def test_what_was_deleted_makes_room_on_the_disk():
    held = Counter(a=60)
    use = DiskUse(Limit(100, 1000, "bytes on disk", "Delete"))
    use.counts = [lambda: Counter(held), lambda: Counter(c=1)]
    use.take("a", 30)
    with pytest.raises(BadRequest, match="this key has 90 bytes on disk"):
        use.take("a", 30)
    held["a"] = 20
    use.removed()
    use.take("a", 30)
    use.take("b", 100)


# Requests that would take much memory


def compressed(body: bytes) -> tuple[bytes, dict[str, str]]:
    return zstandard.compress(body), {"Content-Encoding": "zstd"}


def wide_targets(model_id: str) -> bytes:
    """Datums of 200 tokens with a sparse target of no entry and 1,024 columns: 1.6 MB each once unpacked."""
    message = pb.ForwardBackwardRequest(model_id=model_id, seq_id=1, loss_fn="cross_entropy")
    datum = message.data.add()
    datum.model_input.add().encoded_text.tokens = np.arange(200, dtype=np.int32).tobytes()
    tensor = datum.loss_fn_inputs["target_tokens"]
    tensor.dtype = pb.DTYPE_INT64
    tensor.shape.extend([200, 1024])
    tensor.sparse_csr.crow_indices = np.zeros(201, np.int64).tobytes()
    message.data.extend([datum] * 3000)
    return message.SerializeToString()


BOMBS = {
    "lists": ("session_heartbeat", b'{"a": [' + b"[]," * (10 * MIB) + b"[]]}", "over 1 MiB"),
    "objects": ("asample", b'{"a": [' + b"{}," * (5 * MIB) + b"{}]}", "lists and objects"),
    "heartbeat": (
        "session_heartbeat",
        b'{"session_id": "x", "pad": "' + b"x" * (60 * MIB) + b'"}',
        "over 1 MiB",
    ),
    "telemetry": ("telemetry", b" " * (60 * MIB), "over 16 MiB"),
    "datums": ("forward_backward", b"\x1a\x00" * (30 * MIB), "fields"),
    "chunks": ("forward_backward", b"\x1a\x80\x80\x80\x08" + b"\x0a\x00" * (8 * MIB), "fields"),
    "targets": ("forward_backward", b"", "bytes of work that waits"),
}


@pytest.fixture(scope="module")
def narrow(small_model, tmp_path_factory):
    """A stub with a GiB for all its clients."""
    server = Server(small_model, tmp_path_factory.mktemp("narrow"), "--memory", "1", "--disk", "0.01")
    yield server
    server.stop()
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_body_that_would_take_much_memory_is_refused(narrow, name):
    route, content, words = BOMBS[name]
    if name == "targets":
        service = narrow.connect()
        client = service.create_lora_training_client(narrow.model, rank=2, train_unembed=False).result()
        content = wide_targets(client.model_id)
    body, headers = compressed(content)
    if route == "forward_backward":
        headers["Content-Type"] = "application/x-protobuf"
    assert len(body) < 64 << 10
    before = forget_peak(narrow)
    status, answer, _ = narrow.ask("POST", f"/api/v1/{route}", body, **headers)
    assert status in (400, 413) and words in json.loads(answer)["detail"], answer
    assert peak(narrow) - before < 250 * MIB


def test_weights_are_refused_before_they_are_made(narrow):
    """Rank 256 with the output layer takes 200 MB, one key can have 256, and closing frees them."""
    lora = {"base_model": narrow.model, "rank": 256}
    service, before = narrow.connect(), forget_peak(narrow)
    first = service.create_lora_training_client(**lora).result()
    with pytest.raises(tinker.PermissionDeniedError, match=r"bytes of weights in memory.*lower rank"):
        service.create_lora_training_client(**lora).result()
    other = narrow.connect("tml-other")
    assert other.create_lora_training_client(**lora).result().model_id != first.model_id
    assert peak(narrow) - before < 300 * MIB
    service.close("success").result()
    again = narrow.connect()
    del first
    assert again.create_lora_training_client(**lora).result()
    for each in (other, again):
        each.close("success").result()


def test_a_key_fills_its_part_of_the_disk_and_no_other(narrow):
    service, other = narrow.connect("tml-a"), narrow.connect("tml-b")
    clients = [
        s.create_lora_training_client(narrow.model, rank=64, train_unembed=False).result()
        for s in (service, other)
    ]
    with pytest.raises(tinker.TinkerError, match=r"on disk.*Delete checkpoints"):
        for i in range(60):
            clients[0].save_weights_for_sampler(f"s{i}").result()
    clients[1].save_state("mine").result()
    run = clients[0].model_id
    narrow.rest("tml-a").delete_checkpoint_from_tinker_path(f"tinker://{run}/sampler_weights/s0").result()
    clients[0].save_weights_for_sampler("again").result()
    for each in (service, other):
        each.close("success").result()


def test_a_key_has_so_many_clients_and_no_more(narrow):
    service, other = narrow.connect("tml-many"), narrow.connect("tml-plain")
    lora = {"base_model": narrow.model, "rank": 1, "train_unembed": False}
    saved = service.create_lora_training_client(**lora).result().save_state("first").result().path
    asked = {"session_id": service.holder.get_session_id(), "base_model": narrow.model}
    asked |= {"lora_config": {"rank": 1, "train_unembed": False}}
    for number in range(1000, 1255):  # by hand: the SDK waits for each
        body = json.dumps(asked | {"model_seq_id": number}).encode()
        assert narrow.post("/api/v1/create_model", body, **{"X-API-Key": "tml-many"})[0] == 200
    for one_more in (
        lambda: service.create_lora_training_client(**lora),
        lambda: service.create_training_client_from_state(saved),
    ):
        with pytest.raises(tinker.PermissionDeniedError, match="256 training clients"):
            one_more().result()
    assert other.create_lora_training_client(**lora).result()
    for each in (service, other):
        each.close("success").result()


def test_a_repeated_request_is_not_refused_for_the_room_that_the_first_one_took(narrow):
    service = narrow.connect()
    names = {"session_id": service.holder.get_session_id(), "base_model": narrow.model}
    body = names | {"lora_config": {"rank": 256}}
    answers = [
        narrow.ask("POST", "/api/v1/create_model", json.dumps(body | {"model_seq_id": seq_id}).encode())
        for seq_id in (5, 6, 5)  # the first one's weights are not made yet when the second asks
    ]
    assert [status for status, *_ in answers] == [200, 403, 200]
    service.close("success").result()


def test_a_full_queue_is_waited_for_by_the_sdk(narrow):
    """A request for which a key has no room beside another is sent again; one that never fits is refused."""
    service = narrow.connect("tml-first")
    sampler = service.create_sampling_client(base_model=narrow.model).result()
    long, short = (types.SamplingParams(max_tokens=new, stop=[]) for new in (200, 20))
    first = sampler.sample(prompt(1, 2), 30, long, topk_sample_logprobs=1000)
    second = sampler.sample(prompt(1, 2), 100, short, topk_sample_logprobs=1000)
    with pytest.raises(tinker.APIStatusError, match="bytes of work that waits") as refused:
        sampler.sample(prompt(1, 2), 100, long, topk_sample_logprobs=1000).result()
    assert refused.value.status_code == 413
    assert [len(future.result().sequences) for future in (first, second)] == [30, 100]
    service.close("success").result()


# Results


def ended(body: bytes = b"") -> Future:
    future: Future = Future()
    future.set_result(Result(body))
    return future


def test_a_key_pushes_out_its_own_results_only_and_none_is_done_twice():
    results, begun = Results(Limit(1000, 3000, "bytes of results", "Wait")), []

    def ask(owner: str, number: int, size: int = 400) -> None:
        request_id = f"{owner}-session:train:0:{number}"
        results.once(request_id, owner, lambda: (begun.append(request_id), ended(b"x" * size))[1])

    ask("a", 1)
    for number in range(1, 8):
        ask("b", number)
    assert results.find("a-session:train:0:1", "a").done() and len(results.all()) == 3
    count = len(begun)
    ask("b", 7)  # its result is kept
    with pytest.raises(BadRequest, match="not done again") as refused:
        ask("b", 5)
    with pytest.raises(BadRequest, match="Ask for results as they come"):
        results.find("b-session:train:0:5", "b")
    assert refused.value.status == 410 and len(begun) == count
    results.forget("b-session", "b")
    assert list(results.all()) == ["a-session:train:0:1"]


def test_results_of_all_keys_together_are_bounded_by_the_largest_holder():
    results = Results(Limit(1000, 1500, "bytes of results", "Wait"))
    pending: Future = Future()
    results.once("b:train:0:1", "b", lambda: pending)
    for owner, size in (("a", 300), ("b", 900), ("c", 400)):
        results.once(f"{owner}:train:0:2", owner, lambda size=size: ended(b"x" * size))
    assert set(results.all()) == {"b:train:0:1", "a:train:0:2", "c:train:0:2"}


# Turns and room in the running batch


def sampled(model: Model, jobs: list[SampleJob], *late: SampleJob, after: int = 0) -> list:
    """What jobs get, `late` ones added after so many pieces of work."""
    sampler, left = Sampler(model, tokenizer=None), list(late)
    for job in jobs:
        sampler.add(job)
    for turn in range(100_000):
        if turn == after:
            for job in left:
                sampler.add(job)
        if not sampler.busy:
            break
        sampler.work(1)
    return [job.future.result() for job in (*jobs, *late)]


def asked(owner: str, new: int, seed: int = 0) -> SampleJob:
    return SampleJob(owner, [1, 2, 3 + seed], new, 1.0, -1, 1.0, seed, frozenset(), [], None, owner=owner)


def test_long_samples_rest_while_others_run_and_get_the_same_tokens(model, monkeypatch):
    """Eight that could fill the whole cache, and a newcomer: it ends first, and nothing changes for them."""

    def long() -> list[SampleJob]:
        return [asked("long", 240, seed) for seed in range(8)]

    def short() -> list[SampleJob]:
        return [asked(owner, 20, seed) for owner in ("x", "y") for seed in range(3)]

    alone = sampled(model, long()), sampled(model, short())
    monkeypatch.setattr(places, "POSITIONS", 1024)
    monkeypatch.setattr(places, "SLOTS", 8)
    monkeypatch.setattr(places, "OWNER_SLOTS", 6)
    order, jobs, late = [], long(), short()
    for job in (*jobs, *late):
        job.future.add_done_callback(lambda _, job=job: order.append(job.owner))
    crowded = sampled(model, jobs, *late, after=100)
    assert crowded == [*alone[0], *alone[1]]
    assert "long" not in order[:6]


def test_turns_go_to_the_key_that_had_least_whatever_it_asks_for(model):
    """One key with many sessions, prompts to score and samples gets as much as one with a single prompt."""
    engine, sampler = Engine({}), Sampler(model, tokenizer=None)
    engine._sampling = lambda: [sampler] if sampler.busy else []
    for number in range(6):
        for _ in range(30):
            engine.submit(f"client {number}", f"session {number}", "many", lambda: None)
    for _ in range(30):
        sampler.add(ScoreJob("s", [1] * PREFILL_TOKENS, None, 5, owner="many"))
        engine.submit("quiet", "quiet", "one", lambda: None)
    sampler.add(asked("many", 200))
    taken = Counter()
    for _ in range(60):
        turn = engine._next_turn()
        assert turn is not None
        taken[turn.owner] += 1
        engine._served[turn.owner] += 1.0
        engine._served[turn.owner, turn.kind] += 1.0
        if turn.client:
            engine._advance(turn.client)
    assert taken == {"many": 30, "one": 30}


@dataclass
class Paused:
    """Work in `parts`, each of which pauses `times` times and holds so many bytes meanwhile."""

    size: int
    times: int
    parts: int = 1
    at: int = 0

    def __call__(self):
        for _ in range(self.parts):
            for _ in range(self.times):
                self.at += 1
                yield self.size
            yield 0


def test_one_who_comes_and_goes_waits_for_one_turn_of_one_who_never_rests(monkeypatch):
    """As long as it has had less than its share: then they take turns."""
    monkeypatch.setattr(engines, "TURN_SECONDS", 0)
    engine, owners = Engine({}), []
    engine.submit("many", "many", "many", Paused(600 * MIB, 1000))

    def take() -> None:
        turn = engine._next_turn()
        assert turn is not None
        engine._take(turn)
        owners.append(turn.owner)

    take()
    engine._served["many"] = 10.0
    for _ in range(5):
        engine._served["many"] += 0.2
        engine.submit("one", "one", "one", lambda: None)
        take()
        engine._served["one"] += 0.1
        take()
    assert owners == ["many", *["one", "many"] * 5]
    for _ in range(16):
        engine.submit("one", "one", "one", lambda: None)
    for _ in range(16):
        take()
        engine._served[owners[-1]] += 0.5
    assert Counter(owners[-8:]) == {"one": 4, "many": 4}


def test_paused_work_holds_no_more_than_its_part_together(monkeypatch):
    monkeypatch.setattr(engines, "TURN_SECONDS", 0)
    engine, work = Engine({}), [Paused(600 * MIB, 5) for _ in range(3)]
    for number, each in enumerate(work):
        engine.submit(f"client {number}", "s", f"key {number}", each)
    most = 0
    while turn := engine._next_turn():
        engine._take(turn)
        tasks = [queue[0] for queue in engine._queues.values()]
        most = max(most, sum(task.holds for task in tasks))
    assert most == 600 * MIB and [each.at for each in work] == [5, 5, 5]


def test_work_that_needs_much_room_gets_it(monkeypatch):
    """Two that begin again and again, never at the same time, don't keep it from a third."""
    monkeypatch.setattr(engines, "TURN_SECONDS", 0)
    engine, work, futures = Engine({}), [Paused(400 * MIB, 9, 50) for _ in range(2)], []
    for number, each in enumerate([*work, Paused(700 * MIB, 3)]):
        futures.append(engine.submit(f"client {number}", "s", f"key {number}", each))
        for _ in range(5 if number < 2 else 60):
            turn = engine._next_turn()
            assert turn is not None
            engine._take(turn)
            engine._served[turn.owner] += 1.0
    assert [future.done() for future in futures] == [False, False, True]
    assert min(each.at for each in work) > 10


# Long datums


@pytest.mark.parametrize("loss", ["cross_entropy", "gspo"])
@pytest.mark.parametrize("forward_only", [False, True])
def test_a_long_datum_in_layers_gives_the_numbers_of_one_in_one_go(model, monkeypatch, loss, forward_only):
    rng = np.random.default_rng(0)
    weights = (np.arange(200) % 3 > 0).astype(np.float32)[:, None]
    inputs = {"weights": weights}
    if loss == "gspo":
        inputs = {"logprobs": weights - 8, "advantages": weights, "sequence_ratio_mask": weights}
    example = Example(rng.integers(0, 40000, 200).tolist(), rng.integers(0, 40000, (200, 1)), inputs)
    config = {"clip_low_threshold": 0.1, "clip_high_threshold": 10.0}

    def passes(most: int) -> tuple:
        monkeypatch.setattr(training, "MAX_TOKENS", most)
        state = LoraState(Layout(model.config, 4, True, True, True), 1, model.device)
        with torch.no_grad():
            state.flat.add_(torch.randn(state.flat.shape, generator=torch.Generator().manual_seed(0)) * 0.05)
        steps, held = forward_backward(model, state, [example], loss, config, forward_only), []
        try:
            while True:
                held.append(next(steps))
        except StopIteration as end:
            return (*end.value, state.grad, held)

    logprobs, metrics, gradient, held = passes(1024)
    in_layers = passes(64)
    assert in_layers[3][0] == 4 * 32 * 256 * 3 and len(in_layers[3]) > 2
    assert held[0] == in_layers[3][0] if forward_only else held[0] > 4 * 49152 * 256
    # It pauses at its start and end, after each layer, and after 128 rows of the output layer at most.
    assert len(held) == (6 if forward_only else 12) and held[-1] == 0
    np.testing.assert_allclose(in_layers[0][0], logprobs[0], rtol=1e-5, atol=1e-5)
    assert in_layers[1] == pytest.approx(metrics, rel=1e-5)
    if forward_only:
        assert gradient is None and in_layers[2] is None
    else:
        torch.testing.assert_close(in_layers[2], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))


def test_a_long_prompt_in_parts_gives_the_numbers_of_one_in_one_go(model, monkeypatch):
    """Read between the turns of others, whose samples don't wait for it."""

    def jobs() -> list:
        words = [7 * i % 1000 for i in range(200)]
        long = SampleJob("l", words, 20, 1.0, -1, 1.0, 3, frozenset(), [], None, owner="l")
        return [ScoreJob("l", words, None, 199, topk=2, owner="l"), long, asked("s", 30)]

    whole = sampled(model, jobs())
    monkeypatch.setattr("helpers.stub_tinker.sampling.PREFILL_TOKENS", 100)
    monkeypatch.setattr("helpers.stub_tinker.sampling.READ_SECONDS", 0.0)
    parts = sampled(model, jobs())
    np.testing.assert_array_equal(parts[0].own, whole[0].own)
    np.testing.assert_array_equal(parts[0].topk, whole[0].topk)
    assert parts[1:] == whole[1:]
