"""The reference for `test_stub_reference.py`: losses, gradients and AdamW by plain transformers, PEFT and
torch, in float32, and the stub as the real SDK sees it.
"""

import itertools
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
            f"{UNEMBED}.lora_{letter}.weight": value
            for letter, value in zip("AB", self.unembed, strict=False)
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
