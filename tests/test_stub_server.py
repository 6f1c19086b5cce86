"""The stub backend through the real, unmodified SDK, on a small random model with the real tokenizer."""

import json
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tinker
import torch
from safetensors.torch import load
from stub import GREEDY, datum, datums, greedy, prompt, train
from tinker import types


@pytest.fixture()
def client(server, service):
    return service.create_lora_training_client(server.model, rank=8, seed=1, train_unembed=False).result()


def test_info_and_tokenizer(server, client, base_model):
    from transformers import AutoTokenizer

    info = client.get_info()
    assert info.lora_rank == 8 and info.model_data.model_name == server.model
    text = "Final answer: 42"
    assert client.get_tokenizer().encode(text) == AutoTokenizer.from_pretrained(base_model).encode(text)


def test_sampling_agrees_with_transformers(server, service):
    """Greedy tokens and their logprobs, and prompt logprobs, of the base model."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(server.model, dtype=torch.float32)
    sampler = service.create_sampling_client(base_model=server.model).result()
    prompts = [[5, 6, 7], [100, 200, 300, 400, 500, 600], [9]]
    futures = [
        sampler.sample(prompt(*tokens), 1, types.SamplingParams(**GREEDY, stop=[])) for tokens in prompts
    ]
    for tokens, future in zip(prompts, futures, strict=True):
        sequence = future.result().sequences[0]
        assert sequence.stop_reason == "length" and len(sequence.tokens) == 12
        with torch.no_grad():
            logits = model(torch.tensor([tokens + sequence.tokens])).logits[0].float()
        expected = torch.log_softmax(logits, -1)
        assert expected[len(tokens) - 1 : -1].argmax(-1).tolist() == sequence.tokens
        picked = expected[len(tokens) - 1 : -1].gather(1, torch.tensor(sequence.tokens)[:, None])[:, 0]
        np.testing.assert_allclose(sequence.logprobs, picked, atol=1e-4)
        scored = sampler.compute_logprobs(prompt(*tokens)).result()
        assert scored[0] is None
        own = expected[: len(tokens) - 1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
        np.testing.assert_allclose(scored[1:], own, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.6}, {"top_k": 3}, {"temperature": 0.5}])
def test_samples_follow_the_softmax(service, server, settings):
    """A chi-square test of 1,000 first tokens against what top-k, top-p and temperature leave."""
    from scipy.stats import chisquare
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(server.model, dtype=torch.float32)(
            torch.tensor([[10, 20]])
        ).logits[0, -1]
    probabilities = torch.softmax(logits / settings.get("temperature", 1.0), -1)
    order = probabilities.argsort(descending=True)
    if "top_k" in settings:
        probabilities[order[settings["top_k"] :]] = 0
    if "top_p" in settings:
        outside = probabilities[order].cumsum(0) - probabilities[order] >= settings["top_p"]
        probabilities[order[outside]] = 0
    probabilities = (probabilities / probabilities.sum()).double().numpy()
    sampler = service.create_sampling_client(base_model=server.model).result()
    params = types.SamplingParams(max_tokens=1, seed=3, stop=[], **settings)
    drawn = [s.tokens[0] for s in sampler.sample(prompt(10, 20), 1000, params).result().sequences]
    assert probabilities[drawn].min() > 0  # nothing that was cut off is ever drawn
    tokens = np.argsort(-probabilities)[: int((probabilities > 0).sum())]
    expected_up_to, cuts, before = np.cumsum(probabilities[tokens]) * len(drawn), [], 0.0
    for i, expected in enumerate(expected_up_to, 1):  # bins in which at least 20 are expected
        if expected - before >= 20 and expected_up_to[-1] - expected >= 20:
            cuts.append(i)
            before = expected
    bins = np.split(tokens, cuts)
    observed = np.array([np.isin(drawn, tokens).sum() for tokens in bins], dtype=float)
    expected = np.array([probabilities[tokens].sum() for tokens in bins]) * len(drawn)
    assert len(bins) > 1
    assert chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4


def test_external_weights_are_the_trained_ones(server, service, client, tmp_path):
    train(client, 3)
    path = client.save_weights_external("out").result().path
    answer = server.rest().get_external_weights_urls(path).result()
    assert set(answer.urls) == {"adapter_model.safetensors", "adapter_config.json"}
    with urllib.request.urlopen(answer.urls["adapter_config.json"]) as file:
        config = json.load(file)
    assert (config["r"], config["lora_alpha"]) == (8, 32)
    with urllib.request.urlopen(answer.urls["adapter_model.safetensors"]) as file:
        tensors = load(file.read())
    assert tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"].any()

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    for name, url in answer.urls.items():
        urllib.request.urlretrieve(url, tmp_path / name)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(server.model, dtype=torch.float32), tmp_path
    )
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    with torch.no_grad():
        expected = torch.log_softmax(model(torch.tensor([tokens])).logits[0].float(), -1)[:-1].gather(
            1, torch.tensor(tokens[1:])[:, None]
        )[:, 0]
    sampler = service.create_sampling_client(
        model_path=client.save_weights_for_sampler("same").result().path
    ).result()
    np.testing.assert_allclose(sampler.compute_logprobs(prompt(*tokens)).result()[1:], expected, atol=1e-4)

    forged = answer.urls["adapter_config.json"][:-4] + "0000"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(forged)


def test_the_cookbook_downloads_both_kinds_of_path(server, client, tmp_path, monkeypatch):
    from tinker_cookbook import weights

    monkeypatch.setenv("TINKER_API_KEY", "tml-test")
    train(client, 2)
    plain = client.save_weights_external("plain").result().path
    state = client.save_state("state").result().path
    folders = [
        Path(weights.download(tinker_path=path, output_dir=str(tmp_path / name), base_url=server.url))
        for name, path in (("a", plain), ("b", state))
    ]
    contents = [load((folder / "adapter_model.safetensors").read_bytes()) for folder in folders]
    assert contents[0].keys() == contents[1].keys()
    assert all(torch.equal(contents[0][key], contents[1][key]) for key in contents[0])


def test_a_repeated_request_is_not_done_twice(server, client):
    train(client, 1)
    key = {"X-API-Key": "tml-test"}
    body = json.dumps(
        {"model_id": client.model_id, "seq_id": 10_000, "adam_params": {"learning_rate": 0.5}}
    ).encode()
    before = client.forward(datums(), "cross_entropy").result().metrics["loss:sum"]
    client.forward_backward(datums(), "cross_entropy").result()
    first = server.post("/api/v1/optim_step", body, **key)
    client.forward_backward(datums(), "cross_entropy").result()
    after = client.forward(datums(), "cross_entropy").result().metrics["loss:sum"]
    assert server.post("/api/v1/optim_step", body, **key) == first
    assert client.forward(datums(), "cross_entropy").result().metrics["loss:sum"] == pytest.approx(
        after, rel=1e-6
    )
    assert after != pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize("name", ["../up", "../../etc", "a/b", ".hidden", "x" * 300, "a\x00b", "~root", ""])
def test_hostile_checkpoint_names_are_refused(client, server, name):
    body = json.dumps(
        {"model_id": client.model_id, "seq_id": 777, "path": name, "type": "save_weights_external"}
    ).encode()
    status, answer = server.post("/api/v1/save_weights_external", body, **{"X-API-Key": "tml-test"})
    assert status == 200  # accepted, and then failed, which is how the wire reports it
    request = json.dumps({"request_id": json.loads(answer)["request_id"]}).encode()
    result = json.loads(server.post("/api/v1/retrieve_future", request, **{"X-API-Key": "tml-test"})[1])
    assert result["category"] == "user" and "can't name a checkpoint" in result["error"]
    assert not [path for path in server.state.rglob("*") if path.name in ("up", "etc", "b", ".hidden")]


def bad(**changes) -> types.Datum:
    good = datums(1)[0]
    values = {
        "tokens": good.model_input.to_ints(),
        "target_tokens": good.loss_fn_inputs["target_tokens"].tolist(),
        "weights": good.loss_fn_inputs["weights"].tolist(),
    } | changes
    return datum(**{name: value for name, value in values.items() if value is not None})


@pytest.mark.parametrize(
    ("given", "loss", "words"),
    [
        (bad(tokens=[1, 2, 60000], target_tokens=[2, 3, 4], weights=[1.0] * 3), "cross_entropy", "token ids"),
        (bad(target_tokens=[-5] * 20), "cross_entropy", "target_tokens"),
        (bad(weights=[float("nan")] * 20), "cross_entropy", "NaN"),
        (bad(weights=[1.0] * 7), "cross_entropy", r"shape \[7\] for 20"),
        (bad(target_tokens=None), "cross_entropy", "needs loss_fn_inputs"),
        (
            bad(tokens=[1] * 300, target_tokens=[1] * 300, weights=[1.0] * 300),
            "cross_entropy",
            "context is 256",
        ),
        (bad(), "no_such_loss", "loss"),
    ],
)
def test_bad_training_data_is_refused_and_names_the_fault(client, given, loss, words):
    with pytest.raises(Exception, match=words) as caught:
        client.forward_backward([given], loss).result()
    assert not isinstance(caught.value, (AssertionError, TimeoutError))
    assert client.forward(datums(), "cross_entropy").result().metrics["loss:sum"] > 0  # the server goes on


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/v1/forward_backward", b"\xff\xff\xff", 400),
        ("/api/v1/forward_backward", b"", 400),
        ("/api/v1/create_session", b"[1]", 400),
        ("/api/v1/create_session", b"{", 400),
        ("/api/v1/optim_step", b"{}", 422),
        ("/api/v1/asample", b'{"prompt": 3}', 422),
        ("/api/v1/retrieve_future", b'{"request_id": "nobody"}', 404),
        ("/api/v1/no_such_thing", b"{}", 404),
    ],
)
def test_broken_requests_are_4xx_with_a_message(server, path, body, status):
    code, answer = server.post(path, body)
    assert code == status and json.loads(answer)["detail"]


def test_an_unknown_model_or_path_is_an_error_at_once(service, server):
    with pytest.raises(tinker.TinkerError, match="not offered"):
        service.create_lora_training_client("no/such-model").result()
    with pytest.raises((tinker.TinkerError, ValueError), match=r"no training run|no checkpoint"):
        service.create_sampling_client(model_path="tinker://nobody/sampler_weights/x").result()


def test_samples_of_very_different_lengths_share_the_server(service, server):
    """Long answers limit how many run at once; short ones that join later still end right."""
    sampler = service.create_sampling_client(base_model=server.model).result()
    alone = [greedy(sampler, i, i + 1) for i in range(1, 5)]
    long = [
        sampler.sample(prompt(*range(50, 80)), 1, types.SamplingParams(temperature=0.0, stop=[]))
        for _ in range(2)
    ]
    short = [
        sampler.sample(prompt(i, i + 1), 1, types.SamplingParams(**GREEDY, stop=[])) for i in range(1, 5)
    ]
    assert [future.result().sequences[0].tokens for future in short] == alone
    for future in long:
        sequence = future.result().sequences[0]
        assert (
            len(sequence.tokens) == 256 - 30 and sequence.stop_reason == "length"
        )  # to the end of the context
    with pytest.raises(tinker.TinkerError, match="context is"):
        sampler.sample(prompt(*[1] * 256), 1, types.SamplingParams(**GREEDY)).result()
