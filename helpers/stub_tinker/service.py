"""What each request means: sessions, training clients, samplers and checkpoints. HTTP is in server.py.

Every operation that computes or writes runs on the engine's thread and ends in a `Result`. Its request id follows from
who asked and the sequence number, so that a retried request finds the first one's result and is not done twice.
"""

import hashlib
import json
import logging
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tinker import types

from helpers.stub_tinker import wire
from helpers.stub_tinker.engine import Base, Engine, best_precision
from helpers.stub_tinker.lora import Adapter, Layout, LoraState
from helpers.stub_tinker.model import Model
from helpers.stub_tinker.sampling import SampleJob, Sampler, ScoreJob
from helpers.stub_tinker.store import URL_SECONDS, Store, StoreError, adapter_config, now, parse_path
from helpers.stub_tinker.training import forward_backward
from helpers.stub_tinker.wire import BadRequest

log = logging.getLogger("stub_tinker")

JSON, PROTO = "application/json", "application/x-protobuf"
SESSION_SECONDS = 300  # without a heartbeat (the SDK sends one every 10 s) a session's memory is freed
KEPT_RESULTS, KEPT_BYTES = 5000, 256 << 20
MAX_RANK = 256
KEPT_ADAPTERS = (
    3  # of a session's samplers in memory: who makes a sampler at each step never says which it still needs
)


@dataclass
class Result:
    """What /retrieve_future answers."""

    body: bytes
    media_type: str = JSON


@dataclass
class Session:
    owner: str
    created: str
    metadata: dict
    display_name: str | None
    seen: float = field(default_factory=time.monotonic)


@dataclass
class TrainingClient:
    session: str
    base: str
    owner: str
    layout: Layout
    state: LoraState


@dataclass
class Usage:
    """What a session has had, and when in the last minute."""

    tokens_trained: int = 0
    tokens_sampled: int = 0
    requests: int = 0
    recent: deque[tuple[float, int, int]] = field(default_factory=deque)  # (time, trained, sampled)
    lock: threading.Lock = field(default_factory=threading.Lock)  # the engine adds, and requests ask

    def add(self, requests: int = 0, trained: int = 0, sampled: int = 0) -> None:
        with self.lock:
            self.requests += requests
            self.tokens_trained += trained
            self.tokens_sampled += sampled
            if trained or sampled:
                self.recent.append((time.monotonic(), trained, sampled))
            self._forget()

    def _forget(self) -> None:
        while self.recent and self.recent[0][0] < time.monotonic() - 60:
            self.recent.popleft()

    def rates(self) -> tuple[float, float]:
        """Tokens trained and sampled a second over the last minute."""
        with self.lock:
            self._forget()
            return sum(trained for _, trained, _ in self.recent) / 60, sum(
                sampled for *_, sampled in self.recent
            ) / 60


@dataclass
class SamplingSession:
    session: str
    base: str
    owner: str
    adapter: Adapter | None
    model_path: str | None
    layout: Layout | None = None  # of the adapter, if there is one
    checkpoint: str | None = None  # the id of what model_path named then: a name can be given anew
    inflight_of: str | None = None  # the training client whose newest inflight weights it uses
    file: Path | None = None  # holds the adapter's weights while they are not in memory
    used: float = field(default_factory=time.monotonic)


class SampleFuture(Future):
    """Of a sampling request, which can be cancelled by its jobs."""

    def __init__(self, base: str, jobs: list[SampleJob | ScoreJob]):
        super().__init__()
        self.base, self.jobs = base, jobs


def _seed(seed: int, number: int) -> int:
    """The seed of a request's sample by its number: neighbouring seeds must not share samples."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:8]) >> 1


def _json(value: dict) -> Result:
    return Result(json.dumps(value).encode())


def _size(future: Future) -> int:
    return 0 if future.exception() else len(future.result().body)


def _layout(model: Model, info: dict) -> Layout:
    """The layout of a stored run's weights."""
    return Layout(
        model.config, info["lora_rank"], info["train_attn"], info["train_mlp"], info["train_unembed"]
    )


class Service:
    """The state of a server. Methods are called from the event loop; the work inside `_start` runs on the engine."""

    def __init__(self, store: Store, bases: dict[str, Path], precision: torch.dtype | None = None):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = precision or best_precision(self.device)
        self.store = store
        self.engine = Engine({name: Base(folder, self.device, self.dtype) for name, folder in bases.items()})
        self.sessions: dict[str, Session] = {}
        self.clients: dict[str, TrainingClient] = {}
        self.samplers: dict[str, SamplingSession] = {}
        self.results: OrderedDict[str, tuple[str, Future]] = OrderedDict()
        self.usage: dict[str, Usage] = {}  # by session
        self.total = Usage()
        self._kept_bytes = 0
        self._joined: dict[str, int] = {}  # by sampler: how many more processes use it
        self._lock = (
            threading.RLock()
        )  # of `results` and `_kept_bytes`: requests are served by several threads

    # Futures

    def _start(
        self, request_id: str, owner: str, model_id: str, session: str, work: Callable[[], Any]
    ) -> dict:
        """Queue `work` of a training client under `request_id`, once: a repeated request gets the first one's future."""
        with self._lock:
            if request_id not in self.results:
                self._count(session, requests=1)
                self._keep(request_id, owner, self.engine.submit(model_id, session, work))
        return {"request_id": request_id, "model_id": model_id}

    def _keep(self, request_id: str, owner: str, future: Future) -> None:
        """Remember a request's future. The oldest results go when there are too many, or too many bytes of them."""
        self.results[request_id] = owner, future
        future.add_done_callback(lambda done: self._add_bytes(request_id, done))
        while self.results and (len(self.results) > KEPT_RESULTS or self._kept_bytes > KEPT_BYTES):
            oldest = next(iter(self.results.values()))[1]
            if not oldest.done():
                break
            self.results.popitem(last=False)
            self._kept_bytes -= _size(oldest)

    def _add_bytes(self, request_id: str, future: Future) -> None:
        with self._lock:
            if request_id in self.results:  # its session may have ended
                self._kept_bytes += _size(future)

    def future(self, request_id: str, owner: str) -> Future:
        """The future of a request.

        Raises:
            BadRequest: none of that id is known to this owner.
        """
        kept_owner, future = self.results.get(request_id, (None, None))
        if kept_owner != owner:
            raise BadRequest(f"no request {request_id!r} is known; the server may have restarted", 404)
        return future

    def cancel(self, request_id: str, owner: str) -> None:
        """Stop a sampling request that its client has given up. A request of another kind goes on: it may change weights."""
        future = self.future(request_id, owner)
        if isinstance(future, SampleFuture) and not future.done():
            self.engine.cancel(future.base, future.jobs)

    # Sessions

    def create_session(self, request: types.CreateSessionRequest, owner: str) -> dict:
        session_id, created, metadata = (
            str(uuid.uuid4()),
            now().isoformat(),
            dict(request.user_metadata or {}),
        )
        self.store.save_session(
            session_id,
            {
                "owner": owner,
                "created": created,
                "user_metadata": metadata,
                "display_name": request.display_name,
                "project_id": request.project_id,
                "tags": request.tags,
                "sdk_version": request.sdk_version,
            },
        )
        self.sessions[session_id] = Session(owner, created, metadata, request.display_name)
        self.usage[session_id] = Usage()
        return {"session_id": session_id, "type": "create_session"}

    def touch(self, session_id: str, owner: str) -> Session:
        """Note that a session is alive.

        Raises:
            BadRequest: there is none of that id for this owner.
        """
        session = self.sessions.get(session_id)
        if session is None or session.owner != owner:
            raise BadRequest(
                f"there is no session {session_id!r}: it has ended or the server was restarted. Make a new ServiceClient",
                404,
            )
        session.seen = time.monotonic()
        return session

    def finish_session(
        self, session_id: str, owner: str, reason: str = "success", detail: str | None = None
    ) -> None:
        """Note how a session ended, the first time it is said, and give back its memory."""
        record = self.store.session(session_id, owner)
        self._free(session_id)
        if "finished" not in record:
            self.store.save_session(session_id, {**record, "finished": {"reason": reason, "detail": detail}})

    def drop_lapsed_sessions(self) -> None:
        """Free sessions whose client has not been heard of for long."""
        for session_id, session in list(self.sessions.items()):
            if time.monotonic() - session.seen > SESSION_SECONDS:
                self._free(session_id)

    def _free(self, session_id: str) -> None:
        """Give back the memory of a session's clients and samplers; its checkpoints stay."""
        self.sessions.pop(session_id, None)
        self.usage.pop(session_id, None)
        self.engine.drop(session_id)
        with self._lock:
            for key in [key for key in self.results if key.startswith(f"{session_id}:")]:
                _, future = self.results.pop(key)
                if future.done():
                    self._kept_bytes -= _size(future)
        for table in (self.clients, self.samplers):
            for key in [key for key, value in table.items() if value.session == session_id]:
                del table[key]
        self.store.forget_set_aside(session_id)

    def active_sessions(self) -> int:
        """Sessions with a heartbeat in the last minute."""
        return sum(time.monotonic() - session.seen < 60 for session in self.sessions.values())

    # Training clients

    def _base(self, name: str) -> str:
        if name not in self.engine.bases:
            offered = "\n  ".join(self.engine.bases)
            raise BadRequest(f"base model {name!r} is not offered by this server, which has:\n  {offered}")
        return name

    def _load(self, base: str) -> tuple[Model, Sampler]:
        """A base model and its sampler.

        Raises:
            BadRequest: its files are not what the server can load.
        """
        try:
            return self.engine.load(base)
        except Exception as error:
            log.exception("the base model %s can't be loaded", base)
            raise BadRequest(f"the server can't load the base model {base}: {error}") from error

    def _client(self, model_id: str, owner: str) -> TrainingClient:
        client = self.clients.get(model_id)
        if client is None or client.owner != owner:
            raise BadRequest(
                f"there is no training client {model_id!r}: it has ended or the server was restarted. "
                "Its checkpoints are kept: create_training_client_from_state(path) goes on from one",
                404,
            )
        self.touch(client.session, owner)
        return client

    def create_model(self, request: types.CreateModelRequest, owner: str) -> dict:
        self.touch(request.session_id, owner)
        base = self._base(request.base_model)
        if request.optimizer_config.type != "adamw":
            raise BadRequest(
                f"optimizer {request.optimizer_config.type!r} is not offered by the stub backend: adamw is"
            )
        lora = request.lora_config or types.LoraConfig(rank=32)
        if not 1 <= lora.rank <= MAX_RANK:
            raise BadRequest(f"rank must be 1 to {MAX_RANK}, got {lora.rank}")
        if not (lora.train_attn or lora.train_mlp or lora.train_unembed):
            raise BadRequest("one of train_attn, train_mlp and train_unembed must be True")
        if lora.seed is not None and not -(2**63) <= lora.seed < 2**63:
            raise BadRequest("seed must fit in 64 bits")
        model_id = f"{request.session_id}:train:{request.model_seq_id}"

        def work() -> Result:
            model = self._load(base)[0]
            layout = Layout(model.config, lora.rank, lora.train_attn, lora.train_mlp, lora.train_unembed)
            state = LoraState(layout, lora.seed, self.device)
            self._register(
                model_id,
                TrainingClient(request.session_id, base, owner, layout, state),
                dict(request.user_metadata or {}),
            )
            return _json({"model_id": model_id, "type": "create_model"})

        return self._start(f"{model_id}:create", owner, model_id, request.session_id, work)

    def _register(self, model_id: str, client: TrainingClient, metadata: dict) -> None:
        layout = client.layout
        self.store.create_run(
            model_id,
            {
                "base_model": client.base,
                "owner": client.owner,
                "session": client.session,
                "user_metadata": metadata,
                "lora_rank": layout.rank,
                "train_attn": layout.train_attn,
                "train_mlp": layout.train_mlp,
                "train_unembed": layout.train_unembed,
            },
        )
        self.clients[model_id] = client

    def get_info(self, model_id: str, owner: str) -> dict:
        client = self._client(model_id, owner)
        return {
            "type": "get_info",
            "model_id": model_id,
            "is_lora": True,
            "lora_rank": client.layout.rank,
            "model_name": client.base,
            "model_data": {
                "arch": self._load(client.base)[0].config.family,
                "model_name": client.base,
                "tokenizer_id": client.base,
            },
        }

    def forward_backward(self, body: bytes, owner: str) -> dict:
        request = wire.parse_forward_backward(body)
        client = self._client(request.model_id, owner)
        model = self._load(client.base)[0]
        config = wire.loss_config(request)
        examples = wire.examples(request, model.config.vocab, model.config.max_length)

        def work() -> Generator[None, None, Result]:
            logprobs, metrics = yield from forward_backward(
                model, client.state, examples, request.loss_fn, config, request.forward_only
            )
            self._count(client.session, trained=sum(len(e.tokens) for e in examples))
            return Result(wire.forward_backward_output(logprobs, examples, metrics), PROTO)

        return self._client_op(request, owner, work)

    def optim_step(self, request: types.OptimStepRequest, owner: str) -> dict:
        client = self._client(request.model_id, owner)
        if not isinstance(request.optim_params, types.AdamParams):
            raise BadRequest(
                f"optimizer {request.optim_params.type[:80]!r} is not offered by the stub backend: send AdamParams"
            )
        params = request.optim_params.model_dump()
        for name, value in params.items():
            least, most = {"beta1": (0, 1), "beta2": (0, 1), "eps": (1e-30, 1e30)}.get(name, (0, 1e30))
            if not least <= value < most:
                raise BadRequest(f"adam_params.{name} must be at least {least} and below {most}, got {value}")
        return self._client_op(
            request, owner, lambda: _json({"metrics": client.state.step(params), "type": "optim_step"})
        )

    def _client_op(self, request: Any, owner: str, work: Callable[[], Any]) -> dict:
        """Queue an operation of a training client under its sequence number."""
        client = self._client(request.model_id, owner)
        if request.seq_id is None or not 1 <= request.seq_id < 2**63:
            raise BadRequest(f"seq_id must be a whole number from 1 on, got {request.seq_id}")
        return self._start(
            f"{request.model_id}:{request.seq_id}", owner, request.model_id, client.session, work
        )

    # Saving and loading

    def _weights(self, client: TrainingClient) -> dict[str, Any]:
        return {
            "adapter_model.safetensors": client.layout.named(client.state.flat.data),
            "adapter_config.json": adapter_config(client.layout, client.base),
        }

    def save_weights(self, request: types.SaveWeightsRequest, owner: str) -> dict:
        client = self._client(request.model_id, owner)

        def work() -> Result:
            files = self._weights(client) | {"optimizer.safetensors": client.state.optimizer_tensors()}
            path = self.store.save(
                request.model_id,
                "weights",
                request.path or f"step-{client.state.steps}",
                files,
                self._details(client, request.user_metadata),
                request.ttl_seconds,
                request.overwrite,
            )
            return _json({"path": path, "type": "save_weights"})

        return self._client_op(request, owner, work)

    def _details(self, client: TrainingClient, metadata: dict | None) -> dict:
        return {"step": client.state.steps, "user_metadata": metadata}

    def save_weights_for_sampler(self, request: types.SaveWeightsForSamplerRequest, owner: str) -> dict:
        client = self._client(request.model_id, owner)

        def work() -> Result:
            if request.path is None:
                sampler_id = f"{client.session}:sample:{request.sampling_session_seq_id}"
                sampler = SamplingSession(
                    client.session, client.base, owner, client.state.snapshot(self.dtype), None, client.layout
                )
                if request.kind == "inflight":
                    sampler.inflight_of = request.model_id
                    for other in list(self.samplers.values()):
                        if other.inflight_of == request.model_id:
                            other.adapter = sampler.adapter
                self.samplers[sampler_id] = sampler
                self._set_aside(client.session)
                return _json({"sampling_session_id": sampler_id, "type": "save_weights_for_sampler"})
            path = self.store.save(
                request.model_id,
                "sampler_weights",
                request.path,
                self._weights(client),
                self._details(client, request.user_metadata),
                request.ttl_seconds,
                overwrite=False,
            )
            return _json({"path": path, "type": "save_weights_for_sampler"})

        return self._client_op(request, owner, work)

    def save_weights_external(self, request: types.SaveWeightsExternalRequest, owner: str) -> dict:
        client = self._client(request.model_id, owner)

        def work() -> Result:
            from safetensors.torch import save

            files: dict[str, Any] = self._weights(client)
            if request.age_encryption_recipients:
                tensors = {
                    key: value.contiguous() for key, value in files["adapter_model.safetensors"].items()
                }
                plain = {
                    "adapter_model.safetensors": save(tensors),
                    "adapter_config.json": files["adapter_config.json"],
                }
                files = {
                    f"{name}.age": _encrypt(content, request.age_encryption_recipients)
                    for name, content in plain.items()
                }
            path = self.store.save(
                request.model_id,
                "external_weights",
                request.path,
                files,
                self._details(client, None),
                request.ttl_seconds,
                overwrite=False,
            )
            return _json({"path": path, "type": "save_weights_external"})

        return self._client_op(request, owner, work)

    def load_weights(self, request: types.LoadWeightsRequest, owner: str) -> dict:
        """Load a checkpoint into a client, or make a client from one (then there is no model_id)."""
        details = self.store.find(request.path, owner)[2]
        if request.model_id is not None:
            client = self._client(request.model_id, owner)
            return self._client_op(
                request, owner, lambda: self._load_into(client, request.model_id, request, owner)
            )
        self.touch(request.session_id, owner)
        base = self._base(request.base_model or details["base_model"])
        model_id = f"{request.session_id}:train:{request.model_seq_id}"

        def work() -> Result:
            model = self._load(base)[0]
            layout = _layout(model, details)
            client = TrainingClient(
                request.session_id, base, owner, layout, LoraState(layout, 0, self.device)
            )
            result = self._load_into(client, model_id, request, owner)
            self._register(model_id, client, dict(request.user_metadata or {}))
            return result

        return self._start(f"{model_id}:create", owner, model_id, request.session_id, work)

    def _load_into(
        self, client: TrainingClient, model_id: str, request: types.LoadWeightsRequest, owner: str
    ) -> Result:
        if parse_path(request.path)[1] == "external_weights":
            raise StoreError("external_weights are for download: load a weights/ path")
        weights, optimizer, details, _ = self.store.load(request.path, owner)
        if request.optimizer and not optimizer and details["step"]:
            raise StoreError(f"{request.path} holds no optimizer state: load it without the optimizer")
        client.state.load(weights, optimizer if request.optimizer else None)
        client.state.steps = details["step"]
        return _json({"path": request.path, "model_id": model_id, "type": "load_weights"})

    # Sampling

    def create_sampling_session(self, request: types.CreateSamplingSessionRequest, owner: str) -> dict:
        self.touch(request.session_id, owner)
        sampler_id = f"{request.session_id}:sample:{request.sampling_session_seq_id}"
        if sampler_id not in self.samplers:
            if request.model_path is None:
                sampler = SamplingSession(
                    request.session_id, self._base(request.base_model or ""), owner, None, None
                )
            else:
                sampler = self._sampler_of(request, owner)
            self.samplers[sampler_id] = sampler
            if sampler.adapter:
                self.engine.call(lambda: self._set_aside(request.session_id))
        return {"type": "create_sampling_session", "sampling_session_id": sampler_id}

    def _sampler_of(self, request: types.CreateSamplingSessionRequest, owner: str) -> SamplingSession:
        if parse_path(request.model_path)[1] == "external_weights":
            raise StoreError("external_weights are for download: sample from a sampler_weights/ path")
        _, details, info = self.store.find(request.model_path, owner)
        base, checkpoint = self._base(info["base_model"]), details.get("id") or details["time"]
        for other in list(
            self.samplers.values()
        ):  # one copy in memory for all who sample from the same checkpoint
            if other.checkpoint == checkpoint and (adapter := other.adapter):
                return SamplingSession(
                    request.session_id, base, owner, adapter, request.model_path, other.layout, checkpoint
                )
        tensors = self.store.load(request.model_path, owner)[0]
        layout = _layout(self._load(base)[0], info)

        def make() -> Adapter:
            flat = torch.empty(layout.size, device=self.device)
            for key, view in layout.named(flat).items():
                view.copy_(tensors[key])
            return Adapter(layout, flat, self.dtype)

        return SamplingSession(
            request.session_id, base, owner, self.engine.call(make), request.model_path, layout, checkpoint
        )

    def _set_aside(self, session: str) -> None:
        """Write the adapters of a session's samplers to disk, but for the last used ones. On the engine's thread."""
        held = [
            s
            for s in list(self.samplers.values())
            if s.session == session and s.adapter and not s.inflight_of
        ]
        for sampler in sorted(held, key=lambda s: s.used)[:-KEPT_ADAPTERS]:
            try:
                sampler.file = sampler.file or self.store.set_aside(session, sampler.adapter.flat)
            except StoreError as error:
                log.warning("an adapter stays in memory: %s", error)
                return
            sampler.adapter = None

    def _adapter(self, sampler: SamplingSession) -> Adapter | None:
        """The adapter to sample with, read back if it was set aside; None for the base model."""
        sampler.used, adapter = time.monotonic(), sampler.adapter
        return adapter or (self.engine.call(lambda: self._read_back(sampler)) if sampler.file else None)

    def _read_back(self, sampler: SamplingSession) -> Adapter:
        adapter = sampler.adapter
        if adapter is None:
            adapter = sampler.adapter = Adapter(
                sampler.layout, self.store.read_back(sampler.file).to(self.device), self.dtype
            )
            self._set_aside(sampler.session)
        return adapter

    def sampler(self, sampler_id: str, owner: str) -> SamplingSession:
        sampler = self.samplers.get(sampler_id)
        if sampler is None or sampler.owner != owner:
            raise BadRequest(
                f"there is no sampler {sampler_id!r}: it has ended or the server was restarted. Make a new sampling client",
                404,
            )
        return sampler

    def sample(self, request: types.SampleRequest, owner: str) -> dict:
        if request.sampling_session_id is None or request.seq_id is None:
            raise BadRequest("asample needs sampling_session_id and seq_id: make a sampling client")
        sampler = self.sampler(request.sampling_session_id, owner)
        self.touch(sampler.session, owner)
        request_id = f"{request.sampling_session_id}:{request.seq_id}"
        self._load(sampler.base)  # not under the lock, as the next: they wait for the engine
        adapter = self._adapter(sampler)
        with self._lock:
            if request_id not in self.results:
                future = self._sample(request, sampler, adapter)
                self._count(sampler.session, requests=1)
                self._keep(request_id, owner, future)
        return {
            "request_id": request_id,
            "sample_sequence_ids": [f"{request_id}:{i}" for i in range(request.num_samples)],
        }

    def _sample(
        self, request: types.SampleRequest, sampler: SamplingSession, adapter: Adapter | None
    ) -> SampleFuture:
        model, running = self._load(sampler.base)
        limit, params = model.config.max_length, request.sampling_params
        prompt = wire.check_tokens(wire.chunk_tokens(request.prompt), "prompt", model.config.vocab, limit)
        if len(prompt) == limit:
            raise BadRequest(
                f"prompt: {limit} tokens, and the model's context is {limit}: there is no room for a new token"
            )
        if not 1 <= request.num_samples <= 1024:
            raise BadRequest(f"num_samples must be 1 to 1024, got {request.num_samples}")
        if request.record_stability_info:
            raise BadRequest(
                "record_stability_info is not offered by the stub backend: it serves the stable_reinforce loss, whose objective is not published. Use loss_fn='ppo' or 'importance_sampling'"
            )
        wire.check_sampling(params, request)
        stop_tokens, stop_strings = wire.stops(params.stop, running.tokenizer.eos_token_id)
        jobs: list[SampleJob | ScoreJob] = [
            SampleJob(
                sampler.session,
                prompt,
                min(params.max_tokens or limit, limit - len(prompt)),
                params.temperature,
                params.top_k,
                params.top_p,
                None if params.seed is None else _seed(params.seed, i),
                stop_tokens,
                stop_strings,
                adapter,
                request.topk_sample_logprobs,
            )
            for i in range(request.num_samples)
        ]
        targets = wire.prompt_targets(request.target_prompt_logprobs, len(prompt), model.config.vocab)
        if request.prompt_logprobs or request.topk_prompt_logprobs or targets or request.prompt_alt_tokens_k:
            last = request.prompt_logprobs_last_n or len(prompt) - 1
            jobs.append(
                ScoreJob(
                    sampler.session,
                    prompt,
                    adapter,
                    last,
                    request.topk_prompt_logprobs,
                    targets and targets[0],
                    request.prompt_alt_tokens_k,
                    params.temperature,
                    params.seed,
                )
            )
        return self._gather(jobs, sampler, request, targets)

    def _gather(
        self,
        jobs: list[SampleJob | ScoreJob],
        sampler: SamplingSession,
        request: types.SampleRequest,
        targets: tuple | None,
    ) -> SampleFuture:
        """One future for all jobs of a request."""
        gathered = SampleFuture(sampler.base, jobs)
        left = len(jobs)

        def done(_: Future) -> None:  # called on the engine's thread, one job at a time
            nonlocal left
            left -= 1
            if left:
                return
            try:
                results = [job.future.result() for job in jobs]
                scores = results.pop() if isinstance(jobs[-1], ScoreJob) else None
                self._count(sampler.session, sampled=sum(len(s.tokens) for s in results))
                gathered.set_result(
                    Result(
                        wire.sample_response(results, scores, bool(request.prompt_logprobs), targets), PROTO
                    )
                )
            except Exception as error:  # one failed job fails the request
                gathered.set_exception(error)
            jobs.clear()  # the future is kept, their adapters need not be

        for job in jobs:
            job.future.add_done_callback(done)
        for job in jobs:
            self.engine.sample(sampler.base, job)
        return gathered

    # Who uses how much

    def _count(self, session: str, **what: int) -> None:
        for usage in (self.total, self.usage.get(session)):
            if usage:  # the session may have ended meanwhile
                usage.add(**what)

    # Reading what is there

    def capabilities(self) -> dict:
        bases = self.engine.bases
        return {
            "supported_models": [
                {
                    "model_name": name,
                    "trainable": True,
                    "sampleable": True,
                    "max_context_length": json.loads((base.folder / "config.json").read_text())[
                        "max_position_embeddings"
                    ],
                }
                for name, base in bases.items()
            ]
        }

    def training_run(self, run: str, owner: str, accessible: bool = False) -> dict:
        info = self.store.run_info(run, owner, accessible)
        checkpoints = self.store.list_checkpoints(owner, run)
        newest = {
            kind: next((c for c in checkpoints if c["checkpoint_type"] == kind), None)
            for kind in ("training", "sampler")
        }
        return {
            "training_run_id": run,
            "base_model": info["base_model"],
            "model_owner": info["owner"],
            "is_lora": True,
            "lora_rank": info["lora_rank"],
            "last_request_time": max([info["created"], *(c["time"] for c in checkpoints)]),
            "last_checkpoint": newest["training"],
            "last_sampler_checkpoint": newest["sampler"],
            "user_metadata": info.get("user_metadata") if info["owner"] == owner else None,
        }

    def external_weights_urls(self, path: str, owner: str, server_url: str) -> dict:
        """A URL for each file, which anyone who holds it may fetch for an hour."""
        from urllib.parse import quote, urlencode

        details = self.store.find(path, owner)[1]
        expires = int(time.time()) + URL_SECONDS
        run, _, name = parse_path(path)
        urls = {
            file: f"{server_url}/files/{quote(run)}/{quote(name)}/{quote(file)}?"
            + urlencode({"expires": expires, "signature": self.store.sign(path, file, expires)})
            for file in details["files"]
        }
        return {"urls": urls, "expires": datetime.fromtimestamp(expires, UTC).isoformat()}

    def status(self) -> dict:
        """For people: who is here, what waits, what was done."""
        import psutil

        return {
            "status": "ok",
            "service": "stub_tinker",
            "base_models": list(self.engine.bases),
            "precision": str(self.dtype).split(".")[-1],
            "device": self.device.type,
            "sessions": self.active_sessions(),
            "training_clients": len(self.clients),
            "samplers": len(self.samplers),
            "queued": self.engine.queued,
            "tokens_trained": self.total.tokens_trained,
            "tokens_sampled": self.total.tokens_sampled,
            "memory_mib": psutil.Process().memory_info().rss >> 20,
        }

    def weights_info(self, path: str, owner: str) -> dict:
        info = self.store.find(path, owner)[2]
        keys = ("base_model", "lora_rank", "train_unembed", "train_mlp", "train_attn")
        return {"is_lora": True, **{key: info[key] for key in keys}}

    def _project(self, info: dict) -> str | None:
        """The project that a run or its session was labelled with."""
        if info.get("project_id") or not info.get("session"):
            return info.get("project_id")
        try:
            return self.store.session(info["session"], info["owner"]).get("project_id")
        except StoreError:  # a run from before sessions were stored
            return None

    def runs(self, owner: str, accessible: bool = False, project: str | None = None) -> list[str]:
        """Ids of runs, newest first."""
        infos = self.store.list_runs(owner, accessible)
        return [
            info["training_run_id"] for info in infos if project is None or self._project(info) == project
        ]

    def copy_weights(self, request: types.CopyWeightsRequest, owner: str, retry_key: str | None) -> dict:
        """Copy a checkpoint into a new run. A repeated request, which carries the same key, gets the first one's copy."""
        if (request.session_id is None) == (request.destination_project_id is None) or (
            request.session_id is None
        ) != (request.model_seq_id is None):
            raise BadRequest("a copy needs destination_project_id, or session_id with model_seq_id")
        if request.session_id is not None:
            self.touch(request.session_id, owner)
            run = f"{request.session_id}:train:{request.model_seq_id}"
        else:
            run = f"{uuid.uuid5(uuid.NAMESPACE_OID, f'{owner} {retry_key}') if retry_key else uuid.uuid4()}:train:0"
        return {
            "tinker_path": self.store.copy(
                request.source_path,
                owner,
                run,
                request.session_id,
                request.destination_project_id,
                request.ttl_seconds,
            )
        }

    def storage_usage(self, owner: str, project: str | None) -> dict:
        """What the caller's checkpoints take on disk, by project. Nothing here costs money."""
        sizes: dict[str | None, list[int]] = {}
        for info in self.store.list_runs(owner):
            sizes.setdefault(self._project(info), []).extend(
                c["size_bytes"] for c in self.store.list_checkpoints(owner, info["training_run_id"])
            )
        return {
            "data": [
                {
                    "project_id": key,
                    "org_user_urn": owner,
                    "checkpoint_count": len(value),
                    "size_bytes": sum(value),
                    "size_gigabytes": sum(value) / 1e9,
                }
                for key, value in sizes.items()
                if value and (project is None or key == project)
            ]
        }

    def get_session(self, session_id: str, owner: str) -> dict:
        """A session, ended ones too. Runs are kept; samplers are known while the session lives."""
        record = self.store.session(session_id, owner)
        runs = [
            info["training_run_id"]
            for info in self.store.list_runs(owner)
            if info.get("session") == session_id
        ]
        return {
            "training_run_ids": runs[::-1],
            "sampler_ids": [
                key for key, sampler in list(self.samplers.items()) if sampler.session == session_id
            ],
            "user_metadata": record.get("user_metadata"),
            "display_name": record.get("display_name"),
        }

    def search_sessions(self, request: types.SessionSearchRequest, owner: str) -> dict:
        """The caller's sessions that match, newest first."""
        found = [
            (key, record)
            for key, record in self.store.list_sessions(owner)
            if self._matches(request, key, record, owner)
        ]
        if request.cursor:
            last = request.cursor.last_created_at, request.cursor.last_session_id
            found = [
                (key, record)
                for key, record in found
                if (datetime.fromisoformat(record["created"]), key) < last
            ]
        page, more = found[: request.limit], len(found) > request.limit
        checkpoints: dict[str | None, list[int]] = {}
        for info in self.store.list_runs(owner):
            checkpoints.setdefault(info.get("session"), []).extend(
                c["size_bytes"] for c in self.store.list_checkpoints(owner, info["training_run_id"])
            )
        return {
            "sessions": [
                {
                    "session_id": key,
                    "created_at": record["created"],
                    "owner": owner,
                    "project_id": record.get("project_id") or "default",
                    "status": self._session_status(key, record),
                    "checkpoints_count": len(checkpoints.get(key, [])),
                    "display_name": record.get("display_name"),
                    "user_metadata": record.get("user_metadata"),
                    "checkpoint_storage_bytes": sum(checkpoints.get(key, [])),
                }
                for key, record in page
            ],
            "next_cursor": {"last_created_at": page[-1][1]["created"], "last_session_id": page[-1][0]}
            if more
            else None,
        }

    def _session_status(self, session_id: str, record: dict) -> dict | None:
        if finished := record.get("finished"):
            return {
                "type": "client_finished",
                "reason": {"type": finished["reason"]},
                "detail": finished["detail"],
            }
        return {"type": "active"} if session_id in self.sessions else None

    def _matches(
        self, request: types.SessionSearchRequest, session_id: str, record: dict, owner: str
    ) -> bool:
        name = (record.get("display_name") or "").lower()
        by_name = request.display_name is not None and all(
            word in name for word in request.display_name.lower().split()
        )
        if (request.session_id or request.display_name) and session_id != request.session_id and not by_name:
            return False
        if request.owner.type == "user" and owner not in request.owner.owner_urns:
            return False
        if (
            request.project_ids is not None
            and (record.get("project_id") or "default") not in request.project_ids
        ):
            return False
        metadata = record.get("user_metadata") or {}
        if any(metadata.get(key) != value for key, value in request.user_metadata.items()):
            return False
        if request.statuses is None:
            return True
        status = self._session_status(session_id, record)
        return any(
            status
            and status["type"] == wanted.type
            and (
                wanted.type != "client_finished"
                or not wanted.reasons
                or status["reason"]["type"] in wanted.reasons
            )
            for wanted in request.statuses
        )

    def join_sampling_session(self, request: types.JoinSamplingSessionRequest, owner: str) -> dict:
        """A number for one more process that samples with the same sampler: its requests then have ids of their own."""
        self.sampler(request.sampling_session_id, owner)
        with self._lock:
            number = self._joined[request.sampling_session_id] = (
                self._joined.get(request.sampling_session_id, 0) + 1
            )
        return {"type": "join_sampling_session", "client_counter": number}

    def waiting(self) -> dict[str, Future]:
        """Requests by id that a live session may still ask the result of."""
        kept = [(key, future) for key, (_, future) in list(self.results.items())]
        heard = {key for key, session in list(self.sessions.items()) if time.monotonic() - session.seen < 60}
        return {key: future for key, future in kept if not future.done() or key.split(":")[0] in heard}


def _encrypt(content: bytes, recipients: list[str]) -> bytes:
    import pyrage

    try:
        return pyrage.encrypt(content, [pyrage.x25519.Recipient.from_str(r) for r in recipients])
    except pyrage.RecipientError as error:
        raise StoreError(f"an age recipient is wrong: {error}") from error
