"""Inspect's benchmarks: the real tasks over small files in the published forms, asked of known answers and of
the stub.
"""

import asyncio
import csv
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from inspect_ai.log import list_eval_logs, read_eval_log

from helpers.data.conversation import conversation_record
from helpers.errors import BackendError, DataError, ModelError
from helpers.evaluate.benchmarks import run_inspect_eval
from helpers.evaluate.inspect_tasks import own_data
from helpers.paths import ROOT
from helpers.train.lineup import recommended
from helpers.train.models import load_tokenizer
from helpers.train.renderers import get_renderer, prompt_tokens, renderer_for

GSM8K = [
    {
        "question": f"Ann has {n} pens and buys {n + 1}. How many pens has she?",
        "answer": f"She has {n}+{n + 1}=<<{n}+{n + 1}={2 * n + 1}>>{2 * n + 1} pens.\n#### {2 * n + 1}",
    }
    for n in range(10, 26)
]
MMLU = [[f"What is {n} + {n}?", str(2 * n), str(2 * n + 1), "0", "none, of these", "A"] for n in range(1, 5)]
HELLASWAG = [
    {
        "ind": n,
        "activity_label": "Cooking",
        "ctx_a": "A man",
        "ctx_b": "",
        "ctx": f"A man boils egg number {n}. He",
        "split": "val",
        "split_type": "indomain",
        "label": n % 4,
        "endings": ["eats it.", "flies away.", "is a cloud.", "sings."],
        "source_id": f"activitynet~v_{n}",
    }
    for n in range(4)
]


class Answers:
    """A sampling client that answers by looking at the prompt: what a benchmark does with answers is known
    then.
    """

    def __init__(self, base_model, reply):
        self.base_model, self.tokenizer, self.reply = str(base_model), load_tokenizer(base_model), reply
        self.prompts, self.params, self.flying, self.most, self.lock = [], None, 0, 0, threading.Lock()

    def get_base_model(self):
        return self.base_model

    def get_tokenizer(self):
        return self.tokenizer

    async def sample(self, prompt, num_samples, sampling_params):
        text = self.tokenizer.decode(prompt.to_ints())
        self.prompts.append(text)
        self.params = sampling_params
        self.flying += 1
        self.most = max(self.most, self.flying)
        await asyncio.sleep(0.01)
        self.flying -= 1
        tokens = self.tokenizer.encode(self.reply(text))[: sampling_params.max_tokens]
        return SimpleNamespace(sequences=[SimpleNamespace(tokens=tokens, logprobs=None, stop_reason="stop")])


@pytest.fixture
def gsm8k(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in GSM8K[:8]) + "\n", encoding="utf-8")
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in GSM8K[8:]), encoding="utf-8")
    return path


def add(prompt):
    numbers = re.findall(r"Ann has (\d+) pens and buys (\d+)", prompt)[-1]
    return f"She adds them.\n\nANSWER: {sum(map(int, numbers))}"


def wrong_below_14(prompt):
    return add(prompt) if int(re.findall(r"Ann has (\d+)", prompt)[-1]) >= 14 else "ANSWER: 3"


def test_gsm8k_counts_what_is_right(base_model, gsm8k, tmp_path, capsys):
    client = Answers(base_model, wrong_below_14)
    results = run_inspect_eval(
        sampling_client=client, benchmark="gsm8k", batch_size=3, dataset_path=gsm8k, log_dir=tmp_path / "logs"
    )
    assert results["score"] == 50 and results["stderr"] == pytest.approx(100 * (0.25 / 7) ** 0.5)
    assert (results["samples"], results["total"], results["metric"], results["truncated"]) == (
        8,
        8,
        "accuracy",
        0,
    )
    assert client.most <= 3 and client.params.temperature == 0 and results["renderer"] == "qwen3_instruct"
    assert "8/8" in capsys.readouterr().out
    prompt = next(prompt for prompt in client.prompts if "Ann has 12 pens" in prompt)
    assert (
        prompt.count("Reasoning:\n") == 8 and "ANSWER: 37" in prompt
    )  # all eight examples of train.jsonl, and the question
    log = read_eval_log(results["log"])
    assert (
        log.eval.task == "inspect_evals/gsm8k"
        and len(log.samples) == 8
        and log.results.scores[0].metrics["accuracy"].value == 0.5
    )


def test_gsm8k_chooses_the_examples_that_the_hub_would_give(gsm8k, tmp_path, base_model):
    import datasets
    from inspect_evals.constants import DEFAULT_FEWSHOT_SEED

    client = Answers(base_model, add)
    run_inspect_eval(client, "gsm8k", dataset_path=gsm8k, limit=1, task_args={"fewshot": 3}, log_dir=tmp_path)
    order = datasets.Dataset.from_list(GSM8K[8:]).shuffle(seed=DEFAULT_FEWSHOT_SEED)["question"][:3]
    assert re.findall(r"Ann has \d+ pens[^?]*\?", client.prompts[0])[:3] == list(order)


def test_without_worked_examples_it_says_so(gsm8k, tmp_path, base_model, capsys):
    (gsm8k.parent / "train.jsonl").unlink()
    results = run_inspect_eval(
        Answers(base_model, add), "gsm8k", limit=5, dataset_path=gsm8k, log_dir=tmp_path
    )
    assert results["score"] == 100 and results["samples"] == 5 and results["total"] == 8
    assert "no train.jsonl" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"fewshot=4 needs train.jsonl"):
        run_inspect_eval(Answers(base_model, add), "gsm8k", dataset_path=gsm8k, task_args={"fewshot": 4})


@pytest.mark.parametrize("header", [False, True])
def test_mmlu_reads_both_published_forms(header, tmp_path, base_model):
    path = tmp_path / "arithmetic_test.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        if header:
            rows.writerow(["", "Question", "A", "B", "C", "D", "Answer", "Subject"])
        rows.writerows([number, *row, "arithmetic"] if header else row for number, row in enumerate(MMLU))
    client = Answers(base_model, lambda prompt: "ANSWER: B" if "What is 2 +" in prompt else "ANSWER: A")
    results = run_inspect_eval(
        client, "mmlu", dataset_path=path if header else tmp_path, log_dir=tmp_path / "logs"
    )
    assert results["score"] == 75 and results["samples"] == 4
    assert client.params.max_tokens == 16  # the task's own limit
    assert "D) none, of these" in client.prompts[0]
    assert {sample.metadata["subject"] for sample in read_eval_log(results["log"]).samples} == {"arithmetic"}


def test_hellaswag_reads_its_validation_file(tmp_path, base_model):
    path = tmp_path / "hellaswag_val.jsonl"
    path.write_text("\n".join(map(json.dumps, HELLASWAG)), encoding="utf-8")
    client = Answers(base_model, lambda prompt: "ANSWER: A")
    results = run_inspect_eval(client, "hellaswag", dataset_path=path, log_dir=tmp_path)
    assert results["score"] == 25 and "most plausible continuation" in client.prompts[0]


@pytest.mark.parametrize(
    "benchmark, text, message",
    [
        ("gsm8k", '{"question": "2 + 2?", "answer": "4"}', "line 1: `answer` has no `####`"),
        ("gsm8k", '{"question": "2 + 2?"}', "line 1: `question` and `answer` must be text"),
        ("gsm8k", "question,answer", "line 1 is not JSON"),
        ("gsm8k", "\n", "is empty"),
        (
            "hellaswag",
            json.dumps(HELLASWAG[0]) + "\n" + json.dumps({**HELLASWAG[1], "label": ""}),
            "line 2: there is no `label`.*hellaswag_val",
        ),
        (
            "hellaswag",
            json.dumps({**HELLASWAG[1], "label": 4}),
            "line 1: `label` is 4, and there are 4 endings",
        ),
        ("mmlu", "2 + 2?,4,5,6,A", "line 1: a row must be"),
        ("mmlu", "2 + 2?,4,5,6,7,E", "line 1: a row must be"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_the_line(benchmark, text, message, tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as raised:
        run_inspect_eval(object(), benchmark, dataset_path=path)
    assert str(path) in str(raised.value) and "→" in str(raised.value)


@pytest.mark.parametrize("benchmark", ["gsm8k", "mmlu", "hellaswag"])
def test_a_missing_file_is_an_error_that_says_where_to_get_it(benchmark, tmp_path):
    with pytest.raises(DataError, match=r"does not exist\n→ get it: .*https://"):
        run_inspect_eval(object(), benchmark, dataset_path=tmp_path / "nothing")


def test_bad_arguments_are_refused_before_anything_is_asked(gsm8k):
    for error, arguments in [
        ("nothing to ask", {"sampling_client": None}),
        ("two models", {"server_url": "http://127.0.0.1:1/v1"}),
        ("batch_size=0", {"batch_size": 0}),
        ("limit=-1", {"limit": -1}),
        ("task_args may hold fewshot", {"task_args": {"shots": 3}}),
        ("can't be used with 'arc_easy'", {"benchmark": "arc_easy"}),
    ]:
        with pytest.raises(DataError, match=error):
            run_inspect_eval(
                **({"sampling_client": object(), "benchmark": "gsm8k", "dataset_path": gsm8k} | arguments)
            )
    with pytest.raises(DataError, match="did you mean gsm8k"):
        run_inspect_eval(object(), "gms8k")
    with pytest.raises(BackendError, match=r"no OpenAI-compatible server answers at http://127.0.0.1:1/v1"):
        run_inspect_eval(benchmark="gsm8k", dataset_path=gsm8k, server_url="http://127.0.0.1:1/v1")


def test_a_request_that_fails_twice_gives_no_score(base_model, gsm8k, tmp_path):
    attempts = []

    def broken(prompt):
        if "Ann has 12 pens and buys 13. How" in prompt[-300:]:
            attempts.append(prompt)
            raise RuntimeError("connection lost")
        return add(prompt)

    with pytest.raises(BackendError, match=r"did not finish.*connection lost"):
        run_inspect_eval(
            Answers(base_model, broken),
            "gsm8k",
            dataset_path=gsm8k,
            log_dir=tmp_path,
            task_args={"fewshot": 0},
        )
    assert len(attempts) == 2
    failing_once = iter([RuntimeError("connection lost")])

    def flaky(prompt):
        for error in failing_once:
            raise error
        return add(prompt)

    assert (
        run_inspect_eval(Answers(base_model, flaky), "gsm8k", dataset_path=gsm8k, log_dir=tmp_path)["score"]
        == 100
    )


def test_answers_that_were_cut_off_are_counted(base_model, gsm8k, tmp_path):
    results = run_inspect_eval(
        Answers(base_model, lambda prompt: "so " * 50),
        "gsm8k",
        dataset_path=gsm8k,
        max_tokens=5,
        log_dir=tmp_path,
    )
    assert results["truncated"] == 8 and results["score"] == 0


ROWS = [
    {
        "instruction": f"What is {n} + {n}?",
        "input": "Only the number." if n % 2 else "",
        "output": f"Final answer: {2 * n}",
        "category": "sums",
    }
    for n in range(8)
]


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 1 + 1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "What is 9 + 9?"},
    {"role": "assistant", "content": "Final answer: 18"},
]


def test_own_data_is_judged_by_value_and_asked_as_in_training(base_model, tmp_path):
    client = Answers(
        base_model,
        lambda prompt: (
            f" It is 2 * {(n := int(re.findall(r'is (.) [+]', prompt)[-1]))}.\n"
            f"The answer is **{2 * n}.0**.\n\n"
        ),
    )
    asked = [*ROWS, conversation_record(CHAT)]
    results = run_inspect_eval(client, own_data(asked), renderer="guide", log_dir=tmp_path)
    assert results["score"] == 100 and results["benchmark"] == "own_data" and results["renderer"] == "guide"
    renderer = get_renderer("guide", client.tokenizer)
    prompts = [client.tokenizer.decode(prompt_tokens(row, renderer)) for row in asked]
    assert sorted(client.prompts) == sorted(prompts)
    assert client.params.stop == renderer.get_stop_sequences()
    floor = run_inspect_eval(
        Answers(base_model, lambda prompt: ""), own_data(ROWS), renderer="guide", log_dir=tmp_path
    )
    assert floor["score"] == 0
    tools = conversation_record(CHAT, [{"type": "function", "function": {"name": "add"}}])
    for records, reason in (([], "no records"), ([tools], "has tools")):
        with pytest.raises(DataError, match=reason):
            own_data(records)


def test_a_model_without_a_known_chat_format_is_asked_about(base_model):
    assert renderer_for("Qwen/Qwen3-30B-A3B-Instruct-2507") == "qwen3_instruct"
    assert renderer_for("Qwen/Qwen3-8B") == recommended("Qwen/Qwen3-8B")["prompt_format"]
    assert renderer_for(str(base_model), load_tokenizer(base_model)) == "qwen3_instruct"
    with pytest.raises(ModelError, match="renderer="):
        renderer_for("someone/model", SimpleNamespace(chat_template=None))


def test_it_runs_inside_an_event_loop_as_in_a_notebook(base_model, gsm8k, tmp_path):
    async def cell():
        return run_inspect_eval(
            Answers(base_model, add), "gsm8k", dataset_path=gsm8k, limit=2, log_dir=tmp_path
        )

    assert asyncio.run(cell())["score"] == 100


def test_the_stub_answers_gsm8k(service, small_model, gsm8k, tmp_path):
    """The unmodified SDK between Inspect and the stub. The model is untrained: that it answers is what
    counts.
    """
    client = service.create_sampling_client(base_model=str(small_model)).result()
    results = run_inspect_eval(
        client,
        "gsm8k",
        dataset_path=gsm8k,
        limit=4,
        max_tokens=8,
        task_args={"fewshot": 0},
        renderer="guide",
        log_dir=tmp_path,
    )
    assert results["samples"] == 4 and results["score"] == 0 and 4 <= results["tokens"] <= 32
    assert results["truncated"] == 4


KEY = "a-key-that-must-not-be-written"


@pytest.fixture
def served():
    """An OpenAI-compatible server that adds what it reads, for what is not about vLLM. It wants a key."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply({"data": [{"id": "folder/merged"}]})

        def do_POST(self):
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1][
                "content"
            ]
            total = sum(map(int, re.findall(r"\d+", question)))
            message = {"role": "assistant", "content": f"The answer is {total}."}
            self.reply(
                {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 1,
                    "model": "folder/merged",
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9},
                }
            )

        def reply(self, body):
            allowed = self.headers["Authorization"] == f"Bearer {KEY}"
            self.send_response(200 if allowed else 401)
            self.end_headers()
            self.wfile.write(json.dumps(body if allowed else {"error": "no key"}).encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_a_served_model_is_asked_the_same(served, tmp_path, capsys):
    results = run_inspect_eval(
        benchmark=own_data(ROWS), server_url=served, api_key=KEY, log_dir=tmp_path, batch_size=2
    )
    assert (
        results["score"] == 100
        and results["samples"] == 8
        and results["tokens"] == 32
        and "8/8" in capsys.readouterr().out
    )
    assert KEY.encode() not in b"".join(
        zipfile.ZipFile(results["log"]).read(name) for name in zipfile.ZipFile(results["log"]).namelist()
    )
    with pytest.raises(DataError, match=r"serves folder/merged\n.*model="):
        run_inspect_eval(benchmark=own_data(ROWS), server_url=served, api_key=KEY, model="another")
    with pytest.raises(BackendError, match="401") as raised:
        run_inspect_eval(benchmark=own_data(ROWS), server_url=served, api_key=KEY + "x")
    assert KEY not in str(raised.value)


def test_the_task_runs_from_the_shell_and_inspect_finds_its_log(served, tmp_path):
    data = tmp_path / "own.json"
    data.write_text(json.dumps(ROWS * 2), encoding="utf-8")
    inspect = Path(sys.executable).parent / "inspect"
    result = subprocess.run(
        [
            inspect,
            "eval",
            "helpers/evaluate/inspect_tasks.py@own_data",
            "-T",
            f"data={data}",
            "--model",
            "openai-api/vllm/merged",
            "--model-base-url",
            served,
            "--display",
            "none",
            "--log-dir",
            tmp_path / "logs",
        ],
        cwd=ROOT,
        env=os.environ | {"VLLM_API_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    (log,) = (tmp_path / "logs").glob("*.eval")
    assert read_eval_log(str(log)).results.scores[0].metrics["accuracy"].value == 1
    [listed] = list_eval_logs(str(tmp_path / "logs"))  # what `inspect view` shows
    assert Path(listed.name).name == log.name and listed.task == "own-data"
