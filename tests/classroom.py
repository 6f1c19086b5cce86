"""Learners of a class on a stub in this process, each at another point of a lesson, by requests as the SDK
sends them; time passes by moving what was noted into the past.
"""

import itertools
import json
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient
from stub import datum
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.types.forward_backward_input import ForwardBackwardInput
from tinker.types.forward_backward_request import ForwardBackwardRequest

from helpers.stub_tinker.access import Access
from helpers.stub_tinker.calls import Running
from helpers.stub_tinker.gate import Gate
from helpers.stub_tinker.learner_status import PROGRESS, Learners
from helpers.stub_tinker.options import Roster
from helpers.stub_tinker.server import application
from helpers.stub_tinker.service import Service

TOKEN, OWN_KEY = "the-instructor", "tml-own"
STUCK = ("Amelia Hart", "Björn Åkesson")
DONE = ("Jonas Weber", "Keiko Tanaka", "Lwazi Dlamini")
WAITING, LONG, AWAY = (
    "Carlos Méndez",
    "Dr. Maximiliane-Sophie von und zu Hohenberg-Rautenstrauch",
    "Ida Nyström",
)
NAMES = (
    *DONE,
    AWAY,
    "Fatima Zahra",
    "Grace O’Malley",
    "Hugo Lindqvist",
    "Eun-ji Park",
    WAITING,
    LONG,
    *STUCK,
)
EVIL = "<img src=x onerror=alert(1)>\u202e\x1b[31m" + "x" * 500


class Classroom:
    """The server and its class."""

    def __init__(self, folder: Path, model: Path):
        self.keys = {name: f"tml-learner-{number}" for number, name in enumerate(NAMES)}
        roster = Roster({key: name for name, key in self.keys.items()}, "02_train", 67_701, 11_925)
        self.model = str(model)
        self.access = Access([OWN_KEY, *self.keys.values()], b"secret", TOKEN)
        self.service = Service(folder, {self.model: model})
        self.service.learners = Learners(self.access.names(roster.names), roster)
        self.service.engine.start()
        running = Running(self.service, self.access, lambda nonce: "")
        self.http = TestClient(application(running, Gate("127.0.0.1", [])), base_url="http://127.0.0.1")

    def status(self, key: str = TOKEN, kind: str = "application/json") -> str:
        return self.http.get("/", headers={"X-API-Key": key, "Accept": kind}).text

    def rows(self, key: str = TOKEN) -> dict[str, dict[str, Any]]:
        """The rows of the page by name, in its order."""
        return {row["name"]: row for row in json.loads(self.status(key))["learners"]}

    def close(self) -> None:
        self.service.engine.stop()
        self.service.engine.join()


class Pupil:
    """One learner with one session."""

    def __init__(self, room: Classroom, name: str, notebook: str = "02_train", stage: str = "train"):
        self.room, self.key, self.seq = room, room.keys[name], itertools.count(1)
        self.seen = room.service.learners.of(room.access._owners[self.key])
        body = {
            "tags": [],
            "user_metadata": {"notebook": notebook, "stage": stage},
            "sdk_version": "0.38.0",
        }
        self.session = self.post("create_session", body)["session_id"]

    def post(self, route: str, body: dict | bytes, status: int = 200) -> Any:
        kind = "application/x-protobuf" if isinstance(body, bytes) else "application/json"
        content = body if isinstance(body, bytes) else json.dumps(body)
        headers = {"X-API-Key": self.key, "Content-Type": kind}
        answer = self.room.http.post(f"/api/v1/{route}", content=content, headers=headers)
        assert answer.status_code == status, answer.text
        return answer.json() if "json" in answer.headers.get("content-type", "") else answer.content

    def future(self, route: str, body: dict | bytes) -> Any:
        return self.post("retrieve_future", {"request_id": self.post(route, body)["request_id"]})

    def train(self, step: int, steps: int, correct: int | None = None) -> "Pupil":
        """Make a training client and one step, which counts as the given one of so many."""
        made = {"session_id": self.session, "model_seq_id": 0, "base_model": self.room.model}
        lora = {"lora_config": {"rank": 2, "seed": 1, "train_unembed": False}}
        self.run = self.future("create_model", made | lora)["model_id"]
        self.future("forward_backward", self.batch([1, 2, 3, 4]))
        update = {"model_id": self.run, "seq_id": next(self.seq), "adam_params": {"learning_rate": 1e-3}}
        self.future("optim_step", update)
        scored = {} if correct is None else {"correct": correct, "total": 60}
        self.tell({"step": step, "steps": steps, **scored})
        return self

    def batch(self, tokens: list[int]) -> bytes:
        data = [datum(tokens, target_tokens=tokens[::-1], weights=[0.0, *[1.0] * (len(tokens) - 1)])]
        request = ForwardBackwardRequest(
            forward_backward_input=ForwardBackwardInput(data=data, loss_fn="cross_entropy"),
            model_id=self.run,
            seq_id=next(self.seq),
        )
        return forward_backward_request_to_proto(request).SerializeToString()

    def tell(self, progress: dict[str, Any], status: int = 200) -> None:
        event = {"event_name": PROGRESS, "event_data": {"run": self.run, **progress}}
        self.post("telemetry", {"events": [event]}, status)

    def fail(self, status: int = 400) -> "Pupil":
        """Send a batch with a token that the model does not have."""
        self.post("forward_backward", self.batch([1, 10**6, 2]), status)
        return self

    def wait(self, seconds: float) -> None:
        """Have had a request in the queue for so long."""
        self.seen.watch(self.session, "forward_backward", Future())
        self.seen._waits_since -= seconds
        self.room.service.engine.last_turns[self.room.access._owners[self.key]] = time.monotonic() - seconds

    def rest(self, seconds: float) -> "Pupil":
        """Send nothing for so long."""
        assert self.seen.heard
        self.seen.heard -= seconds
        return self

    def leave(self) -> "Pupil":
        self.post(f"sessions/{self.session}/finish", {"reason": {"type": "success"}}, 204)
        return self


def lesson(folder: Path, model: Path) -> Classroom:
    """A class of twelve: two stuck, one waiting, four at work, one reading, one not here, three done."""
    room = Classroom(folder, model)
    Pupil(room, STUCK[0]).train(31, 113, 4).fail()
    Pupil(room, STUCK[1]).train(57, 113, 29).rest(425)
    Pupil(room, WAITING).train(12, 113, 0).wait(100)
    Pupil(room, LONG).train(84, 113, 38)
    Pupil(room, "Eun-ji Park").train(99, 113, 41)
    Pupil(room, "Fatima Zahra").train(113, 113, 46).leave()
    Pupil(room, "Fatima Zahra", "03_evaluate", "evaluate")
    Pupil(room, "Grace O’Malley", "10_reinforcement_learning", "").train(3, 10)
    Pupil(room, "Hugo Lindqvist", EVIL, "split").rest(200)
    for name, correct, minutes in zip(DONE, (46, 44, 47), (12, 6, 4), strict=True):
        done = Pupil(room, name).train(113, 113, correct).rest(60 * minutes)
        if name != DONE[2]:
            done.leave()
    room.http.post("/api/v1/create_session", json={}, headers={"X-API-Key": "tml-wrong"})
    return room
