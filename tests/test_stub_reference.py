"""Training on the stub, seen through the real SDK, against plain transformers, PEFT and torch's AdamW in
float32.
"""

import itertools
import json
import math
import shutil

import numpy as np
import pytest
import torch
from stub import Server
from stub_reference import (
    ATTENTION,
    CASES,
    CLIP,
    CROSS_ENTROPY,
    FAMILIES,
    MLP,
    STEPS,
    UNEMBED,
    UNIT,
    VOCAB,
    Case,
    Reference,
    Stub,
    assert_close,
    assert_output,
    make_data,
)
from tinker import types
from tiny_models import NARROW, disturb


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
            **NARROW,
            vocab_size=VOCAB,
            max_position_embeddings=128,
            tie_word_embeddings=family == "llama",
            initializer_range=0.15,
        )
        config.update(
            {"head_dim": 16} if family == "qwen3" else {"sliding_window": None} if family == "mistral" else {}
        )
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        disturb(model)
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


def identical(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Every loss on two of the settings, cross-entropy on all.
SETTINGS = [(family, unembed) for family in FAMILIES for unembed in (False, True)]
TWO = [("qwen3", False), ("llama", True)]
PAIRS = [
    pytest.param(case, *setting, id=f"{name}-{setting[0]}{'-unembed' * setting[1]}")
    for name, case in CASES.items()
    for setting in SETTINGS
    if name == "cross_entropy" or setting in TWO
]
# What AdamW sees of a loss is its gradient.
STEPPED = [pair for pair in PAIRS if pair.values[0] in (CROSS_ENTROPY, CASES["ppo"])]


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


@pytest.mark.parametrize("case, family, unembed", STEPPED)
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
@pytest.mark.parametrize("family, unembed", TWO)
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


@pytest.mark.parametrize("family, unembed", TWO)
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


@pytest.mark.parametrize("family, unembed", TWO)
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
