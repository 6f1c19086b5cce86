"""What each request means: sessions, training clients, samplers and checkpoints. HTTP is in server.py.

Every operation that computes or writes runs on the engine's thread and ends in a `Result`. Its request id follows from
who asked and the sequence number, so that a retried request finds the first one's result and is not done twice.
"""

import json
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tinker import types

from helpers.stub_tinker import wire
from helpers.stub_tinker.engine import Base, Engine, best_precision
from helpers.stub_tinker.lora import Adapter, Layout, LoraState
from helpers.stub_tinker.sampling import SampleJob, ScoreJob
from helpers.stub_tinker.store import URL_SECONDS, Store, StoreError, adapter_config, now, parse_path
from helpers.stub_tinker.training import forward_backward
from helpers.stub_tinker.wire import BadRequest

JSON, PROTO = "application/json", "application/x-protobuf"
SESSION_SECONDS = 300  # without a heartbeat (the SDK sends one every 10 s) a session's memory is freed
KEPT_RESULTS = 5000
MAX_RANK = 256


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
class SamplingSession:
    session: str
    base: str
    owner: str
    adapter: Adapter | None
    model_path: str | None


def _json(value: dict) -> Result:
    return Result(json.dumps(value).encode())


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
        self.tokens_trained = self.tokens_sampled = 0
        self._lock = threading.Lock()  # of `results`: requests are served by several threads

    # Futures

    def _start(self, request_id: str, owner: str, queue: str, work: Callable[[], Result]) -> str:
        """Queue `work` under `request_id`, once: a repeated request gets the first one's future."""
        with self._lock:
            if request_id not in self.results:
                self._keep(request_id, owner, self.engine.submit(queue, work))
        return request_id

    def _keep(self, request_id: str, owner: str, future: Future) -> None:
        self.results[request_id] = owner, future
        while len(self.results) > KEPT_RESULTS and next(iter(self.results.values()))[1].done():
            self.results.popitem(last=False)

    def future(self, request_id: str, owner: str) -> Future:
        """The future of a request.

        Raises:
            BadRequest: none of that id is known to this owner (410: the SDK sends the request again).
        """
        kept_owner, future = self.results.get(request_id, (None, None))
        if kept_owner != owner:
            raise BadRequest(f"no request {request_id!r} is known; the server may have restarted", 404)
        return future

    # Sessions

    def create_session(self, request: types.CreateSessionRequest, owner: str) -> dict:
        self._drop_lapsed_sessions()
        session_id = str(uuid.uuid4())
        self.sessions[session_id] = Session(owner, now().isoformat(), dict(request.user_metadata or {}), request.display_name)
        return {"session_id": session_id, "type": "create_session"}

    def touch(self, session_id: str, owner: str) -> Session:
        """Note that a session is alive.

        Raises:
            BadRequest: there is none of that id for this owner.
        """
        session = self.sessions.get(session_id)
        if session is None or session.owner != owner:
            raise BadRequest(f"there is no session {session_id!r}: it has ended or the server was restarted. Make a new ServiceClient", 404)
        session.seen = time.monotonic()
        return session

    def finish_session(self, session_id: str, owner: str) -> None:
        self.touch(session_id, owner)
        self._free(session_id)

    def _drop_lapsed_sessions(self) -> None:
        for session_id, session in list(self.sessions.items()):
            if time.monotonic() - session.seen > SESSION_SECONDS:
                self._free(session_id)

    def _free(self, session_id: str) -> None:
        """Give back the memory of a session's clients and samplers; its checkpoints stay."""
        self.sessions.pop(session_id, None)
        for table in (self.clients, self.samplers):
            for key in [key for key, value in table.items() if value.session == session_id]:
                del table[key]

    def active_sessions(self) -> int:
        """Sessions with a heartbeat in the last minute."""
        return sum(time.monotonic() - session.seen < 60 for session in self.sessions.values())

    # Training clients

    def _base(self, name: str) -> str:
        if name not in self.engine.bases:
            offered = "\n  ".join(self.engine.bases)
            raise BadRequest(f"base model {name!r} is not offered by this server, which has:\n  {offered}")
        return name

    def _client(self, model_id: str, owner: str) -> TrainingClient:
        client = self.clients.get(model_id)
        if client is None or client.owner != owner:
            raise BadRequest(
                f"there is no training client {model_id!r}: it has ended or the server was restarted. "
                "Its checkpoints are kept: create_training_client_from_state(path) goes on from one", 404)
        self.touch(client.session, owner)
        return client

    def create_model(self, request: types.CreateModelRequest, owner: str) -> dict:
        self.touch(request.session_id, owner)
        base = self._base(request.base_model)
        if request.optimizer_config.type != "adamw":
            raise BadRequest(f"optimizer {request.optimizer_config.type!r} is not offered by the stub backend: adamw is")
        lora = request.lora_config or types.LoraConfig(rank=32)
        if not 1 <= lora.rank <= MAX_RANK:
            raise BadRequest(f"rank must be 1 to {MAX_RANK}, got {lora.rank}")
        if not (lora.train_attn or lora.train_mlp):
            raise BadRequest("the stub backend trains attention and MLP layers: one of train_attn, train_mlp must be True")
        model_id = f"{request.session_id}:train:{request.model_seq_id}"

        def work() -> Result:
            model = self.engine.bases[base].load()[0]
            layout = Layout(model.config, lora.rank, lora.train_attn, lora.train_mlp)
            state = LoraState(layout, lora.seed, self.device)
            self._register(model_id, TrainingClient(request.session_id, base, owner, layout, state), dict(request.user_metadata or {}))
            return _json({"model_id": model_id, "type": "create_model"})

        return {"request_id": self._start(f"{model_id}:create", owner, model_id, work), "model_id": model_id}

    def _register(self, model_id: str, client: TrainingClient, metadata: dict) -> None:
        layout = client.layout
        self.clients[model_id] = client
        self.store.create_run(model_id, {
            "base_model": client.base, "owner": client.owner, "session": client.session, "user_metadata": metadata,
            "lora_rank": layout.rank, "train_attn": layout.train_attn, "train_mlp": layout.train_mlp, "train_unembed": False,
        })

    def get_info(self, model_id: str, owner: str) -> dict:
        client = self._client(model_id, owner)
        return {
            "type": "get_info", "model_id": model_id, "is_lora": True, "lora_rank": client.layout.rank, "model_name": client.base,
            "model_data": {"arch": self.engine.bases[client.base].load()[0].config.family, "model_name": client.base, "tokenizer_id": client.base},
        }

    def forward_backward(self, body: bytes, owner: str) -> dict:
        request = wire.parse_forward_backward(body)
        client = self._client(request.model_id, owner)
        model = self.engine.bases[client.base].load()[0]
        examples = wire.examples(request, model.config.vocab, model.config.max_length)
        config = {key: float(value) for key, value in request.loss_fn_config.items()}

        def work() -> Result:
            self.tokens_trained += sum(len(e.tokens) for e in examples)
            logprobs, metrics = forward_backward(model, client.state, examples, request.loss_fn, config, request.forward_only)
            return Result(wire.forward_backward_output(logprobs, metrics), PROTO)

        request_id = f"{request.model_id}:{request.seq_id}"
        return {"request_id": self._start(request_id, owner, request.model_id, work), "model_id": request.model_id}

    def optim_step(self, request: types.OptimStepRequest, owner: str) -> dict:
        client = self._client(request.model_id, owner)
        if not isinstance(request.optim_params, types.AdamParams):
            raise BadRequest("the stub backend offers AdamParams only")
        params = request.optim_params.model_dump()
        for name, value in params.items():
            if not np.isfinite(value) or value < 0:
                raise BadRequest(f"adam_params.{name} must be a finite number of at least 0, got {value}")
        return self._client_op(request, owner, lambda: _json({"metrics": client.state.step(params), "type": "optim_step"}))

    def _client_op(self, request: Any, owner: str, work: Callable[[], Result]) -> dict:
        """Queue an operation of a training client under its sequence number."""
        self._client(request.model_id, owner)
        request_id = f"{request.model_id}:{request.seq_id}"
        return {"request_id": self._start(request_id, owner, request.model_id, work), "model_id": request.model_id}

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
                request.model_id, "weights", request.path or f"step-{client.state.steps}", files,
                self._details(client, request.user_metadata), request.ttl_seconds, request.overwrite)
            return _json({"path": path, "type": "save_weights"})

        return self._client_op(request, owner, work)

    def _details(self, client: TrainingClient, metadata: dict | None) -> dict:
        return {"step": client.state.steps, "user_metadata": metadata}

    def save_weights_for_sampler(self, request: types.SaveWeightsForSamplerRequest, owner: str) -> dict:
        client = self._client(request.model_id, owner)

        def work() -> Result:
            if request.path is None:
                sampler_id = f"{client.session}:sample:{request.sampling_session_seq_id}"
                self.samplers[sampler_id] = SamplingSession(
                    client.session, client.base, owner, client.state.snapshot(self.dtype), None)
                return _json({"sampling_session_id": sampler_id, "type": "save_weights_for_sampler"})
            path = self.store.save(
                request.model_id, "sampler_weights", request.path, self._weights(client),
                self._details(client, request.user_metadata), request.ttl_seconds, overwrite=False)
            return _json({"path": path, "type": "save_weights_for_sampler"})

        return self._client_op(request, owner, work)

    def save_weights_external(self, request: types.SaveWeightsExternalRequest, owner: str) -> dict:
        client = self._client(request.model_id, owner)

        def work() -> Result:
            from safetensors.torch import save

            files: dict[str, Any] = self._weights(client)
            if request.age_encryption_recipients:
                tensors = {key: value.contiguous() for key, value in files["adapter_model.safetensors"].items()}
                plain = {"adapter_model.safetensors": save(tensors), "adapter_config.json": files["adapter_config.json"]}
                files = {f"{name}.age": _encrypt(content, request.age_encryption_recipients) for name, content in plain.items()}
            path = self.store.save(
                request.model_id, "external_weights", request.path, files, self._details(client, None), request.ttl_seconds, overwrite=False)
            return _json({"path": path, "type": "save_weights_external"})

        return self._client_op(request, owner, work)

    def load_weights(self, request: types.LoadWeightsRequest, owner: str) -> dict:
        """Load a checkpoint into a client, or make a client from one (then there is no model_id)."""
        details = self.store.find(request.path, owner)[2]
        if request.model_id is not None:
            client = self._client(request.model_id, owner)
            return self._client_op(request, owner, lambda: self._load_into(client, request.model_id, request, owner))
        self.touch(request.session_id, owner)
        base = self._base(request.base_model or details["base_model"])
        model_id = f"{request.session_id}:train:{request.model_seq_id}"

        def work() -> Result:
            model = self.engine.bases[base].load()[0]
            layout = Layout(model.config, details["lora_rank"], details["train_attn"], details["train_mlp"])
            client = TrainingClient(request.session_id, base, owner, layout, LoraState(layout, 0, self.device))
            result = self._load_into(client, model_id, request, owner)
            self._register(model_id, client, dict(request.user_metadata or {}))
            return result

        return {"request_id": self._start(f"{model_id}:create", owner, model_id, work), "model_id": model_id}

    def _load_into(self, client: TrainingClient, model_id: str, request: types.LoadWeightsRequest, owner: str) -> Result:
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
                sampler = SamplingSession(request.session_id, self._base(request.base_model or ""), owner, None, None)
            else:
                sampler = self._sampler_of(request, owner)
            self.samplers[sampler_id] = sampler
        return {"type": "create_sampling_session", "sampling_session_id": sampler_id}

    def _sampler_of(self, request: types.CreateSamplingSessionRequest, owner: str) -> SamplingSession:
        if parse_path(request.model_path)[1] == "external_weights":
            raise StoreError("external_weights are for download: sample from a sampler_weights/ path")
        info = self.store.find(request.model_path, owner)[2]
        base = self._base(info["base_model"])
        for other in self.samplers.values():  # one copy in memory for all who sample from the same checkpoint
            if other.model_path == request.model_path and other.owner == owner:
                return SamplingSession(request.session_id, base, owner, other.adapter, request.model_path)
        tensors = self.store.load(request.model_path, owner)[0]
        model = self.engine.bases[base].load()[0]
        layout = Layout(model.config, info["lora_rank"], info["train_attn"], info["train_mlp"])
        flat = torch.empty(layout.size, device=self.device)
        for key, view in layout.named(flat).items():
            view.copy_(tensors[key])
        return SamplingSession(request.session_id, base, owner, Adapter(layout, flat, self.dtype), request.model_path)

    def sampler(self, sampler_id: str, owner: str) -> SamplingSession:
        sampler = self.samplers.get(sampler_id)
        if sampler is None or sampler.owner != owner:
            raise BadRequest(f"there is no sampler {sampler_id!r}: it has ended or the server was restarted. Make a new sampling client", 404)
        return sampler

    def sample(self, request: types.SampleRequest, owner: str) -> dict:
        if request.sampling_session_id is None or request.seq_id is None:
            raise BadRequest("asample needs sampling_session_id and seq_id: make a sampling client")
        sampler = self.sampler(request.sampling_session_id, owner)
        self.touch(sampler.session, owner)
        request_id = f"{request.sampling_session_id}:{request.seq_id}"
        sequence_ids = [f"{request_id}:{i}" for i in range(request.num_samples)]
        with self._lock:
            if request_id not in self.results:
                self._keep(request_id, owner, self._sample(request, sampler))
        return {"request_id": request_id, "sample_sequence_ids": sequence_ids}

    def _sample(self, request: types.SampleRequest, sampler: SamplingSession) -> Future:
        model, running = self.engine.bases[sampler.base].load()
        limit, params = model.config.max_length, request.sampling_params
        prompt = wire.check_tokens(request.prompt.to_ints(), "prompt", model.config.vocab, limit - 1)
        if not 1 <= request.num_samples <= 1024:
            raise BadRequest(f"num_samples must be 1 to 1024, got {request.num_samples}")
        if request.target_prompt_logprobs is not None or request.prompt_alt_tokens_k or request.prompt_logprobs_last_n:
            raise BadRequest("target_prompt_logprobs, prompt_alt_tokens_k and prompt_logprobs_last_n are not offered by the stub backend")
        if params.temperature < 0 or not 0 < params.top_p <= 1 or (params.max_tokens is not None and params.max_tokens < 1):
            raise BadRequest("sampling_params need temperature >= 0, 0 < top_p <= 1 and max_tokens >= 1")
        stop_tokens, stop_strings = _stops(params.stop, running.tokenizer.eos_token_id)
        jobs: list[SampleJob | ScoreJob] = [
            SampleJob(
                prompt, min(params.max_tokens or limit, limit - len(prompt)), params.temperature, params.top_k, params.top_p,
                None if params.seed is None else params.seed + i, stop_tokens, stop_strings, sampler.adapter, request.topk_sample_logprobs)
            for i in range(request.num_samples)
        ]
        if request.prompt_logprobs or request.topk_prompt_logprobs:
            jobs.append(ScoreJob(prompt, sampler.adapter, request.topk_prompt_logprobs))
        return self._gather(jobs, sampler.base, bool(request.prompt_logprobs))

    def _gather(self, jobs: list[SampleJob | ScoreJob], base: str, prompt_logprobs: bool) -> Future:
        """One future for all jobs of a request."""
        gathered: Future = Future()
        left = len(jobs)

        def done(_: Future) -> None:  # called on the engine's thread, one job at a time
            nonlocal left
            left -= 1
            if left:
                return
            try:
                sequences = [job.future.result() for job in jobs if isinstance(job, SampleJob)]
                scored = [job.future.result() for job in jobs if isinstance(job, ScoreJob)]
                self.tokens_sampled += sum(len(s.tokens) for s in sequences)
                scores, topk = scored[0] if scored else (None, None)
                gathered.set_result(Result(wire.sample_response(sequences, scores if prompt_logprobs else None, topk), PROTO))
            except Exception as error:  # one failed job fails the request
                gathered.set_exception(error)

        for job in jobs:
            job.future.add_done_callback(done)
            self.engine.sample(base, job)
        return gathered

    # Reading what is there

    def capabilities(self) -> dict:
        bases = self.engine.bases
        return {"supported_models": [
            {"model_name": name, "trainable": True, "sampleable": True,
             "max_context_length": json.loads((base.folder / "config.json").read_text())["max_position_embeddings"]}
            for name, base in bases.items()
        ]}

    def training_run(self, run: str, owner: str) -> dict:
        info = self.store.run_info(run, owner)
        checkpoints = self.store.list_checkpoints(owner, run)
        newest = {kind: next((c for c in checkpoints if c["checkpoint_type"] == kind), None) for kind in ("training", "sampler")}
        return {
            "training_run_id": run, "base_model": info["base_model"], "model_owner": owner, "is_lora": True,
            "lora_rank": info["lora_rank"], "last_request_time": max([info["created"], *(c["time"] for c in checkpoints)]),
            "last_checkpoint": newest["training"], "last_sampler_checkpoint": newest["sampler"], "user_metadata": info["user_metadata"],
        }

    def external_weights_urls(self, path: str, owner: str, server_url: str) -> dict:
        """A URL for each file, which anyone who holds it may fetch for an hour."""
        from datetime import datetime, timezone
        from urllib.parse import quote, urlencode

        details = self.store.find(path, owner)[1]
        expires = int(time.time()) + URL_SECONDS
        run, _, name = parse_path(path)
        urls = {
            file: f"{server_url}/files/{quote(run)}/{quote(name)}/{quote(file)}?"
            + urlencode({"expires": expires, "signature": self.store.sign(path, file, expires)})
            for file in details["files"]
        }
        return {"urls": urls, "expires": datetime.fromtimestamp(expires, timezone.utc).isoformat()}

    def status(self) -> dict:
        """For people: who is here, what waits, what was done."""
        import psutil

        return {
            "status": "ok", "service": "stub_tinker", "base_models": list(self.engine.bases), "precision": str(self.dtype).split(".")[-1],
            "device": self.device.type, "sessions": self.active_sessions(), "training_clients": len(self.clients),
            "samplers": len(self.samplers), "queued": self.engine.queued, "tokens_trained": self.tokens_trained,
            "tokens_sampled": self.tokens_sampled, "memory_mib": psutil.Process().memory_info().rss >> 20,
        }


def _stops(stop: Any, eos: int | None) -> tuple[frozenset[int], list[str]]:
    """Stop tokens and strings: nothing given means the end-of-text token, an empty list means no stop at all."""
    if stop is None:
        return frozenset() if eos is None else frozenset([eos]), []
    stops = [stop] if isinstance(stop, str) else list(stop)
    return frozenset(s for s in stops if isinstance(s, int)), [s for s in stops if isinstance(s, str) and s]


def _encrypt(content: bytes, recipients: list[str]) -> bytes:
    import pyrage

    try:
        return pyrage.encrypt(content, [pyrage.x25519.Recipient.from_str(r) for r in recipients])
    except pyrage.RecipientError as error:
        raise StoreError(f"an age recipient is wrong: {error}") from error
