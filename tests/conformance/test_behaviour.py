"""What any server of Tinker's protocol does, asked through the real SDK and through OpenAI's client."""

import numpy as np
import openai
import pytest
import tinker
from stub import datum, datums, greedy, prompt, train
from tinker import types


@pytest.fixture()
def client(server, service):
    return service.create_lora_training_client(server.model, rank=8, seed=1, train_unembed=False).result()


def test_training_lowers_the_loss_and_reports_every_logprob(client):
    losses = train(client, 12)
    assert losses[-1] < 0.8 * losses[0]
    output = client.forward(datums(), "cross_entropy").result()
    assert [len(item["logprobs"].tolist()) for item in output.loss_fn_outputs] == [20] * 6
    summed = -sum(
        np.dot(item["logprobs"].to_numpy(), given.loss_fn_inputs["weights"].to_numpy())
        for item, given in zip(output.loss_fn_outputs, datums(), strict=True)
    )
    assert output.metrics["loss:sum"] == pytest.approx(summed, rel=1e-4)


def test_the_same_seed_gives_the_same_training(server, service, client, closeness):
    other = service.create_lora_training_client(server.model, rank=8, seed=1, train_unembed=False).result()
    assert train(client, 3) == pytest.approx(train(other, 3), rel=closeness)


def test_a_sampler_is_a_snapshot(service, client, closeness):
    train(client, 4)
    path = client.save_weights_for_sampler("snap").result().path
    before = service.create_sampling_client(model_path=path).result()
    prompts = [(1, 2, 3), (500, 7), (44, 45, 46, 47)]
    answers = [greedy(before, *tokens) for tokens in prompts]
    scores = before.compute_logprobs(prompt(1, 2, 3, 4)).result()
    train(client, 8)
    assert [greedy(before, *tokens) for tokens in prompts] == answers
    assert before.compute_logprobs(prompt(1, 2, 3, 4)).result()[1:] == pytest.approx(
        scores[1:], rel=closeness
    )
    fresh = client.save_weights_and_get_sampling_client()
    fresh = fresh.result() if hasattr(fresh, "result") else fresh
    assert fresh.compute_logprobs(prompt(1, 2, 3, 4)).result()[1:] != pytest.approx(scores[1:], rel=closeness)


def test_stop_strings_and_tokens_end_a_sample_and_stay_in_it(service, server):
    sampler = service.create_sampling_client(base_model=server.model).result()
    tokens = greedy(sampler)
    by_token = (
        sampler.sample(prompt(), 1, types.SamplingParams(max_tokens=12, temperature=0.0, stop=[tokens[3]]))
        .result()
        .sequences[0]
    )
    assert by_token.stop_reason == "stop" and by_token.tokens == tokens[: tokens.index(tokens[3]) + 1]
    tokenizer = sampler.get_tokenizer()
    text = tokenizer.decode(tokens)
    piece = text[len(text) // 2 : len(text) // 2 + 3]
    by_text = (
        sampler.sample(prompt(), 1, types.SamplingParams(max_tokens=12, temperature=0.0, stop=[piece]))
        .result()
        .sequences[0]
    )
    assert (
        by_text.stop_reason == "stop"
        and piece in tokenizer.decode(by_text.tokens)
        and len(by_text.tokens) < 12
    )


def test_several_samples_with_a_seed_repeat(service, server):
    sampler = service.create_sampling_client(base_model=server.model).result()
    params = types.SamplingParams(max_tokens=8, temperature=1.0, seed=7, stop=[])
    first = [s.tokens for s in sampler.sample(prompt(), 4, params).result().sequences]
    crowd = [
        sampler.sample(prompt(i, i + 1), 1, types.SamplingParams(max_tokens=8, stop=[])) for i in range(1, 9)
    ]
    again = [s.tokens for s in sampler.sample(prompt(), 4, params).result().sequences]
    assert first == again and len({tuple(tokens) for tokens in first}) > 1
    assert all(len(future.result().sequences[0].tokens) == 8 for future in crowd)


def test_state_resumes_where_it_was(service, client, closeness):
    train(client, 3)
    path = client.save_state("middle").result().path
    straight = train(client, 3)
    resumed = service.create_training_client_from_state_with_optimizer(path).result()
    assert train(resumed, 3) == pytest.approx(straight, rel=closeness)
    bare = service.create_training_client_from_state(
        path
    ).result()  # without Adam's moments it goes elsewhere
    assert train(bare, 3)[1:] != pytest.approx(straight[1:], rel=closeness)
    client.load_state_with_optimizer(path).result()
    assert train(client, 3) == pytest.approx(straight, rel=closeness)


def test_checkpoints_are_listed_and_deleted(server, client):
    train(client, 1)
    rest = server.rest()
    paths = [client.save_state("one").result().path, client.save_weights_for_sampler("two").result().path]
    run = paths[0].split("/")[2]
    listed = {c.tinker_path: c for c in rest.list_checkpoints(run).result().checkpoints}
    assert set(listed) == set(paths) and listed[paths[0]].size_bytes > 0
    assert rest.get_weights_info_by_tinker_path(paths[0]).result().lora_rank == 8
    assert rest.get_training_run(run).result().base_model == server.model
    assert run in [r.training_run_id for r in rest.list_training_runs().result().training_runs]
    rest.delete_checkpoint_from_tinker_path(paths[0]).result()
    assert [c.tinker_path for c in rest.list_checkpoints(run).result().checkpoints] == paths[1:]


def test_a_name_is_not_overwritten_in_silence(client):
    client.save_state("once").result()
    with pytest.raises(tinker.TinkerError, match="exists"):
        client.save_state("once").result()


@pytest.mark.parametrize("loss", ["importance_sampling", "ppo"])
def test_losses_of_policies_count_the_advantages_where_nothing_has_changed(client, closeness, loss):
    """At a ratio of 1, both are minus the sum of the advantages."""
    tokens, targets, advantages = [5, 6, 7, 8], [6, 7, 8, 9], [0.5, -1.0, 2.0, 0.25]
    plain = datum(tokens, target_tokens=targets, weights=[1.0] * 4)
    output = client.forward([plain], "cross_entropy").result().loss_fn_outputs[0]
    logprobs = output["logprobs"].to_numpy().tolist()
    example = datum(tokens, target_tokens=targets, logprobs=logprobs, advantages=advantages)
    metrics = client.forward_backward([example], loss).result().metrics
    assert metrics["loss:sum"] == pytest.approx(-sum(advantages), rel=max(closeness, 1e-4))


def test_what_cannot_be_done_is_an_error_at_once(service, client):
    wrong = datum([1, 2, 3], target_tokens=[2, 3, 4], weights=[1.0] * 3)
    calls = [
        lambda: service.create_lora_training_client("no/such-model"),
        lambda: service.create_sampling_client(model_path="tinker://nobody/sampler_weights/x"),
        lambda: client.forward_backward([wrong], "no_such_loss"),
    ]
    for call in calls:
        with pytest.raises((tinker.TinkerError, ValueError)) as caught:
            call().result(timeout=30)
        assert not isinstance(caught.value, TimeoutError)
    assert client.forward(datums(), "cross_entropy").result().metrics["loss:sum"] > 0  # the server goes on


@pytest.fixture(scope="module")
def by_openai(server):
    """OpenAI's client, where hosted Tinker has its endpoint: behind the server's own address."""
    with openai.OpenAI(base_url=f"{server.url}/oai/api/v1", api_key=server.key, max_retries=0) as client:
        yield client


def test_openai_completions_of_a_base_model_and_a_checkpoint(server, service, client, by_openai):
    train(client, 1)
    path = client.save_weights_for_sampler("for-openai").result().path
    for model, which in ((server.model, {"base_model": server.model}), (path, {"model_path": path})):
        sampler = service.create_sampling_client(**which).result()
        tokenizer = sampler.get_tokenizer()
        text = "The capital of France is"
        answer = by_openai.completions.create(model=model, prompt=text, max_tokens=8, temperature=0)
        params = types.SamplingParams(max_tokens=8, temperature=0.0)
        expected = sampler.sample(prompt(*tokenizer.encode(text)), 1, params).result().sequences[0].tokens
        assert answer.choices[0].text == tokenizer.decode(expected, skip_special_tokens=True)
        assert answer.usage.completion_tokens == len(expected)


def test_an_openai_chat_streams_what_it_answers_whole(server, by_openai):
    messages = [{"role": "user", "content": "Name a colour."}]
    asked = {"model": server.model, "messages": messages, "max_tokens": 8, "temperature": 0}
    whole = by_openai.chat.completions.create(**asked).choices[0]
    parts = [part.choices[0] for part in by_openai.chat.completions.create(**asked, stream=True)]
    assert "".join(part.delta.content or "" for part in parts) == whole.message.content
    assert [part.finish_reason for part in parts if part.finish_reason] == [whole.finish_reason]
