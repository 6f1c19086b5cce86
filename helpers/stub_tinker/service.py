"""What a running server holds, and what every request begins with: whose it is, and whether that is there.

What each request then means is in the modules that take a `Service` as their first argument: sessions.py,
training_clients.py, checkpoints.py, samplers.py, sample_requests.py and catalogue.py. HTTP is in server.py.

Every operation that computes or writes runs on the engine's thread and ends in a `Result`. Its request id
follows from who asked and the sequence number, so that a retried request finds the first one's result and is
not done twice.
"""

import contextlib
import itertools
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from helpers.stub_tinker.budgets import WORK_BYTES, Budgets, DiskUse, Hold, default_memory
from helpers.stub_tinker.checkpoint_store import Store
from helpers.stub_tinker.disk import Records
from helpers.stub_tinker.engine import Base, Engine, best_precision
from helpers.stub_tinker.errors import BadRequest
from helpers.stub_tinker.learner_status import Learners
from helpers.stub_tinker.lora import Adapter, Layout, LoraState
from helpers.stub_tinker.model import Model
from helpers.stub_tinker.openai_prompts import Renderers
from helpers.stub_tinker.results import Results
from helpers.stub_tinker.sampling import Sampler
from helpers.stub_tinker.session_store import SessionStore
from helpers.stub_tinker.signed_urls import SignedUrls
from helpers.stub_tinker.timeline import Timeline
from helpers.stub_tinker.usage import Ledger

log = logging.getLogger("stub_tinker")

SESSION_SECONDS = 300  # without a heartbeat (the SDK sends one every 10 s) a session's memory is freed
ACTIVE_SECONDS = 60  # since the last heartbeat of a session that counts as there


@dataclass
class Session:
    owner: str
    display_name: str | None
    seen: float = field(default_factory=time.monotonic)


@dataclass
class TrainingClient:
    id: str
    session: str
    base: str
    owner: str
    layout: Layout
    state: LoraState


@dataclass
class SamplingSession:
    session: str
    base: str
    owner: str
    adapter: Adapter | None = None
    model_path: str | None = None
    layout: Layout | None = None  # of the adapter, if there is one
    checkpoint: str | None = None  # the id of what model_path named then: a name can be given anew
    inflight_of: str | None = None  # the training client whose newest inflight weights it uses
    file: Path | None = None  # holds the adapter's weights while they are not in memory
    used: float = field(default_factory=time.monotonic)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))  # of processes that join


Held = TypeVar("Held", Session, TrainingClient, SamplingSession)


class Service:
    """The state of a server. Methods are called from any thread but the engine's.

    Args:
        folder: where checkpoints and sessions are kept; see store.py and session_store.py.
        bases: folders of base models, by the names that clients use.
        precision: of training and sampling; the best one for this machine if None.
        earlier_owners: what owners are called now, by what an earlier version called them.
        memory: bytes that clients may use together; 0 for what the machine has.
        disk: the same of the disk.
        renderers: see `openai_prompts.Renderers`.
    """

    def __init__(
        self,
        folder: Path,
        bases: dict[str, Path],
        precision: torch.dtype | None = None,
        earlier_owners: Mapping[str, str] | None = None,
        memory: int = 0,
        disk: int = 0,
        renderers: str = "",
    ):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = precision or best_precision(self.device)
        records = Records(earlier_owners)
        self.budgets = Budgets(memory or default_memory(), disk or shutil.disk_usage(folder).total)
        use = DiskUse(self.budgets.limits["disk"])
        self.store, self.session_store = Store(folder, records, use), SessionStore(folder, records, use)
        self.signed_urls = SignedUrls(folder, self.store)
        self.engine = Engine({name: Base(path, self.device, self.dtype) for name, path in bases.items()})
        self.sessions: dict[str, Session] = {}
        self.clients: dict[str, TrainingClient] = {}
        self.samplers: dict[str, SamplingSession] = {}
        self.results = Results(self.budgets.limits["results"])
        self.usage = Ledger()
        self.timeline = Timeline()
        self.learners = Learners()
        self.renderers = Renderers(renderers)
        self.direct: set[Future] = set()  # of requests whose connection waits for the answer
        self.opening = threading.Lock()  # a sampler of the OpenAI endpoint

    # What a request names

    def touch(self, session_id: str, owner: str) -> Session:
        """Note that a session is alive.

        Raises:
            BadRequest: there is none of that id for this owner.
        """
        session = _owned(self.sessions, session_id, owner, "session", "Make a new ServiceClient")
        session.seen = time.monotonic()
        return session

    def base(self, name: str) -> str:
        """The name of a base model.

        Raises:
            BadRequest: the server does not offer it; names those it does.
        """
        if name not in self.engine.bases:
            offered = "\n  ".join(self.engine.bases)
            raise BadRequest(f"base model {name!r} is not offered by this server, which has:\n  {offered}")
        return name

    def load(self, base: str) -> tuple[Model, Sampler]:
        """A base model and its sampler.

        Raises:
            BadRequest: its files are not what the server can load.
        """
        try:
            return self.engine.load(base)
        except Exception as error:
            log.exception("the base model %s can't be loaded", base)
            raise BadRequest(f"the server can't load the base model {base}: {error}") from error

    def layout(self, base: str, info: dict) -> Layout:
        """The layout of a stored run's weights.

        Args:
            info: holds the fields of `store.ADAPTER_FIELDS`.
        """
        config = self.load(base)[0].config
        return Layout(config, info["lora_rank"], info["train_attn"], info["train_mlp"], info["train_unembed"])

    def client(self, model_id: str, owner: str) -> TrainingClient:
        """A training client, whose session is then alive.

        Raises:
            BadRequest: there is none of that id for this owner.
        """
        advice = "Its checkpoints are kept: create_training_client_from_state(path) goes on from one"
        client = _owned(self.clients, model_id, owner, "training client", advice)
        self.touch(client.session, owner)
        return client

    def sampler(self, sampler_id: str, owner: str) -> SamplingSession:
        """A sampler.

        Raises:
            BadRequest: there is none of that id for this owner.
        """
        return _owned(self.samplers, sampler_id, owner, "sampler", "Make a new sampling client")

    # Work on the engine's thread

    def check_room(
        self, name: str, owner: str, table: Mapping[str, "Session | TrainingClient | SamplingSession"]
    ) -> None:
        """Whether an owner may have one more of what `table` holds.

        Raises:
            BadRequest: there are too many.
        """
        owners = [held.owner for held in list(table.values())]
        self.budgets.limits[name].check(owners.count(owner), len(owners))

    def start(
        self,
        request_id: str,
        owner: str,
        model_id: str,
        name: str,
        work: Callable[[], Any],
        hold: Hold | None = None,
        take_room: Callable[[], Hold] | None = None,
    ) -> dict:
        """Queue `work` of a training client under `request_id`, once.

        Args:
            hold: lasts until it is done.
            take_room: gives such a hold for what it makes, or raises BadRequest if there is no room. A
                repeated request isn't asked again, because the first one's work may have taken the room.
        """
        session = model_id.split(":")[0]

        def begin() -> Future:
            with (
                self.budgets.hold(owner, waiting=1, queued=WORK_BYTES) as waits,
                take_room() if take_room else contextlib.nullcontext() as room,
            ):
                self.usage.count(session, requests=1)
                noted = self.timeline.note(owner, session, model_id, name)
                future = self.engine.submit(model_id, session, owner, noted.timed(work))
                future.add_done_callback(noted.end)
                self.learners.of(owner).watch(session, name, future)
                for held in (waits, hold, room):
                    if held:
                        held.until(future)
            return future

        self.results.once(request_id, owner, begin)
        return {"request_id": request_id, "model_id": model_id}

    def operate(
        self,
        client: TrainingClient,
        seq_id: int | None,
        name: str,
        work: Callable[[], Any],
        hold: Hold | None = None,
    ) -> dict:
        """Queue an operation of a training client under its sequence number; `name` is for the timeline."""
        if seq_id is None or not 1 <= seq_id < 2**63:
            raise BadRequest(f"seq_id must be a whole number from 1 on, got {seq_id}")
        return self.start(f"{client.id}:{seq_id}", client.owner, client.id, name, work, hold)

    def waiting(self) -> list[Future]:
        """Futures of requests that a live session may still ask the result of."""
        heard = {key for key, session in list(self.sessions.items()) if _is_active(session)}
        kept = self.results.all()
        asked = [future for key, future in kept.items() if not future.done() or key.split(":")[0] in heard]
        return asked + list(self.direct)

    # Sessions that end

    def active_sessions(self) -> int:
        """Sessions with a heartbeat in the last minute."""
        return sum(_is_active(session) for session in list(self.sessions.values()))

    def drop_lapsed_sessions(self) -> None:
        """Free sessions whose client has not been heard of for long."""
        for session_id, session in list(self.sessions.items()):
            if time.monotonic() - session.seen > SESSION_SECONDS:
                self.free(session_id)

    def free(self, session_id: str) -> None:
        """Give back the memory of a session's clients and samplers; its checkpoints stay."""
        session = self.sessions.pop(session_id, None)
        self.usage.close(session_id)
        self.engine.drop(session_id)
        if session:
            self.results.forget(session_id, session.owner)
        for table in (self.clients, self.samplers):
            for key in [key for key, value in table.items() if value.session == session_id]:
                del table[key]
        self.session_store.forget_samplers(session_id)


def _owned(table: dict[str, Held], key: str, owner: str, what: str, advice: str) -> Held:
    """What `table` holds under `key`; someone else's counts as not there."""
    held = table.get(key)
    if held is None or held.owner != owner:
        raise BadRequest(
            f"there is no {what} {key!r}: it has ended or the server was restarted. {advice}", 404
        )
    return held


def _is_active(session: Session) -> bool:
    return time.monotonic() - session.seen < ACTIVE_SECONDS
