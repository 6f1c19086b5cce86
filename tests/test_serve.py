"""vLLM's server, really started: the answers and scores are those of the model in `transformers`, and nothing
stays behind.
"""

import os
import shutil
import subprocess
import sys
import time

import openai
import psutil
import pytest
from transformers import AutoModelForCausalLM

from helpers.errors import BackendError, ModelError
from helpers.evaluate.benchmarks import run_inspect_eval
from helpers.evaluate.grading import check_final_answer
from helpers.evaluate.inspect_tasks import own_data
from helpers.paths import ROOT
from helpers.serve import generate_with_transformers, serve_vllm
from helpers.train.chat_template import chat_template, end_tokens
from helpers.train.models import load_tokenizer
from helpers.train.renderers import get_renderer, prompt_tokens
from helpers.weights.served_format import write_chat_template, write_end_tokens

ROWS = [
    {
        "instruction": f"What is {n} + {n + 2}?",
        "input": "Answer with a number." if n % 2 else "",
        "output": str(2 * n + 2),
    }
    for n in range(1, 13)
]


@pytest.fixture(scope="module")
def renderer(base_model):
    return get_renderer("guide", load_tokenizer(base_model))


@pytest.fixture(scope="module")
def served(base_model, renderer, tmp_path_factory):
    """The base model's folder, as a merge for this format leaves it."""
    folder = tmp_path_factory.mktemp("served") / "model"
    shutil.copytree(base_model, folder, copy_function=os.symlink)
    for name in ("generation_config.json", "tokenizer_config.json"):
        (folder / name).unlink()
        shutil.copyfile(base_model / name, folder / name)
    write_chat_template(folder, renderer)
    write_end_tokens(folder, renderer)
    return folder


@pytest.fixture(scope="module")
def started(served, renderer):
    """A server, its process tree while it ran, and what became of that."""
    seen = {}
    options = ["--trust-request-chat-template"]
    with serve_vllm(served, dtype="float32", max_model_len=512, options=options) as server:
        seen["tree"] = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        yield server, seen
    deadline = time.monotonic() + 20
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in seen["tree"]):
        assert time.monotonic() < deadline, "the server left a process behind"
        time.sleep(0.1)
    with pytest.raises(BackendError, match="did not answer"):
        server.ask([{"instruction": "Still there?"}], renderer, 4)


def test_the_server_answers_as_the_model_does(started, base_model, renderer):
    server, _ = started
    assert "api_server --model model " in server.command and "/" not in server.command
    assert server.api_key not in server.command
    served = server.ask(ROWS, renderer, 16)
    model = AutoModelForCausalLM.from_pretrained(base_model, dtype="float32")
    answers = generate_with_transformers(
        model, renderer, [prompt_tokens(row, renderer) for row in ROWS], 16, progress=False
    )
    same = sum(
        a["text"] == b.text and a["stop_reason"] == b.stop_reason
        for a, b in zip(served, answers, strict=True)
    )
    assert same >= len(ROWS) - 1  # float32 sums in another order: a near tie may fall otherwise


def test_inspect_asks_it_the_same_task(started, renderer, tmp_path):
    server, _ = started
    results = run_inspect_eval(
        benchmark=own_data(ROWS),
        server_url=server.url,
        api_key=server.api_key,
        renderer="guide",
        max_tokens=16,
        log_dir=tmp_path,
    )
    answers = server.ask(ROWS, renderer, 16)
    right = sum(
        bool(check_final_answer(answer["text"], row["output"]))
        for answer, row in zip(answers, ROWS, strict=True)
    )
    assert results["samples"] == len(ROWS) and 0 < right < len(ROWS)
    assert (
        abs(results["score"] * len(ROWS) / 100 - right) <= 1
    )  # a near tie may fall otherwise in another batch


def test_only_its_own_key_opens_it_and_no_command_line_shows_it(started):
    server, seen = started
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=server.url, api_key="another", max_retries=0).models.list()
    assert "vllm.entrypoints.openai.api_server" in seen["tree"][0].cmdline()  # as docs/results.md has it
    assert server.api_key not in repr(server) and not any(
        server.api_key in " ".join(process.cmdline()) for process in seen["tree"]
    )


@pytest.mark.parametrize("name", ["guide", "template", "qwen3_instruct"])
def test_a_chat_has_the_tokens_of_training(started, base_model, name):
    """The folder's own template makes those of `guide`; for the others the request brings their own."""
    server, _ = started
    client = openai.OpenAI(base_url=server.url, api_key=server.api_key, max_retries=0)
    renderer = get_renderer(name, base_model)
    template = {} if name == "guide" else {"chat_template": chat_template(renderer)}

    def tokens_of(turns, **more):
        asked = client.chat.completions.create(
            model=server.model,
            messages=turns,
            max_tokens=1,
            extra_body={"return_token_ids": True, **template, **more},
        )
        return asked.model_dump()["prompt_token_ids"]

    question = [{"role": "user", "content": "What is 7 + 5?"}]
    answer = {"role": "assistant", "content": "12."}
    system = [{"role": "system", "content": "Answer with a number."}]
    turns_of_two = [*system, *question, answer, *question]
    if name == "guide":
        with pytest.raises(openai.BadRequestError, match="can't write several turns"):
            tokens_of(turns_of_two)
    for turns in (question, system + question, *([turns_of_two] if name != "guide" else [])):
        assert tokens_of(turns) == prompt_tokens({"messages": turns}, renderer)
    function = {"name": "add", "parameters": {"type": "object", "properties": {}}}
    with pytest.raises(openai.BadRequestError, match="can't write tools"):
        tokens_of(question, tools=[{"type": "function", "function": function}], tool_choice="none")


def test_the_end_of_an_answer_ends_it_for_any_client(started, renderer):
    """One that names no stop rule, once the model writes the token that it learned to end with."""
    server, _ = started
    client = openai.OpenAI(base_url=server.url, api_key=server.api_key, max_retries=0)
    for token, reason in ((end_tokens(renderer)[0], "stop"), (renderer.tokenizer.encode("a")[0], "length")):
        answer = client.chat.completions.create(
            model=server.model,
            messages=[{"role": "user", "content": "What is 7 + 5?"}],
            max_tokens=3,
            logit_bias={str(token): 100},
        )
        assert answer.choices[0].finish_reason == reason


def test_what_can_not_be_served_is_a_clear_error(tmp_path, base_model):
    for arguments, message in (
        ({"model_folder": tmp_path}, "there is no model in"),
        ({"model_folder": base_model, "adapters": {"a": tmp_path}}, "is not an adapter folder"),
    ):
        with pytest.raises(ModelError, match=message), serve_vllm(**arguments):
            pass


@pytest.mark.parametrize("dtype", ["float32", "float"])
def test_adapters_on_a_gpu_need_16_bits(tmp_path, base_model, monkeypatch, dtype):
    monkeypatch.setattr("helpers.serve.server.vllm_is_for_cpu", lambda: False)
    with (
        pytest.raises(ModelError, match=r'16 bits only.*\n.*dtype="bfloat16"'),
        serve_vllm(base_model, adapters={"tuned": tmp_path}, dtype=dtype),
    ):
        pass


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("print('much'); raise ValueError('no such dtype')", r"ended at its start:\n.*no such dtype"),
        ("import time; time.sleep(60)", "did not answer in 2 s"),
    ],
)
def test_a_server_that_does_not_come_up_says_why(tmp_path, base_model, monkeypatch, program, message):
    """Another program in place of vLLM's server, which takes its time to fail."""
    folder = tmp_path / "vllm" / "entrypoints" / "openai"
    folder.mkdir(parents=True)
    (folder / "api_server.py").write_text(program)
    for package in (folder, *folder.parents[:2]):
        (package / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        pytest.raises(ModelError, match=message),
        serve_vllm(base_model, patience=2 if "sleep" in program else 60),
    ):
        pass


def test_a_dead_notebook_takes_its_server_along(tmp_path):
    """`python` is killed while the server starts: the kernel of the machine ends the server."""
    script = (
        "import sys; from helpers.serve.server import serve_vllm\nwith serve_vllm(sys.argv[1]) as server: "
        "pass"
    )
    from helpers.local_model import local_base_model

    process = subprocess.Popen(
        [sys.executable, "-c", script, str(local_base_model())],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        env=os.environ,
    )
    deadline = time.monotonic() + 60
    while not (children := psutil.Process(process.pid).children()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    psutil.wait_procs(children, timeout=20)
    assert not any(child.is_running() for child in children)
