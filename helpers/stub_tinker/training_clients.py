"""Training clients: making one, its forward and backward passes, and its optimizer steps."""

from collections.abc import Callable, Generator

from tinker import types

from helpers.limits import MAX_RANK
from helpers.stub_tinker import wire_training as wire
from helpers.stub_tinker.budgets import Hold
from helpers.stub_tinker.errors import BadRequest
from helpers.stub_tinker.lora import Layout, LoraState
from helpers.stub_tinker.results import PROTO, Result, json_result
from helpers.stub_tinker.service import Service, TrainingClient
from helpers.stub_tinker.training import forward_backward as passes

RANGES = {"beta1": (0, 1), "beta2": (0, 1), "eps": (1e-30, 1e30)}  # of AdamParams: at least, and below
OTHER_RANGE = (0, 1e30)


def create_model(service: Service, owner: str, request: types.CreateModelRequest) -> dict:
    """A training client with new LoRA weights."""
    service.touch(request.session_id, owner)
    base, lora = service.base(request.base_model), _checked_lora(request)
    chosen = {
        "lora_rank": lora.rank,
        "train_attn": lora.train_attn,
        "train_mlp": lora.train_mlp,
        "train_unembed": lora.train_unembed,
    }
    layout = service.layout(base, chosen)

    def finish(client: TrainingClient) -> Result:
        register(service, client, dict(request.user_metadata or {}))
        return json_result({"model_id": client.id, "type": "create_model"})

    return start_client(service, owner, request, base, layout, lora.seed, finish)


def start_client(
    service: Service,
    owner: str,
    request: types.CreateModelRequest | types.LoadWeightsRequest,
    base: str,
    layout: Layout,
    seed: int | None,
    finish: Callable[[TrainingClient], Result],
) -> dict:
    """Queue the making of a training client. Room for its weights, their gradients and Adam's state is taken
    now, so that none of several such requests is accepted in vain.

    Args:
        finish: does the rest, on the engine's thread.

    Raises:
        BadRequest: there is no room.
    """
    session, rooms = str(request.session_id), []
    model_id = f"{session}:train:{request.model_seq_id}"

    def take_room() -> Hold:
        rooms.append(service.budgets.hold(owner, clients=1, memory=layout.trained_bytes))
        return rooms[0]

    def work() -> Result:
        state = LoraState(layout, seed, service.device)
        rooms[0].while_alive(state)
        return finish(TrainingClient(model_id, session, base, owner, layout, state))

    return service.start(f"{model_id}:create", owner, model_id, request.type, work, take_room=take_room)


def _checked_lora(request: types.CreateModelRequest) -> types.LoraConfig:
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
    return lora


def register(service: Service, client: TrainingClient, metadata: dict) -> None:
    """Note a new training client's run on disk, and let requests find it."""
    layout = client.layout
    info = {
        "base_model": client.base,
        "owner": client.owner,
        "session": client.session,
        "user_metadata": metadata,
        "lora_rank": layout.rank,
        "train_attn": layout.train_attn,
        "train_mlp": layout.train_mlp,
        "train_unembed": layout.train_unembed,
    }
    service.store.create_run(client.id, info)
    service.clients[client.id] = client
    service.learners.of(client.owner).began(client.id)


def get_info(service: Service, owner: str, model_id: str) -> dict:
    client = service.client(model_id, owner)
    family = service.load(client.base)[0].config.family
    return {
        "type": "get_info",
        "model_id": model_id,
        "is_lora": True,
        "lora_rank": client.layout.rank,
        "model_name": client.base,
        "model_data": {"arch": family, "model_name": client.base, "tokenizer_id": client.base},
    }


def forward_backward(service: Service, owner: str, body: bytes) -> dict:
    """A forward pass, and a backward one unless the message says `forward_only`."""
    request = wire.parse_forward_backward(body)
    client = service.client(request.model_id, owner)
    model = service.load(client.base)[0]
    config = wire.loss_config(request)
    with service.budgets.hold(owner, **wire.cost(request)) as hold:
        examples = wire.examples(request, model.config.vocab, model.config.max_length)

        def work() -> Generator[int, None, Result]:
            logprobs, metrics = yield from passes(
                model, client.state, examples, request.loss_fn, config, request.forward_only
            )
            service.usage.count(client.session, trained=sum(len(e.tokens) for e in examples))
            if request.loss_fn == "cross_entropy" and not request.forward_only:
                service.learners.of(owner).lost(client.id, logprobs, examples)
            return Result(wire.forward_backward_output(logprobs, examples, metrics), PROTO)

        name = "forward" if request.forward_only else "forward_backward"
        return service.operate(client, request.seq_id, name, work, hold)


def optim_step(service: Service, owner: str, request: types.OptimStepRequest) -> dict:
    client = service.client(request.model_id, owner)
    if not isinstance(request.optim_params, types.AdamParams):
        raise BadRequest(
            f"optimizer {request.optim_params.type[:80]!r} is not offered by the stub backend: "
            "send AdamParams"
        )
    params = request.optim_params.model_dump()
    for name, value in params.items():
        least, most = RANGES.get(name, OTHER_RANGE)
        if not least <= value < most:
            raise BadRequest(f"adam_params.{name} must be at least {least} and below {most}, got {value}")

    def work() -> Result:
        metrics = client.state.step(params)
        service.learners.of(owner).stepped(client.id, client.state.steps)
        return json_result({"metrics": metrics, "type": "optim_step"})

    return service.operate(client, request.seq_id, "optim_step", work)
