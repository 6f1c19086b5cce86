"""Training on the stub, seen through the real SDK, against plain transformers, PEFT and torch's AdamW in
float32.
"""

import itertools
import json
import math
import shutil
import urllib.request
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import load
from stub import Server
from tinker import types
from torch.nn.functional import logsigmoid

VOCAB = 97
FAMILIES = ["llama", "qwen2", "qwen3", "mistral"]
UNEMBED = "base_model.model.model.unembed_tokens"
ATTENTION = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
MLP = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]

# A step whose update is the gradient itself, to a millionth.
UNIT = types.AdamParams(learning_rate=1e6, beta1=0, beta2=0, eps=1e6)
# The fourth step's gradient stays below its bound, and the fifth has none.
STEPS = [
    types.AdamParams(
        learning_rate=rate, beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=decay, grad_clip_norm=norm
    )
    for rate, decay, norm in [
        (2e-2, 0.3, 0.5),
        (3e-2, 0.3, 1.0),
        (2e-2, 0.1, 0.2),
        (1e-2, 0.2, 1e4),
        (1e-2, 0.3, 0),
    ]
]


def preference_loss(data, logprobs):
    """Mean logprobs of the first of each two datums should be above those of the second, as in DPO."""
    scores = [
        (values * datum.loss_fn_inputs["weights"].to_torch()).mean()
        for datum, values in zip(data, logprobs, strict=True)
    ]
    loss = sum(
        -logsigmoid(2 * (chosen - rejected))
        for chosen, rejected in zip(scores[::2], scores[1::2], strict=True)
    )
    return loss, {"pairs": len(scores) / 2}


def datum_loss(name: str, config: dict, inputs: dict[str, torch.Tensor], p: torch.Tensor) -> torch.Tensor:
    """The documented loss of one datum, with the model's logprobs p of its targets."""
    if name == "cross_entropy":
        return -(p * inputs.get("weights", torch.ones(()))).sum()
    q, advantages = inputs["logprobs"], inputs["advantages"]
    default_low, default_high = {"ppo": (0.8, 1.2), "cispo": (0.0, 4.0)}.get(name, (None, None))
    low = inputs.get("clip_low_threshold", config.get("clip_low_threshold", default_low))
    high = inputs.get("clip_high_threshold", config.get("clip_high_threshold", default_high))
    low, high = (value if value is None else torch.as_tensor(value) for value in (low, high))
    if name == "dro":
        return -(p * advantages - 0.5 * config.get("beta", 0.05) * (p - q) ** 2).sum()
    ratio = torch.exp(p - q)
    if name == "importance_sampling":
        return -(ratio * advantages).sum()
    if name == "cispo":
        return -(torch.minimum(torch.maximum(ratio, low), high).detach() * p * advantages).sum()
    if name == "gspo":
        log_ratio = (p.detach() - q)[inputs["sequence_ratio_mask"] != 0].mean()
        ratio = torch.exp(log_ratio + p - p.detach())
    else:
        assert name == "ppo"
    return -torch.minimum(
        ratio * advantages, torch.minimum(torch.maximum(ratio, low), high) * advantages
    ).sum()


@dataclass(frozen=True)
class Case:
    """A loss, its configuration, and what its datums hold."""

    loss: str
    config: dict[str, float] = field(default_factory=dict)
    inputs: str = ""

    def submit(self, client, data):
        if self.loss == "custom":
            return client.forward_backward_custom(data, preference_loss)
        return client.forward_backward(data, self.loss, self.config or None)


CLIP = {"clip_low_threshold": 0.7, "clip_high_threshold": 1.4}
CASES = {
    "cross_entropy": Case("cross_entropy", inputs="weights"),
    "cross_entropy-without-weights": Case("cross_entropy"),
    "cross_entropy-dense-2d": Case("cross_entropy", inputs="dense"),
    "cross_entropy-sparse-2d": Case("cross_entropy", inputs="sparse"),
    "importance_sampling": Case("importance_sampling"),
    "ppo": Case("ppo"),
    "ppo-config": Case("ppo", CLIP),
    "ppo-one-threshold": Case("ppo", {"clip_high_threshold": 1.7}),
    "ppo-per-token": Case("ppo", CLIP, "thresholds"),
    "cispo": Case("cispo"),
    "cispo-config": Case("cispo", CLIP),
    "cispo-per-token": Case("cispo", CLIP, "thresholds"),
    "dro": Case("dro"),
    "dro-beta": Case("dro", {"beta": 0.4}),
    "gspo": Case("gspo", CLIP),
    "gspo-per-token": Case("gspo", CLIP, "thresholds"),
    "custom": Case("custom", inputs="weights"),
}
CROSS_ENTROPY = CASES["cross_entropy"]


def make_data(
    case: Case, reference: "Reference | None" = None, lengths=(9, 17, 4, 13), seed: int = 0
) -> list[types.Datum]:
    """Datums of random tokens. Sampling logprobs lie around the reference's, so that some ratios are clipped
    and some not.
    """
    rng = np.random.default_rng(seed)
    data = []
    for number, length in enumerate(lengths):
        tokens = rng.integers(0, VOCAB, length + 1)
        prompt = length // 3
        datum = types.Datum(types.ModelInput.from_ints(tokens[:-1].tolist()), {"target_tokens": tokens[1:]})
        inputs = dict(datum.loss_fn_inputs)
        answer = (np.arange(length) >= prompt).astype(np.float32)
        if case.inputs == "weights":
            inputs["weights"] = answer * rng.uniform(0.5, 2, length).astype(np.float32)
        elif case.inputs == "dense":
            inputs["target_tokens"] = rng.integers(0, VOCAB, (length, 3))
            inputs["weights"] = rng.dirichlet([1, 1, 1], length).astype(np.float32)
        elif case.inputs == "sparse":
            listed = torch.from_numpy(rng.random((length, 8)) < 0.15)
            inputs["target_tokens"] = torch.where(
                listed, torch.from_numpy(rng.integers(1, VOCAB, (length, 8))), 0
            )
            inputs["target_tokens"][0, 0] = 0  # weighted, and token 0: the sparse form doesn't list it
            inputs["weights"] = torch.where(
                listed, torch.from_numpy(rng.uniform(-0.5, 2, (length, 8))).float(), 0
            )
            inputs["weights"][0, 0] = 1.5
        elif case.loss not in ("cross_entropy", "custom"):
            offsets = (
                np.resize([0.05, -0.6, 2.0, 0.1, 0.6, -2.0, -0.1], length)
                + [0.0, 0.5, -1.1, -0.5][number % 4]
            )
            inputs["logprobs"] = reference.logprobs(datum).detach().numpy() - offsets.astype(np.float32)
            inputs["advantages"] = answer * rng.choice([-0.6, 1.1, 1.7], length).astype(np.float32)
            if case.loss == "gspo":
                inputs["sequence_ratio_mask"] = answer
            if case.inputs == "thresholds":
                inputs["clip_low_threshold"] = rng.uniform(0.5, 0.95, length).astype(np.float32)
                inputs["clip_high_threshold"] = rng.uniform(1.05, 2, length).astype(np.float32)
        data.append(types.Datum(datum.model_input, inputs))
    return data


class Reference:
    """A LoRA adapter on a model of transformers, stepped by torch's AdamW.

    PEFT adds the adapter; the output layer's is written out, since it must not change a tied input embedding.
    """

    def __init__(self, folder: str, adapter: dict[str, torch.Tensor], rank: int = 8):
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
        modules = sorted({name.split(".")[-3] for name in adapter if not name.startswith(UNEMBED)})
        if modules:
            get_peft_model(
                self.model, LoraConfig(r=rank, lora_alpha=32, target_modules=modules)
            )  # changes the model in place
        named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.parameters = {
            "base_model.model." + name.replace(".default", ""): value for name, value in named.items()
        }
        self.unembed = [
            torch.nn.Parameter(adapter[name]) for name in sorted(adapter) if name.startswith(UNEMBED)
        ]
        self.parameters |= {
            f"{UNEMBED}.lora_{letter}.weight": value for letter, value in zip("AB", self.unembed, strict=True)
        }
        self.scale = 32 / rank
        assert self.parameters.keys() == adapter.keys()
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(adapter[name])
                value.grad = torch.zeros_like(value)
        self.optimizer = torch.optim.AdamW(self.parameters.values(), foreach=False)

    def logits(self, tokens: list[int]) -> torch.Tensor:
        hidden = self.model.model(torch.tensor([tokens])).last_hidden_state[0]
        logits = self.model.lm_head(hidden)
        if self.unembed:
            A, B = self.unembed
            logits = logits + self.scale * (hidden @ A.T) @ B.T
        return logits

    def logprobs(self, datum: types.Datum) -> torch.Tensor:
        targets = datum.loss_fn_inputs["target_tokens"].to_torch()
        values = torch.log_softmax(self.logits(datum.model_input.to_ints()), -1)
        return values.gather(1, targets.reshape(len(targets), -1)).reshape(targets.shape)

    def loss(self, case: Case, data: list[types.Datum]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        logprobs = [self.logprobs(datum) for datum in data]
        if case.loss == "custom":
            return preference_loss(data, logprobs)[0], logprobs
        inputs = [{name: value.to_torch() for name, value in datum.loss_fn_inputs.items()} for datum in data]
        return sum(
            datum_loss(case.loss, case.config, *pair) for pair in zip(inputs, logprobs, strict=True)
        ), logprobs

    def backward(self, case: Case, data: list[types.Datum]) -> "Reference":
        self.loss(case, data)[0].backward()
        return self

    def gradients(self) -> dict[str, torch.Tensor]:
        return {name: value.grad for name, value in self.parameters.items()}

    def step(self, adam: types.AdamParams) -> None:
        if adam.grad_clip_norm:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), adam.grad_clip_norm)
        self.optimizer.param_groups[0].update(
            lr=adam.learning_rate,
            betas=(adam.beta1, adam.beta2),
            eps=adam.eps,
            weight_decay=adam.weight_decay,
        )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)


class Stub:
    """A stub with one small model of each family, and what the tests ask of it."""

    def __init__(self, server: Server, models: dict[str, str]):
        self.server, self.models = server, models
        self.service, self.rest = server.connect(), server.rest()
        self.names = (f"export-{number}" for number in itertools.count())
        self.trained = cache(self._trained)

    def create(self, family: str = "llama", unembed: bool = False, rank: int = 8, **options):
        return self.service.create_lora_training_client(
            self.models[family], rank=rank, train_unembed=unembed, **{"seed": 1, **options}
        ).result()

    def _trained(self, family: str, unembed: bool = False, rank: int = 8) -> str:
        """The saved state of an adapter whose B is not zero any more."""
        client = self.create(family, unembed, rank)
        data = make_data(CROSS_ENTROPY, seed=7)
        for _ in range(4):
            CROSS_ENTROPY.submit(client, data)
            client.optim_step(types.AdamParams(learning_rate=2e-2))
        return client.save_state("trained").result().path

    def pair(self, family: str, unembed: bool = False, rank: int = 8):
        """A client with a trained adapter and a fresh optimizer, and the reference at the same weights."""
        client = self.service.create_training_client_from_state(self.trained(family, unembed, rank)).result()
        adapter = self.export(client)
        assert all(value.any() for value in adapter.values())
        return client, Reference(self.models[family], adapter, rank)

    def files(self, client) -> dict[str, bytes]:
        urls = (
            self.rest.get_external_weights_urls(client.save_weights_external(next(self.names)).result().path)
            .result()
            .urls
        )
        return {name: urllib.request.urlopen(url, timeout=30).read() for name, url in urls.items()}

    def export(self, client) -> dict[str, torch.Tensor]:
        return load(self.files(client)["adapter_model.safetensors"])

    def gradients(self, client) -> dict[str, torch.Tensor]:
        """The gradients that the next optimizer step would use. They end up in the weights, so a test asks
        once.
        """
        before = self.export(client)
        client.optim_step(UNIT).result()
        after = self.export(client)
        return {name: before[name] - after[name] for name in before}


@pytest.fixture(scope="module")
def stub(tmp_path_factory, base_model):
    from transformers import AutoConfig, AutoModelForCausalLM

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # such small models are faster so
    folders = {family: tmp_path_factory.mktemp("models") / "deep" / family for family in FAMILIES}
    for family, folder in folders.items():
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            family,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=VOCAB,
            max_position_embeddings=128,
            tie_word_embeddings=family == "llama",
            initializer_range=0.15,
        )
        config.update(
            {"head_dim": 16} if family == "qwen3" else {"sliding_window": None} if family == "mistral" else {}
        )
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with (
            torch.no_grad()
        ):  # norms that are not one and biases that are not zero, so that a missing one shows
            for name, parameter in model.named_parameters():
                if "norm" in name or "bias" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        model.save_pretrained(folder)
        for file in base_model.glob("tokenizer*"):
            shutil.copy(file, folder)
    others = [argument for family in FAMILIES[1:] for argument in ("--base-model", str(folders[family]))]
    server = Server(folders["llama"], tmp_path_factory.mktemp("stub"), *others, "--threads", "1")
    made = Stub(server, {family: str(folder) for family, folder in folders.items()})
    yield made
    torch.set_num_threads(threads)
    made.service.close("success").result()
    server.stop()
    assert "Traceback" not in server.log.read_text()


def assert_close(
    values: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-3
) -> None:
    """Each tensor is within `tolerance` of the expected one, by the norm."""
    assert values.keys() == expected.keys()
    for name, value in values.items():
        wanted = expected[name].detach()
        assert value.shape == wanted.shape
        assert (value - wanted).norm() <= tolerance * wanted.norm(), name


def assert_output(
    output, case: Case, data: list[types.Datum], loss: torch.Tensor, logprobs: list[torch.Tensor]
) -> None:
    assert output.metrics["loss:sum"] == pytest.approx(loss.item(), rel=1e-5)
    assert len(output.loss_fn_outputs) == len(data)
    for own, wanted, datum in zip(output.loss_fn_outputs, logprobs, data, strict=True):
        own = own["logprobs"].to_torch()
        assert own.shape == wanted.shape
        if case.inputs == "sparse":
            listed = (datum.loss_fn_inputs["target_tokens"].to_torch() != 0) | (
                datum.loss_fn_inputs["weights"].to_torch() != 0
            )
            own, wanted = own[listed], wanted[listed]
        torch.testing.assert_close(own, wanted.detach(), rtol=0, atol=1e-4)


def identical(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Every loss on two of the settings, cross-entropy on all.
SETTINGS = [(family, unembed) for family in FAMILIES for unembed in (False, True)]
PAIRS = [
    pytest.param(case, *setting, id=f"{name}-{setting[0]}{'-unembed' * setting[1]}")
    for name, case in CASES.items()
    for setting in SETTINGS
    if name == "cross_entropy" or setting in [("qwen3", False), ("llama", True)]
]


@pytest.mark.parametrize("case, family, unembed", PAIRS)
def test_logprobs_loss_and_gradients(stub, case, family, unembed):
    client, reference = stub.pair(family, unembed)
    data = make_data(case, reference)
    loss, logprobs = reference.loss(case, data)
    loss.backward()
    if case.loss != "custom":
        assert_output(
            client.forward(data, case.loss, case.config or None).result(), case, data, loss, logprobs
        )
    assert_output(case.submit(client, data).result(), case, data, loss, logprobs)
    assert_close(stub.gradients(client), reference.gradients())


@pytest.mark.parametrize("case, family, unembed", PAIRS)
def test_parameters_after_five_steps(stub, case, family, unembed):
    client, reference = stub.pair(family, unembed)
    data = make_data(case, reference)
    for number, adam in enumerate(STEPS):
        if number < 4:
            case.submit(client, data)
            reference.backward(case, data)
        client.optim_step(adam).result()
        reference.step(adam)
    assert_close(stub.export(client), reference.parameters)


def test_the_data_clip_some_ratios_and_not_others(stub):
    """What makes the cases above tell the losses apart: moving a threshold, or leaving it out, changes the
    loss.
    """
    _, reference = stub.pair("qwen3")
    for name in ("ppo", "cispo", "gspo"):
        data = make_data(Case(name, CLIP), reference)
        bounds = itertools.product([0.0, 0.7, 1.0], [1.0, 1.4, 1e6])
        losses = [
            reference.loss(Case(name, {"clip_low_threshold": low, "clip_high_threshold": high}), data)[
                0
            ].item()
            for low, high in bounds
        ]
        assert min(abs(a - b) for a, b in itertools.combinations(losses, 2)) > 1e-2, name


def test_many_datums_in_one_call(stub):
    """More than the SDK or the server takes at once."""
    client, reference = stub.pair("llama", unembed=True)
    data = make_data(CROSS_ENTROPY, lengths=[3 + 7 * number % 89 for number in range(60)])
    loss, logprobs = reference.loss(CROSS_ENTROPY, data)
    loss.backward()
    assert_output(CROSS_ENTROPY.submit(client, data).result(), CROSS_ENTROPY, data, loss, logprobs)
    assert_close(stub.gradients(client), reference.gradients())


def test_gradients_accumulate_until_the_step(stub):
    client, reference = stub.pair("qwen2")
    calls = [
        (case, make_data(case, reference, seed=seed))
        for seed, case in enumerate([CROSS_ENTROPY, CASES["ppo"]])
    ]
    for adam in (STEPS[0], UNIT):
        for case, data in calls:
            case.submit(client, data)
            reference.backward(case, data)
        if adam is not UNIT:
            client.optim_step(adam)
            reference.step(adam)
    assert_close(stub.gradients(client), reference.gradients())


def test_a_step_without_gradient_is_one_with_gradient_zero(stub):
    client, reference = stub.pair("qwen3")
    start = stub.export(client)
    client.optim_step(STEPS[0]).result()
    decayed = {
        name: value * (1 - STEPS[0].learning_rate * STEPS[0].weight_decay) for name, value in start.items()
    }
    assert_close(stub.export(client), decayed, 1e-6)
    reference.step(STEPS[0])
    data = make_data(CROSS_ENTROPY)
    CROSS_ENTROPY.submit(client, data)
    reference.backward(CROSS_ENTROPY, data)
    for adam in STEPS[1:4]:  # the first has a gradient, the others go on by its momentum
        client.optim_step(adam)
        reference.step(adam)
    assert_close(stub.export(client), reference.parameters)


def test_forward_changes_nothing(stub):
    client, reference = stub.pair("qwen3")
    start = stub.export(client)
    for case in CASES.values():
        if case.loss != "custom":
            data = make_data(case, reference)
            outputs = [client.forward(data, case.loss, case.config or None).result() for _ in range(2)]
            assert outputs[0].metrics["loss:sum"] == outputs[1].metrics["loss:sum"]
    assert identical(stub.export(client), start)
    assert not any(value.any() for value in stub.gradients(client).values())


@pytest.mark.parametrize(
    "attention, mlp, unembed", [flags for flags in itertools.product([True, False], repeat=3) if any(flags)]
)
def test_exactly_the_chosen_layers_are_trained(stub, attention, mlp, unembed):
    client = stub.create("mistral", unembed, rank=4, train_attn=attention, train_mlp=mlp)
    modules = ATTENTION * attention + MLP * mlp
    names = [f"base_model.model.model.layers.{layer}.{module}" for layer in (0, 1) for module in modules] + [
        UNEMBED
    ] * unembed
    start = stub.export(client)
    assert start.keys() == {f"{name}.lora_{letter}.weight" for name in names for letter in "AB"}
    reference = Reference(stub.models["mistral"], start, rank=4)
    data = make_data(CROSS_ENTROPY)
    for adam in STEPS[:3]:
        CROSS_ENTROPY.submit(client, data)
        client.optim_step(adam)
        reference.backward(CROSS_ENTROPY, data)
        reference.step(adam)
    final = stub.export(client)
    assert all((final[name] - start[name]).any() for name in final)
    assert_close(final, reference.parameters)


@pytest.mark.parametrize("rank", [1, 4, 64])
@pytest.mark.parametrize("family, unembed", [("qwen3", False), ("llama", True)])
def test_alpha_is_32_whatever_the_rank(stub, family, unembed, rank):
    client, reference = stub.pair(family, unembed, rank)
    config = json.loads(stub.files(client)["adapter_config.json"])
    assert (config["r"], config["lora_alpha"]) == (rank, 32)
    data = make_data(CROSS_ENTROPY)
    loss, logprobs = reference.loss(CROSS_ENTROPY, data)
    loss.backward()
    assert_output(CROSS_ENTROPY.submit(client, data).result(), CROSS_ENTROPY, data, loss, logprobs)
    assert_close(stub.gradients(client), reference.gradients())


@pytest.mark.parametrize("unembed", [False, True])
def test_initial_weights(stub, unembed):
    """A is uniform within ±1/sqrt(in), as PEFT's Kaiming initialisation is; B is zero; the seed decides."""
    start = stub.export(stub.create("llama", unembed, rank=64, seed=3))
    seen = []
    for name, value in start.items():
        if "lora_B" in name:
            assert not value.any()
            continue
        bound = 1 / math.sqrt(value.shape[1])
        assert 0.97 * bound < value.max() <= bound and -bound <= value.min() < -0.97 * bound
        assert value.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert abs(value.mean().item()) < 0.06 * bound
        assert not any(value.shape == other.shape and torch.equal(value, other) for other in seen)
        seen.append(value)
    assert len(seen) == 14 + unembed
    assert identical(stub.export(stub.create("llama", unembed, rank=64, seed=3)), start)
    others = [stub.export(stub.create("llama", unembed, rank=64, seed=seed)) for seed in (4, None, None)]
    for one, other in itertools.combinations([start, *others], 2):
        assert not any(torch.equal(one[name], other[name]) for name in one if "lora_A" in name)


@pytest.mark.parametrize("family, unembed", [("qwen3", False), ("llama", True)])
def test_resumed_training(stub, family, unembed):
    """With the optimizer's state it goes on bit by bit; without, it is a fresh AdamW at the saved weights."""
    client, _ = stub.pair(family, unembed)
    data = make_data(CROSS_ENTROPY, seed=2)

    def train(client, parameters):
        for adam in parameters:
            CROSS_ENTROPY.submit(client, data)
            client.optim_step(adam).result()
        return stub.export(client)

    saved = train(client, STEPS[:2])
    path = client.save_state("saved").result().path
    final = train(client, STEPS[2:])
    with_optimizer = stub.service.create_training_client_from_state_with_optimizer(path).result()
    without = stub.service.create_training_client_from_state(path).result()
    assert identical(stub.export(with_optimizer), saved) and identical(stub.export(without), saved)
    assert identical(train(with_optimizer, STEPS[2:]), final)

    fresh = Reference(stub.models[family], saved)
    for adam in STEPS[2:]:
        fresh.backward(CROSS_ENTROPY, data).step(adam)
    assert_close(train(without, STEPS[2:]), fresh.parameters)
    with pytest.raises(AssertionError):
        assert_close(final, fresh.parameters)

    client.load_state_with_optimizer(path).result()
    assert identical(train(client, STEPS[2:]), final)
    client.load_state(path).result()
    assert_close(train(client, STEPS[2:]), fresh.parameters)


@pytest.mark.parametrize("family, unembed", SETTINGS)
def test_samplers_keep_the_weights_of_their_time(stub, family, unembed):
    client, _ = stub.pair(family, unembed)
    data, tokens = make_data(CROSS_ENTROPY, seed=3), np.random.default_rng(5).integers(0, VOCAB, 23).tolist()
    samplers, references = [], []
    for save in (
        lambda: client.save_weights_and_get_sampling_client().result(),
        lambda: stub.service.create_sampling_client(
            model_path=client.save_weights_for_sampler("kept").result().path
        ).result(),
    ):
        samplers.append(save())
        references.append(Reference(stub.models[family], stub.export(client)))
        for _ in range(3):
            CROSS_ENTROPY.submit(client, data)
            client.optim_step(STEPS[0]).result()
    prompt = types.ModelInput.from_ints(tokens)
    samples = [
        sampler.sample(prompt, 1, types.SamplingParams(max_tokens=6, seed=1, temperature=1.0, stop=[]))
        for sampler in samplers
    ]
    scores = [sampler.compute_logprobs(prompt) for sampler in samplers]
    wanted = []
    for reference, sample, score in zip(references, samples, scores, strict=True):
        [sequence] = sample.result().sequences
        assert len(sequence.tokens) == 6
        whole = tokens + sequence.tokens
        with torch.no_grad():
            logprobs = (
                torch.log_softmax(reference.logits(whole[:-1]), -1)
                .gather(1, torch.tensor(whole[1:])[:, None])[:, 0]
                .tolist()
            )
        assert score.result()[0] is None
        assert score.result()[1:] + sequence.logprobs == pytest.approx(logprobs, rel=0, abs=1e-4)
        wanted.append(logprobs[: len(tokens) - 1])
    assert wanted[0] != pytest.approx(wanted[1], rel=0, abs=1e-2)
