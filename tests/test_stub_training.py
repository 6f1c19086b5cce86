"""The stub's own forward, backward and optimizer against plain transformers + PEFT in float32."""

import numpy as np
import pytest
import torch
from tiny_models import NARROW, disturb

from helpers.stub_tinker.lora import Layout, LoraState
from helpers.stub_tinker.losses import Example
from helpers.stub_tinker.model import Adapters, Model, _attend
from helpers.stub_tinker.packing import PLACE, Packed, micro_batches
from helpers.stub_tinker.training import forward_backward as passes


def forward_backward(*arguments, **keywords):
    """The result of all micro-batches."""
    steps = passes(*arguments, **keywords)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


ADAM = {
    "learning_rate": 1e-2,
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-8,
    "weight_decay": 0.01,
    "grad_clip_norm": 0.5,
}


def make_model(family: str, folder):
    """A small random model of a family, saved as a Hugging Face folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        **NARROW,
        head_dim=16,
        vocab_size=97,
        max_position_embeddings=64,
        tie_word_embeddings=family == "llama",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    disturb(model)
    model.save_pretrained(folder)
    return model


def make_examples(vocab: int, lengths=(9, 17, 4, 17)) -> list[Example]:
    rng = np.random.default_rng(0)
    examples = []
    for length in lengths:
        tokens = rng.integers(0, vocab, length + 1)
        weights = (np.arange(length) >= length // 3).astype(np.float32) * rng.uniform(0.5, 2, length).astype(
            np.float32
        )
        examples.append(Example(tokens[:-1].tolist(), tokens[1:, None], {"weights": weights[:, None]}))
    return examples


def make_family(vocab: int) -> list[Example]:
    """Two answers to a prompt, one that differs later, one that another contains, and one by itself."""
    examples = make_examples(vocab, lengths=(18, 16, 15, 9, 14))
    for place, shared in enumerate((11, 11, 13, 9)):
        examples[place].tokens[:shared] = examples[0].tokens[:shared]
        examples[place].targets[: shared - 1] = examples[0].targets[: shared - 1]
    return examples


def make_soft_family(vocab: int) -> list[Example]:
    """The same with two weighted targets a token: on some shared rows alike, on others not."""
    found = []
    for place, example in enumerate(make_family(vocab)):
        weights = example.inputs["weights"]
        targets = np.hstack([example.targets, (example.targets + 1 + place // 2) % vocab])
        found.append(Example(example.tokens, targets, {"weights": np.hstack([weights, weights / 2])}))
    return found


class Reference:
    """The same LoRA through PEFT, one example at a time, no padding."""

    def __init__(self, base, state: LoraState):
        from peft import LoraConfig, get_peft_model

        names = [m.split(".")[-1] for m in state.layout.modules]
        self.model = get_peft_model(
            base, LoraConfig(r=state.layout.rank, lora_alpha=32, target_modules=names)
        )
        self.parameters = {
            n.replace(".default", ""): p for n, p in self.model.named_parameters() if p.requires_grad
        }
        with torch.no_grad():
            for name, value in state.layout.named(state.flat.data).items():
                self.parameters[name].copy_(value)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01
        )

    def loss(self, examples):
        total, logprobs = 0.0, []
        for example in examples:
            logits = self.model(torch.tensor([example.tokens])).logits[0].float()
            values = torch.log_softmax(logits, -1).gather(1, torch.from_numpy(example.targets))
            logprobs.append(values.detach().numpy())
            total = total - (values * torch.from_numpy(example.inputs["weights"])).sum()
        return total, logprobs


# `test_stub_reference.py` has the others.
ONE_FAMILY = pytest.mark.parametrize("pair", ["qwen3"], indirect=True)


@pytest.fixture(params=["llama", "qwen2", "qwen3"])
def pair(request, tmp_path):
    base = make_model(request.param, tmp_path)
    model = Model(tmp_path, torch.device("cpu"), torch.float32)
    state = LoraState(
        Layout(model.config, rank=8, train_attn=True, train_mlp=True), seed=0, device=torch.device("cpu")
    )
    with torch.no_grad():
        state.flat.add_(
            torch.randn(state.flat.shape, generator=torch.Generator().manual_seed(1)) * 0.05
        )  # B is not zero
    return model, state, Reference(base, state)


@pytest.mark.parametrize("make", [make_family, make_soft_family])  # and `test_stub_reference.py`, plain ones
def test_logprobs_gradients_and_parameters_match_peft(pair, make):
    model, state, reference = pair
    examples = make(model.config.vocab)
    for _ in range(5):
        forward, _ = forward_backward(model, state, examples, "cross_entropy", {}, forward_only=True)
        logprobs, metrics = forward_backward(model, state, examples, "cross_entropy", {}, forward_only=False)
        loss, expected = reference.loss(examples)
        assert metrics["loss:sum"] == pytest.approx(float(loss.detach()), rel=1e-5)
        for own, plain, theirs in zip(logprobs, forward, expected, strict=True):
            np.testing.assert_allclose(own, theirs, atol=1e-4)
            np.testing.assert_allclose(plain, theirs, atol=1e-4)
        loss.backward()
        for name, gradient in state.layout.named(state.grad).items():
            wanted = reference.parameters[name].grad
            assert (gradient - wanted).norm() <= 1e-3 * wanted.norm(), name
        torch.nn.utils.clip_grad_norm_(reference.parameters.values(), 0.5)
        reference.optimizer.step()
        reference.optimizer.zero_grad()
        state.step(ADAM)
    for name, value in state.layout.named(state.flat.data).items():
        wanted = reference.parameters[name].detach()
        assert (value - wanted).norm() <= 1e-3 * wanted.norm(), name


@ONE_FAMILY
def test_gradients_accumulate_until_the_step(pair):
    model, state, _ = pair
    examples = make_examples(model.config.vocab)
    forward_backward(model, state, examples, "cross_entropy", {}, False)
    together = state.grad.clone()
    state.grad = None
    for example in examples:
        forward_backward(model, state, [example], "cross_entropy", {}, False)
    torch.testing.assert_close(state.grad, together, rtol=1e-3, atol=1e-4)
    state.step(ADAM)
    assert state.grad is None


def test_weight_zero_tokens_change_neither_loss_nor_gradient(pair):
    model, state, _ = pair
    examples = make_examples(model.config.vocab, lengths=(12,))
    examples[0].inputs["weights"][:] = 0
    examples[0].inputs["weights"][3:7] = 1
    logprobs, metrics = forward_backward(model, state, examples, "cross_entropy", {}, False)
    before = state.grad.clone()
    state.grad = None
    examples[0].targets[8:] = (examples[0].targets[8:] + 1) % model.config.vocab
    _, changed = forward_backward(model, state, examples, "cross_entropy", {}, False)
    assert changed["loss:sum"] == pytest.approx(metrics["loss:sum"])
    assert metrics["loss:sum"] == pytest.approx(-float(logprobs[0][3:7].sum()), rel=1e-5)
    torch.testing.assert_close(state.grad, before)


@ONE_FAMILY
def test_training_state_survives_save_and_load(pair):
    """Two steps in one go end where one step, a save, a load into a fresh client and another step end."""
    model, state, _ = pair
    examples = make_examples(model.config.vocab)
    forward_backward(model, state, examples, "cross_entropy", {}, False)
    state.step(ADAM)
    other = LoraState(state.layout, seed=9, device=torch.device("cpu"))
    other.load(
        {k: v.clone() for k, v in state.layout.named(state.flat.data).items()}, state.optimizer_tensors()
    )
    for client in (state, other):
        forward_backward(model, client, examples, "cross_entropy", {}, False)
        client.step(ADAM)
    torch.testing.assert_close(other.flat, state.flat, rtol=0, atol=0)


def test_long_attention_path_agrees_with_the_short_one(pair, monkeypatch):
    model, state, _ = pair
    packed = Packed([example.tokens for example in make_examples(model.config.vocab)], model.device)
    adapters = Adapters(
        torch.float32, segments=[(state.layout.views(state.flat.data), state.layout.scale, None)]
    )
    with torch.no_grad():
        short = model.hidden(packed, adapters)
        q = torch.randn(2, 4, 30, 16)
        k, v = torch.randn(2, 2, 2, 30, 16)
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(_attend(q, k, v), expected, rtol=1e-4, atol=1e-5)
    assert short.shape == (packed.size, model.config.hidden)


def test_a_layer_keeps_the_inputs_of_its_steps_and_no_more(pair):
    """What norms and silu give is computed again in the backward pass, and no padding is kept twice."""
    model, state, _ = pair
    c, rows, kept = model.config, 64, {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    adapters = Adapters(torch.float32, True, state.training_groups(torch.float32), state.layout.scale)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        x, angles = model.start(packed := Packed([[1] * 16] * 4, model.device), adapters)
        kept.clear()
        alive = model.layer(0, x, packed, angles, adapters)
    attention = (c.heads + 2 * c.kv_heads) * c.head_dim + c.heads * 16 + c.heads * c.head_dim
    norms = (c.heads + c.kv_heads) * c.head_dim if model.layers[0]["q_norm"] is not None else 0
    lora = 7 * state.layout.rank
    assert alive.requires_grad
    assert sum(kept.values()) <= 1.1 * 4 * rows * (
        2 * c.hidden + attention + norms + 2 * NARROW["intermediate_size"] + lora
    )


@pytest.mark.parametrize(
    "lengths, rows, places",
    [
        ([75, 80, 66, 71, 78, 60, 79, 70], 592, 8 * 80),  # 579 tokens
        ([80, 80, 80, 80], 320, 4 * 80),
        ([16], 64, 4 * 16),  # no sequence is shorter than the longest
        ([512], 512, 512),
    ],
)
def test_filler_takes_little_room(lengths, rows, places):
    packed = Packed([[1] * n for n in lengths], torch.device("cpu"))
    slots, size = packed.slots.tolist(), sum(lengths)
    assert (len(packed.tokens), packed.count * packed.longest) == (rows, places)
    assert len({*slots}) == rows and all(0 <= slot < places for slot in slots)
    assert all(
        slot % packed.longest >= [*lengths, *[0] * packed.count][slot // packed.longest]
        for slot in slots[size:]
    )


def test_micro_batches_hold_every_sequence_once_within_the_limit():
    lengths = [5, 900, 40, 700, 1500, 3]
    batches = micro_batches([[n] * n for n in lengths], 1024)
    assert [indices for indices, _ in batches] == [[5, 0, 2, 3], [1], [4]]


def test_families_stay_together_and_their_beginning_counts_once():
    """Two groups of eight samples, in turns, and a datum that shares too little."""
    prompts = [[1] * 40, [2] * 50]
    sequences = [prompts[n % 2] + [3, n] * (5 + n) for n in range(16)] + [[1] * 20 + [4] * 60]
    whole = micro_batches(sequences, 2000)
    (indices, families), *rest = whole
    assert not rest and sorted(indices) == list(range(17)) and len(set(families)) == 3
    packed = Packed([sequences[i] for i in indices], torch.device("cpu"), families=families)
    answers = sum(2 * (5 + n) for n in range(16))
    assert packed.size == 40 + 50 + answers - 14 + 80 < len(packed.places)  # [3] begins all eight answers

    outlier = [prompts[0] + [5] * 60]
    small = micro_batches(sequences + outlier, 128)
    assert sorted(i for indices, _ in small for i in indices) == list(range(18))
    for indices, families in small:
        packed = Packed([(sequences + outlier)[i] for i in indices], torch.device("cpu"), families=families)
        grid = len(indices) * packed.longest
        assert packed.size <= 128
        assert packed.size == len(packed.places) or packed.size + PLACE * (grid - packed.size) <= 128
