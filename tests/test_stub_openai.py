"""OpenAI's API on the stub, by its own client, raw HTTP and Inspect, beside the SDK on the same server."""

import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest
from stub import prompt, train
from test_training import TrainSettings
from tinker import types
from tinker_cookbook import renderers

from helpers.evaluate import evaluate_model, run_inspect_eval
from helpers.evaluate.grading import Verdict
from helpers.stub_tinker import openai_requests
from helpers.train import TrainingLog
from helpers.train.renderers import register_renderers

register_renderers()

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Red."},
    {"role": "user", "content": [{"type": "text", "text": "Another "}, {"type": "text", "text": "one."}]},
]
PLAIN = [{**turn, "content": "Another one."} if isinstance(turn["content"], list) else turn for turn in CHAT]
IDS = {"return_token_ids": True}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/oai/api/v1", api_key=server.key, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def trained(service, server, tmp_path_factory):
    """A training client as notebook 02 makes it, which names its renderer, and its checkpoint."""
    log = TrainingLog(tmp_path_factory.mktemp("log"), TrainSettings())
    client = log.training_client(SimpleNamespace(service_client=service), server.model, rank=8, seed=1)
    train(client, 3)
    return client, client.save_weights_for_sampler("for-openai").result().path


def streamed(parts) -> tuple[str, str, list]:
    """Text, why it ended, and the parts of a streamed chat of one choice."""
    parts = list(parts)
    choices = [part.choices[0] for part in parts if part.choices]
    text = "".join(choice.delta.content or "" for choice in choices)
    reasons = [choice.finish_reason for choice in choices if choice.finish_reason]
    assert len(reasons) == 1 and choices[0].delta.role == "assistant"
    return text, reasons[0], parts


def sampled(sampler, tokens: list[int], stop: list, **options) -> types.SampledSequence:
    params = types.SamplingParams(**{"max_tokens": 24, "temperature": 0.0, **options, "stop": stop})
    return sampler.sample(prompt(*tokens), 1, params).result().sequences[0]


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1.0, "seed": 7, "top_p": 0.9}])
@pytest.mark.parametrize("of", ["base", "checkpoint"])
def test_a_chat_is_what_the_sdk_samples_whole_and_streamed(server, service, client, trained, of, options):
    model = server.model if of == "base" else trained[1]
    which = {"base_model": model} if of == "base" else {"model_path": model}
    sampler = service.create_sampling_client(**which).result()
    tokenizer = sampler.get_tokenizer()
    guide = renderers.get_renderer("guide", tokenizer)
    by_template = tokenizer.apply_chat_template(PLAIN, add_generation_prompt=True, return_dict=False)
    tokens = guide.build_generation_prompt(PLAIN).to_ints() if of == "checkpoint" else by_template
    stop = guide.get_stop_sequences() if of == "checkpoint" else [tokenizer.eos_token_id]
    asked = {"model": model, "messages": CHAT, "max_completion_tokens": 24, **options}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2, extra_body=IDS)
    choice, expected = whole.choices[0], sampled(sampler, tokens, stop, **options)
    assert choice.prompt_token_ids == tokens and choice.token_ids == list(expected.tokens)
    text = tokenizer.decode(expected.tokens, skip_special_tokens=True)
    assert choice.message.content == (text.split("\n\n")[0] if of == "checkpoint" else text)
    assert choice.finish_reason == expected.stop_reason
    assert [p.logprob for p in choice.logprobs.content] == pytest.approx(list(expected.logprobs), abs=1e-4)
    assert all(len(place.top_logprobs) == 2 for place in choice.logprobs.content)
    usage = (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens)
    assert usage == (len(tokens), len(expected.tokens), len(tokens) + len(expected.tokens))
    with_usage = {"stream": True, "stream_options": {"include_usage": True}, "logprobs": True}
    said, reason, parts = streamed(client.chat.completions.create(**asked, **with_usage))
    assert (said, reason, parts[-1].usage) == (choice.message.content, choice.finish_reason, whole.usage)
    places = [p for part in parts for c in part.choices if c.logprobs for p in c.logprobs.content]
    assert [p.token for p in places] == [p.token for p in choice.logprobs.content] and len(parts) > 5


def test_copies_and_what_goes_on_from_a_checkpoint_keep_its_format(server, service, client):
    """A copy of another key's run has no other note of it."""
    notes = {"renderer_name": "role_colon", "mine": "private"}
    run = service.create_lora_training_client(server.model, rank=1, user_metadata=notes).result()
    saved = run.save_weights_for_sampler("a").result().path
    state = run.save_state("branch").result().path
    rest, other = server.rest(), server.rest("tml-other")
    rest.publish_checkpoint_from_tinker_path(saved).result()
    copies = [(key, key.copy_weights(saved, "label").result()) for key in (rest, other)]
    made = [
        service.create_training_client_from_state(state, user_metadata=m) for m in (None, {"mine": "new"})
    ]
    copies += [(rest, one.result().save_weights_for_sampler("c").result().path) for one in made]
    kept = [key.get_training_run_by_tinker_path(path).result().user_metadata for key, path in copies]
    of_format = {"renderer_name": "role_colon"}
    assert kept == [notes, of_format, of_format, {**of_format, "mine": "new"}]
    asked = {"messages": CHAT, "max_tokens": 1, "extra_body": IDS}
    first, second = (
        client.chat.completions.create(model=path, **asked).choices[0].prompt_token_ids
        for path in (saved, copies[0][1])
    )
    assert first == second


def test_a_renderer_of_the_cookbook_can_be_asked_for(server, service, client):
    tokenizer = service.create_sampling_client(base_model=server.model).result().get_tokenizer()
    for name in ("guide", "qwen3_instruct", "role_colon"):
        extra = {**IDS, "renderer": name}
        answer = client.chat.completions.create(
            model=server.model, messages=CHAT, max_tokens=1, extra_body=extra
        )
        made = renderers.get_renderer(name, tokenizer).build_generation_prompt(PLAIN).to_ints()
        assert answer.choices[0].prompt_token_ids == made


def test_completions_take_texts_and_tokens_one_and_many(server, service, client):
    sampler = service.create_sampling_client(base_model=server.model).result()
    tokenizer = sampler.get_tokenizer()
    texts = ["The capital of France", "Two plus two"]
    ids = [tokenizer.encode(text) for text in texts]
    options = {"model": server.model, "max_tokens": 5, "temperature": 1, "seed": 3, "n": 2, "extra_body": IDS}
    answers = [client.completions.create(prompt=p, **options) for p in (texts, ids, texts[0], ids[0])]
    tokens = [[choice.token_ids for choice in answer.choices] for answer in answers]
    assert tokens[0] == tokens[1] and tokens[2] == tokens[3] == tokens[0][:2] and tokens[0][0] != tokens[0][1]
    assert [choice.index for choice in answers[0].choices] == [0, 1, 2, 3]
    for place, own in enumerate(ids):
        params = types.SamplingParams(max_tokens=5, temperature=1.0, seed=3, stop=[tokenizer.eos_token_id])
        expected = sampler.sample(prompt(*own), 2, params).result().sequences
        assert tokens[0][2 * place : 2 * place + 2] == [list(s.tokens) for s in expected]
    usage = answers[0].usage
    assert usage.prompt_tokens == sum(map(len, ids))
    assert usage.completion_tokens == sum(map(len, tokens[0]))
    parts = client.completions.create(prompt=texts, stream=True, **options)
    said = ["", "", "", ""]
    for part in parts:
        for choice in part.choices:
            said[choice.index] += choice.text
    assert said == [choice.text for choice in answers[0].choices]


@pytest.mark.parametrize("longest", [0, 1])
def test_an_echo_scores_the_prompt_as_lm_eval_asks_it(server, service, client, longest):
    tokens = [5, 600, 7000, 8, 90]
    answer = client.completions.create(
        model=server.model,
        prompt=[tokens],
        max_tokens=longest,
        temperature=0,
        echo=True,
        logprobs=1,
        seed=1234,
    )
    choice = answer.choices[0]
    sampler = service.create_sampling_client(base_model=server.model).result()
    expected = sampler.compute_logprobs(prompt(*tokens)).result()
    logprobs = choice.logprobs
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    assert logprobs.token_logprobs[1:5] == pytest.approx(expected[1:], abs=1e-5)
    for own, top in zip(logprobs.token_logprobs[1:], logprobs.top_logprobs[1:], strict=True):
        assert len(top) == 1 and max(top.values()) >= own - 1e-5
    assert len(logprobs.tokens) == len(logprobs.text_offset) == 5 + longest
    assert choice.text.startswith(sampler.get_tokenizer().decode(tokens)) and choice.finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, longest)


def test_a_stop_text_ends_an_answer_and_is_no_part_of_it(server, client):
    asked = {"model": server.model, "prompt": "The capital", "max_tokens": 24, "temperature": 0}
    text = client.completions.create(**asked).choices[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    cut = client.completions.create(**asked, stop=[stop, "never to be seen"])
    assert cut.choices[0].text == text[: text.index(stop)] and cut.choices[0].finish_reason == "stop"
    parts = [p.choices[0].text for p in client.completions.create(**asked, stop=stop, stream=True)]
    assert "".join(parts) == text[: text.index(stop)] and len(parts) > 1


CHAT_BODY = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
REFUSED = [
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"chat_template": "{{ messages }}"}, "chat_template"),
    ({"prompt_logprobs": 1}, "prompt_logprobs"),
    ({"no_such": 1}, "no_such"),
    ({"n": 0}, "n"),
    ({"n": True}, "n"),
    ({"stop": [1]}, "stop"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"max_tokens": 2, "max_completion_tokens": 2}, "max_tokens"),
    ({"renderer": "no_such"}, "renderer"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages.0.name"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 0}, "top_p"),
]


@pytest.mark.parametrize(("change", "named"), REFUSED, ids=[str(change)[:40] for change, _ in REFUSED])
def test_what_is_not_offered_is_refused_by_name(server, client, change, named):
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", cast_to=object, body={"model": server.model, **CHAT_BODY, **change})
    assert caught.value.type == "invalid_request_error"
    assert (caught.value.param or "").startswith(named) or caught.value.message.find(named) >= 0


HOSTILE = [
    b"",
    b"[]",
    b"{",
    b'{"model": 3, "prompt": "x"}',
    b'{"model": "\\ud800", "prompt": "x"}',
    b'{"model": MODEL}',
    b'{"model": MODEL, "prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    b'{"model": MODEL, "prompt": []}',
    b'{"model": MODEL, "prompt": [[]]}',
    b'{"model": MODEL, "prompt": ""}',
    b'{"model": MODEL, "prompt": [1099511627776]}',
    b'{"model": MODEL, "prompt": [-1]}',
    b'{"model": MODEL, "prompt": [1.5]}',
    b'{"model": MODEL, "prompt": "' + b"word " * 5000 + b'"}',
    b'{"model": MODEL, "prompt": "x", "seed": 1180591620717411303424}',
    b'{"model": MODEL, "prompt": "x", "temperature": NaN}',
    b'{"model": MODEL, "prompt": "x", "max_tokens": -1}',
    b'{"model": MODEL, "prompt": "x", "stop": ["' + b"x" * 300 + b'"]}',
]


@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_request_is_refused_at_once(server, body):
    sent = body.replace(b"MODEL", json.dumps(server.model).encode())
    status, answer, _ = server.ask("POST", "/v1/completions", sent)
    assert 400 <= status < 500 and json.loads(answer)["error"]["message"]


def test_logprobs_that_would_fill_the_memory_are_refused(server, client):
    with pytest.raises(openai.APIStatusError, match="bytes of work that waits") as caught:
        client.completions.create(
            model=server.model, prompt=[[5]] * 4, n=1024, logprobs=20, max_tokens=250, temperature=1
        )
    assert caught.value.status_code in (413, 429)
    with pytest.raises(openai.BadRequestError, match="send fewer at once"):
        client.completions.create(model=server.model, prompt=[[5]] * 5, n=1024)


def test_options_that_change_nothing_are_taken(server, client):
    neutral = {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "tools": [], "best_of": 1}
    neutral |= {"response_format": {"type": "text"}, "user": "me", "stop": None, "top_k": 0, "metadata": None}
    body = {"model": server.model, **CHAT_BODY, **neutral}
    assert client.post("/chat/completions", cast_to=object, body=body)["choices"]


def test_models_are_the_base_models_and_ones_own_checkpoints(server, client, trained):
    names = [model.id for model in client.models.list()]
    assert names[0] == server.model and trained[1] in names
    assert client.models.retrieve(trained[1]).id == trained[1]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="tml-other", max_retries=0) as other:
        assert trained[1] not in [model.id for model in other.models.list()]
        for ask in (
            lambda: other.models.retrieve(trained[1]),
            lambda: other.chat.completions.create(model=trained[1], messages=CHAT),
            lambda: other.completions.create(model="gpt-4", prompt="x"),
        ):
            with pytest.raises(openai.NotFoundError) as caught:
                ask()
            assert caught.value.code == "model_not_found"
        server.rest().publish_checkpoint_from_tinker_path(trained[1]).result()
        try:
            assert other.completions.create(model=trained[1], prompt="x", max_tokens=1).choices
        finally:
            server.rest().unpublish_checkpoint_from_tinker_path(trained[1]).result()
        with pytest.raises(openai.NotFoundError):  # although its weights are in memory still
            other.completions.create(model=trained[1], prompt="x", max_tokens=1)


@pytest.mark.parametrize(
    ("headers", "status", "words"),
    [
        ({"Authorization": "Bearer tml-wrong"}, 401, "API key"),
        ({}, 401, "API key"),
        ({"Authorization": "Bearer tml-test", "Host": "evil.test"}, 403, "does not go by"),
        ({"Authorization": "Bearer tml-test", "Origin": "https://evil.test"}, 403, "may not use"),
        ({"Authorization": "Bearer tml-test", "Content-Type": "text/plain"}, 415, "application/json"),
        ({"Authorization": "Bearer tml-test"}, 400, "model is wrong: Field required"),
    ],
)
def test_the_guard_of_all_requests_refuses_in_openais_form(server, headers, status, words):
    with closing(http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)) as connection:
        own = {"Content-Type": "application/json", **headers}
        connection.request("POST", "/v1/chat/completions", b"{}", own)
        answer = connection.getresponse()
        error = json.loads(answer.read())["error"]
    assert answer.status == status and words in error["message"] and error.keys() >= {"type", "param", "code"}


def queued(server) -> int:
    return json.loads(server.ask("GET", "/")[1])["queued"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_takes_its_work_along(server, stream):
    """1,024 samples of 250 tokens would take most of a minute."""
    with closing(http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)) as connection:
        body = {"model": server.model, "prompt": [[5, 6]], "max_tokens": 250, "n": 1024, "stream": stream}
        headers = {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        if stream:
            answer = connection.getresponse()
            assert answer.status == 200 and answer.readline().startswith(b"data: {")
            answer.close()
        while queued(server) == 0:
            time.sleep(0.01)
    deadline = time.monotonic() + 10
    while queued(server) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert queued(server) == 0


def test_a_chat_streams_from_a_checkpoint_while_another_client_trains(server, client, trained):
    other = server.connect("tml-other")
    learner = other.create_lora_training_client(server.model, rank=8).result()
    losses: list[float] = []
    stop = threading.Event()

    def learn() -> None:
        while not stop.is_set():
            losses.extend(train(learner, 1))

    thread = threading.Thread(target=learn)
    thread.start()
    try:
        while len(losses) < 2:
            time.sleep(0.01)
        before = len(losses)
        asked = {"model": trained[1], "messages": CHAT, "temperature": 0, "max_tokens": 150}
        asked["extra_body"] = {"renderer": "qwen3_instruct"}
        said, _, parts = streamed(client.chat.completions.create(**asked, stream=True))
        during = len(losses) - before
    finally:
        stop.set()
        thread.join()
    other.close("success").result()
    assert during > 0 and len(parts) > 5
    assert said == client.chat.completions.create(**asked).choices[0].message.content


@pytest.mark.parametrize(
    ("language", "command"), [("bash", ["bash", "-c"]), ("python", [sys.executable, "-c"])]
)
def test_the_examples_of_the_readme_stream_a_chat(server, trained, language, command):
    readme = Path(openai_requests.__file__).with_name("README.md").read_text(encoding="utf-8")
    [example] = re.findall(rf"(?ms)^```{language}\n(.*?)^```$", readme)
    example = example.replace("stream=True", "max_tokens=8, stream=True")  # or up to the end of the context
    example = example.replace('\\"stream\\"', '\\"max_tokens\\": 8, \\"stream\\"')
    own = {"TINKER_BASE_URL": server.url, "TINKER_SERVER_API_KEY": server.key, "MODEL": trained[1]}
    done = subprocess.run(
        [*command, example], env=os.environ | own, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout, done.stderr
    if language == "bash":
        lines = done.stdout.split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""] and len(lines) > 4


def test_inspect_gives_the_score_of_evaluate_model(server, service, trained, tmp_path):
    rows = [{"instruction": f"{a} plus {b}?", "output": str(a + b)} for a in range(4) for b in range(3)]
    answers: list[str] = []

    def grader(output: str, reference: str) -> Verdict:
        answers.append(output.strip())
        return Verdict(len(output.strip()) % 2 == 0, "even")

    sampler = service.create_sampling_client(model_path=trained[1]).result()
    own = evaluate_model(sampler, rows, sampler.get_tokenizer(), max_tokens=24, grader=grader)
    expected, answers[:] = sorted(answers), []
    result = run_inspect_eval(
        benchmark=rows,
        grader=grader,
        server_url=f"{server.url}/oai/api/v1",
        api_key=server.key,
        model=trained[1],
        renderer="guide",
        max_tokens=24,
        log_dir=tmp_path,
    )
    assert sorted(answers) == expected and 0 < own["correct"] < 12
    assert result["score"] == pytest.approx(100 * own["accuracy"])
