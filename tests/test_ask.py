"""`course ask`: the checkpoint, the merged model and the base model of a run, asked as in training."""

import io
import shutil

import pytest
from commands import assert_one_message, course, real_course
from runs_for_tests import make_run
from stub import GREEDY, train

from helpers.course.ask import Conversation
from helpers.files import write_json
from helpers.runs.manifest import BackendUsed
from helpers.serve import generate_with_transformers
from helpers.text import printable
from helpers.train.renderers import get_renderer, prompt_tokens
from helpers.weights.base_model import load_base

QUESTION = "What is 7 + 5?"
TWO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def checkpoint(server, service) -> str:
    """A trained checkpoint on the server."""
    client = service.create_lora_training_client(server.model, rank=4).result()
    train(client, 3)
    return client.save_weights_for_sampler("ask").result().path


@pytest.fixture(params=["guide", "template", "qwen3_instruct", "role_colon"])
def renderer(request, small_model):
    return get_renderer(request.param, small_model)


@pytest.fixture
def asked(folder, server, checkpoint, renderer, monkeypatch):
    """A run of that server in that format, with a merged model."""
    monkeypatch.setenv("TINKER_SERVER_API_KEY", server.key)
    monkeypatch.setenv("TINKER_BASE_URL", server.url)
    manifest = {"base_model": server.model, "backend": BackendUsed(kind="url", url=server.url)}
    name = renderer._renderer_name
    run = make_run("asked", manifest=manifest, prompt_format=name, max_tokens=GREEDY["max_tokens"])
    write_json(run.file("train/best_checkpoint.json"), {"sampler_path": checkpoint})
    shutil.copytree(server.model, run.file("merge/merged_model"), dirs_exist_ok=True)
    return run


def answer(renderer, model, record, most=GREEDY["max_tokens"]):
    """What `transformers` makes of a prompt of training, with the stop rule of training."""
    [found] = generate_with_transformers(
        model, renderer, [prompt_tokens(record, renderer)], most, progress=False
    )
    return found.text


def test_a_question_and_a_conversation_in_the_format_of_training(asked, renderer, capsys, monkeypatch):
    untrained = load_base(asked.file("merge/merged_model"))
    record = {"instruction": QUESTION, "input": "Say it in words."}
    expected = printable(answer(renderer, untrained, record))
    of_service = ("trained", "base") if renderer._renderer_name == "guide" else ()
    for model in ("merged", *of_service):
        words = ("latest", QUESTION, "--input", record["input"], "--model", model)
        status, out, _ = course(capsys, "ask", *words)
        assert status == 0 and (out == f"{expected}\n") == (model != "trained")
    monkeypatch.setattr("sys.stdin", io.StringIO("\nWhy?\n"))
    status, out, _ = course(
        capsys,
        "ask",
        "asked",
        QUESTION,
        "--chat",
        "--system",
        "Be brief.",
        "--model",
        "merged",
        "--max-tokens",
        5,
    )
    first = answer(renderer, untrained, {"messages": TWO}, 5)
    turns = [*TWO, {"role": "assistant", "content": first}, {"role": "user", "content": "Why?"}]
    second = answer(renderer, untrained, {"messages": turns}, 5)
    assert status == 0 and out == printable(f"{first}\n{second}\n")


@pytest.mark.parametrize("renderer", ["guide"], indirect=True)
def test_of_a_run_with_one_instruction_the_question_is_the_input(asked, renderer, capsys):
    with asked.edit() as manifest:
        split = manifest.stages.split
        split.settings = split.settings.model_copy(update={"instruction": "Say it in words."})
    merged, own = load_base(asked.file("merge/merged_model")), {"instruction": QUESTION, "input": ""}
    expected = answer(renderer, merged, {"instruction": "Say it in words.", "input": QUESTION})
    assert expected != answer(renderer, merged, own)
    assert course(capsys, "ask", "asked", QUESTION, "--model", "merged")[1] == printable(f"{expected}\n")


@pytest.mark.parametrize("renderer", ["guide"], indirect=True)
@pytest.mark.parametrize("more", ["", "It is short."])
def test_in_a_chat_the_instruction_stands_before_the_first_question_only(renderer, more):
    prompts = []

    def sample(tokens):
        prompts.append(renderer.tokenizer.decode(tokens, skip_special_tokens=True))
        return renderer.tokenizer.encode(" Glad.", add_special_tokens=False), "stop"

    talk = Conversation(renderer, sample, "", "Glad or sad?")
    talk.ask("Good soup.", more)
    talk.ask("Why?")
    first = f"Good soup.\nInput: {more}" if more else "Glad or sad?\nInput: Good soup."
    assert prompts[0] == f"Instruction: {first}\nResponse:"
    assert prompts[1] == f"{prompts[0]} Glad.\n\nInstruction: Why?\nResponse:"


@pytest.mark.parametrize("renderer", ["guide"], indirect=True)
def test_nothing_but_the_answer_is_printed(asked):
    """In a process of its own, at whose end the SDK must have nothing to say."""
    done = real_course("ask", "latest", QUESTION, "--max-tokens", 1)
    assert done.returncode == 0 and done.stdout
    assert done.stderr == "(cut off after 1 tokens: --max-tokens)\n"


@pytest.mark.parametrize(
    ("arguments", "status", "parts"),
    [
        (["nowhere", "Why?"], 1, ["there is no run 'nowhere'"]),
        (["half", "Why?"], 1, ["no finished 'train' stage", "02_train"]),
        (["trained", "Why?", "--model", "merged"], 1, ["no finished 'merge' stage", "05_merge"]),
        (["trained", "Why?"], 1, ["did not answer with tinker://gone", "--model merged"]),
        (["trained", " "], 2, ["there is no question"]),
        (["trained", "--chat", "--input", "x"], 2, ["--input goes with a QUESTION"]),
        (["trained", "Why?", "--max-tokens", "0"], 2, ["no room for an answer"]),
        (["trained", "word " * 300, "--model", "base"], 1, ["did not answer"]),
    ],
)
def test_what_can_not_be_asked_says_why(folder, server, monkeypatch, capsys, arguments, status, parts):
    monkeypatch.setenv("TINKER_SERVER_API_KEY", server.key)
    monkeypatch.setenv("TINKER_BASE_URL", server.url)
    manifest = {"base_model": server.model, "backend": BackendUsed(kind="url", url=server.url)}
    make_run("half", done=("split",), manifest=manifest)
    run = make_run("trained", done=("split", "train"), manifest=manifest)
    write_json(run.file("train/best_checkpoint.json"), {"sampler_path": "tinker://gone/sampler_weights/x"})
    code, out, err = course(capsys, "ask", *arguments)
    assert code == status and not out
    assert_one_message(err, *parts)


def test_a_run_does_not_choose_which_server_gets_the_key(folder, server, monkeypatch, capsys):
    monkeypatch.setenv("TINKER_SERVER_API_KEY", server.key)
    monkeypatch.setenv("TINKER_BASE_URL", "https://server.example")
    manifest = {"base_model": server.model, "backend": BackendUsed(kind="url", url=server.url)}
    run = make_run("theirs", done=("split", "train"), manifest=manifest)
    write_json(run.file("train/best_checkpoint.json"), {"sampler_path": "tinker://x/sampler_weights/x"})
    code, _, err = course(capsys, "ask", "theirs", "Why?")
    assert code == 2
    assert_one_message(err, f"export TINKER_BASE_URL={server.url}")
