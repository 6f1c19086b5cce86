"""One hostile key beside three ordinary learners: they are slowed no more than by as many ordinary ones."""

import json
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

import numpy as np
import psutil
import pytest
import zstandard
from learners import HANG_SECONDS, Learner
from siege import API, MIB, PROTO_TYPE, Case, Connection, dumps, judge
from stub import Server
from tinker.proto import tinker_public_pb2 as pb

LEARNERS, OTHERS = ("tml-a", "tml-b", "tml-first"), ("tml-other", "tml-plain", "tml-patched")
LONG = 2000  # tokens, nearly the whole context
THREADS = 3  # that attack
MEMORY_GIB, PEAK_MIB = 1, 3000  # what clients may use together; what the process may, the model included


@dataclass(frozen=True)
class Size:
    """How long each phase is, and how many times as long a step may take: a few seconds say little.

    Who goes first, and how soon another can, is in `test_stub_budgets.py`, without a clock.
    """

    seconds: float
    slower: float


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(Size(1.0, 4.0), id="small"),
        pytest.param(Size(60.0, 2.0), id="full", marks=pytest.mark.soak),
    ],
)
def size(request) -> Size:
    return request.param


class Enemy:
    """Sends as much as it can of one kind of request, waits for nothing, and counts the answers."""

    def __init__(self, server: Server):
        self.server, self.answers, self.faults = server, Counter(), []
        self.over, self._numbers = threading.Event(), count(1)
        connection = self._connection()
        opened = dumps({"tags": [], "user_metadata": {}, "sdk_version": "0", "type": "create_session"})
        self.session = connection.ask(Case("POST", f"{API}/create_session", opened)).json()["session_id"]
        sampler = {"session_id": self.session, "sampling_session_seq_id": 0, "base_model": server.model}
        made = connection.ask(Case("POST", f"{API}/create_sampling_session", dumps(sampler)))
        self.sampler = made.json()["sampling_session_id"]
        connection.ask(self.client(0, 4))
        self.model = f"{self.session}:train:0"
        connection.close()

    def _connection(self) -> Connection:
        return Connection(int(self.server.url.rsplit(":", 1)[1]))

    def attack(self, kind: str) -> None:
        connection = self._connection()
        while not self.over.is_set():
            case = ATTACKS[kind](self, next(self._numbers))
            try:
                answer = connection.ask(case)
            except OSError:
                self.answers["closed"] += 1  # before all of a body that is refused was sent
                continue
            self.answers[answer.status] += 1
            if fault := judge(case, answer):
                self.faults.append(fault)
        connection.close()

    # What it sends

    def client(self, number: int, rank: int) -> Case:
        lora = {"rank": rank, "train_unembed": rank > 100}
        names = {"session_id": self.session, "model_seq_id": number, "base_model": self.server.model}
        return Case("POST", f"{API}/create_model", dumps(names | {"lora_config": lora}))

    def sample(self, number: int, prompt: int, new: int, **more: object) -> Case:
        body = {
            "sampling_session_id": self.sampler,
            "seq_id": number,
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": [number % 1000] * prompt}]},
            "sampling_params": {"max_tokens": new, "temperature": 1.0, "stop": []},
        }
        return Case("POST", f"{API}/asample", dumps(body | more))

    def datums(self, number: int, length: int, copies: int) -> Case:
        message = pb.ForwardBackwardRequest(model_id=self.model, seq_id=number, loss_fn="cross_entropy")
        datum = message.data.add()
        datum.model_input.add().encoded_text.tokens = np.full(length, number % 1000, np.int32).tobytes()
        tensor = datum.loss_fn_inputs["target_tokens"]
        tensor.dtype, tensor.dense = pb.DTYPE_INT64, np.full(length, 7, np.int64).tobytes()
        message.data.extend([datum] * (copies - 1))
        headers = {"Content-Type": PROTO_TYPE}
        return Case("POST", f"{API}/forward_backward", message.SerializeToString(), headers)

    def operation(self, route: str, number: int, **fields: object) -> Case:
        return Case("POST", f"{API}/{route}", dumps({"model_id": self.model, "seq_id": number, **fields}))

    def bomb(self, number: int) -> Case:
        routes = [("session_heartbeat", b'{"a": [' + b"[]," * (8 * MIB) + b"0]}")]
        routes.append(("forward_backward", b"\x1a\x00" * (20 * MIB)))
        route, body = routes[number % 2]
        headers = {
            "Content-Encoding": "zstd",
            "Content-Type": PROTO_TYPE if number % 2 else "application/json",
        }
        return Case("POST", f"{API}/{route}", zstandard.compress(body), headers)


ATTACKS: dict[str, Callable[[Enemy, int], Case]] = {
    "long samples": lambda enemy, n: enemy.sample(n, 5, LONG, num_samples=8),
    "long prompts": lambda enemy, n: enemy.sample(n, LONG, 1, num_samples=64),
    "scores": lambda enemy, n: enemy.sample(n, LONG, 1, prompt_logprobs=True, topk_prompt_logprobs=1000),
    "long datums": lambda enemy, n: enemy.datums(n, LONG, 4),
    "batches": lambda enemy, n: enemy.datums(n, 100, 500),
    "bombs": lambda enemy, n: enemy.bomb(n),
    "clients": lambda enemy, n: enemy.client(n, 256),
    "results": lambda enemy, n: enemy.operation("optim_step", n, adam_params={"learning_rate": 0.0}),
    "disk": lambda enemy, n: enemy.operation("save_weights", n, path=f"s{n}"),
    "samplers": lambda enemy, n: enemy.operation(
        "save_weights_for_sampler", n, sampling_session_seq_id=n, kind="snapshot"
    ),
}


@pytest.fixture(scope="module")
def server(toy_model, tmp_path_factory) -> Iterator[Server]:
    limits = ("--memory", str(MEMORY_GIB), "--disk", "1")
    server = Server(toy_model, tmp_path_factory.mktemp("hostile"), *limits)
    yield server
    server.stop()
    assert "Traceback" not in server.log.read_text()


def lesson(server: Server, keys: tuple[str, ...], seconds: float) -> list[Learner]:
    """What learners with these keys do in so many seconds, and three steps at least."""
    learners, begin, over = (
        [Learner(key) for key in keys],
        threading.Barrier(len(keys) + 1),
        threading.Event(),
    )

    def go_on(learner: Learner) -> bool:
        return not over.is_set() or len(learner.seconds) < 3

    with ThreadPoolExecutor(len(keys)) as pool:
        futures = [pool.submit(learner.work, server, begin, go_on) for learner in learners]
        begin.wait(timeout=HANG_SECONDS)
        over.wait(timeout=seconds)
        over.set()
        for future in futures:
            future.result(timeout=HANG_SECONDS)
    return learners[: len(LEARNERS)]


def step_seconds(learners: list[Learner]) -> float:
    return statistics.fmean(second for learner in learners for second in learner.seconds)


@pytest.fixture(scope="module")
def ordinary(server, size) -> list[Learner]:
    """Three learners beside three more."""
    lesson(server, LEARNERS, 0)  # warm
    return lesson(server, LEARNERS + OTHERS, max(size.seconds, 3))


@pytest.mark.parametrize("kind", ATTACKS)
def test_learners_beside_one_hostile_key(server, size, ordinary, kind):
    process = psutil.Process(server.process.pid)
    with open(f"/proc/{process.pid}/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    enemy = Enemy(server)
    with ThreadPoolExecutor(THREADS) as pool:
        attacks = [pool.submit(enemy.attack, kind) for _ in range(THREADS)]
        time.sleep(size.seconds / 4)  # until its budget is full
        learners = lesson(server, LEARNERS, size.seconds)
        enemy.over.set()
        for attack in attacks:
            attack.result(timeout=HANG_SECONDS)
    finish = Case("POST", f"{API}/sessions/{enemy.session}/finish", b"{}")
    assert enemy._connection().ask(finish).status == 204
    with open(f"/proc/{process.pid}/status") as file:
        peak = next(int(line.split()[1]) // 1024 for line in file if line.startswith("VmHWM"))
    slower = step_seconds(learners) / step_seconds(ordinary)
    print(f"\n{kind}: {slower:.2f} times as long, peak {peak} MiB, answers {dict(enemy.answers)}")
    assert not enemy.faults and sum(enemy.answers.values()) > 0, enemy.faults[:3]
    assert slower <= size.slower
    assert peak <= PEAK_MIB
    best = max((*ordinary, *learners), key=lambda learner: len(learner.losses))
    for learner in learners:
        assert learner.losses == pytest.approx(best.losses[: len(learner.losses)], rel=1e-4)
        assert all(samples == best.samples[0] for samples in learner.samples)
        assert all(scores == best.scores[0] for scores in learner.scores)
    assert json.loads(server.ask("GET", "/api/v1/healthz")[1])["status"] == "ok"
