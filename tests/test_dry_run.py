"""`course run --dry-run`: how much, how long, at what cost, and what is refused. Nothing is started."""

import json
import re
import threading
from collections.abc import Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from commands import assert_one_message, course, real_course, tree
from runs_for_tests import make_run
from tinker_cookbook.utils import cost_estimation

from helpers.course.capacity import SAMPLED, TRAINED
from helpers.files import read_json, read_toml, write_json
from helpers.runs import estimate, prices
from helpers.train.lineup import hosted_model

pytestmark = pytest.mark.usefixtures("folder")
UNKNOWN = ["--backend", "hosted", "-p", "base_model=a/b"]  # a model that the cookbook doesn't know
UNKNOWN += ["-p", "prompt_format=guide", "-p", "learning_rate=1e-3"]


def plan(capsys, *arguments: str) -> dict:
    status, out, err = course(capsys, "run", "--dry-run", "--json", *arguments)
    assert status == 0, err
    return json.loads(out)


def test_dry_run_makes_nothing(capsys, folder, small_data):
    found = plan(
        capsys,
        "--name",
        "mine",
        "--data",
        str(small_data),
        "-p",
        "epochs=2",
        "-p",
        "batch_size=4",
        "--until",
        "evaluate",
    )
    assert not folder.exists()
    assert [row["notebook"] for row in found["stages"]] == ["01_split", "02_train", "03_evaluate"]
    assert found["stages"][1]["settings"] == {"epochs": 2, "batch_size": 4}
    assert (
        found["data"]["records"],
        found["data"]["test"],
        found["data"]["validation"],
        found["data"]["train"],
    ) == (40, 8, 4, 28)
    assert found["work"]["train"]["steps"] == 14
    # Two epochs, and the trial's four batches of 4 of the 28 examples, twice.
    assert found["work"]["train"]["train"] == round(
        (2 + 2 * 16 / 28) * found["work"]["train"]["tokens_an_epoch"]
    )
    assert found["work"]["evaluate"]["written_at_most"] == (4 * 8 + 8 + 8 * 8) * 96
    assert found["backend"] == "stub" and found["cost"] is None and sum(found["seconds"].values()) > 20


def test_dry_run_as_text(capsys, folder, small_data):
    status, out, _ = course(capsys, "run", "--dry-run", "--data", str(small_data), "-p", "max_test=5")
    assert status == 0 and not folder.exists()
    assert "max_test = 5" in out and "40 records: 28 to train on, 4 to choose by, 5 to test on" in out
    assert "on the stub" in out and "an estimate" in out and "cost      none" in out


def test_dry_run_by_the_real_command(folder, small_data):
    result = real_course("run", "--dry-run", "--data", str(small_data))
    assert (
        result.returncode == 0 and "4 steps" in result.stdout and result.stderr == "" and not folder.exists()
    )


def test_tokens_without_a_tokenizer_are_estimated_and_it_says_so(capsys, small_data, monkeypatch, tmp_path):
    monkeypatch.setenv("TINKER_COURSE_HOME", str(tmp_path / "empty"))
    status, out, _ = course(capsys, "run", "--dry-run", "--data", str(small_data))
    assert status == 0 and "estimated from characters" in out
    part = estimate.count_tokens(
        [{"instruction": "a" * 100, "input": "", "output": "b" * 50}], estimate.ByCharacters(), "guide"
    )
    characters = len(f"Instruction: {'a' * 100}\nResponse:"), len(f" {'b' * 50}\n\n")
    assert (part.prompts, part.answers) == tuple(
        -int(-length // estimate.CHARACTERS_PER_TOKEN) for length in characters
    )


def test_the_tokens_of_notebook_02(capsys):
    """Notebook 02 counts 67,701 tokens an epoch and 113 steps."""
    if not (estimate.token_counter("", "guide")[1]).startswith("the tokenizer"):
        pytest.skip("the base model was not made yet")
    work = plan(capsys)["work"]["train"]
    assert (work["steps"], work["tokens_an_epoch"]) == (113, 67701)
    trial = 2 * 4 * 8 / 898
    assert work["train"] == round(67701 * (1 + trial))
    assert (work["train"], work["sample"]) == (TRAINED, SAMPLED)  # what `course serve` reckons with


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize(
    ("assignment", "parts"),
    [
        ("prompt_format=nope", ["no prompt format 'nope'", "'qwen3_instruct'"]),
        ("prompt_format=llama3", ["'llama3' doesn't fit the tokenizer of SmolLM2"]),
        ("prompt_format=deepseekv3", ["'deepseekv3' doesn't fit the tokenizer"]),
        ("rank=257", ["rank can't be 257", "at most 256"]),
        ("samples_each=2000", ["samples_each can't be 2000", "at most 1024"]),
        ("base_model=Qwen/Qwen3-8B", ["stub does not offer", "SmolLM2"]),
        ("max_model_len=10000", ["max_model_len can't be 10000", "reads 8192 tokens"]),
        ("checkpoint_path=mine", ["'mine' is not a checkpoint path"]),
        ("benchmark_file=BENCHMARK", ["line 2", "occurs twice"]),
        (f"seed={'1' * 5000}", ["(5,000 characters)", "valid integer"]),
        (f"epochs={'1' * 5000}", ["(5,000 characters)", "number"]),
        ("batch_sizes=4,0", ["whole numbers above zero"]),
        ("instruction=caf\udce9", ["setting instruction", "no text in UTF-8"]),
    ],
)
def test_a_run_and_its_dry_run_refuse_the_same_at_once(
    assignment, parts, dry, capsys, folder, base_model, tmp_path
):
    good = '{"question": "q", "answer": "#### 1"}'
    (tmp_path / "test.jsonl").write_text(f'{good}\n{good[:-1]}, "answer": "#### 2"}}\n')
    assignment = assignment.replace("BENCHMARK", str(tmp_path / "test.jsonl"))
    status, _, err = course(capsys, "run", *["--dry-run"] * dry, "-p", assignment)
    assert status == 1 and not folder.exists()
    assert_one_message(err, *parts)


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize(
    ("assignment", "parts"),
    [
        ("epochs=1e9", ["28 examples in batches of 8 make 4,000,000,000 steps"]),
        ("max_length=10", ["longest example has", "over max_length=10", "-p max_length="]),
        ("max_tokens=1020", ["exceeds max_model_len=1024 of notebook 06", "-p max_model_len="]),
        ("max_tokens=8190 -p max_model_len=8192", ["the base model's context, 8192", "-p max_tokens="]),
        ("data_files=none.json", ["none.json", "does not exist"]),
    ],
)
def test_what_the_data_make_impossible_is_refused_before(
    assignment, parts, dry, capsys, folder, small_data, monkeypatch
):
    """By the run, too: it makes no folder."""
    monkeypatch.setattr("helpers.course.run.run_plan", lambda plan: 0)
    words = ["-p", f"data_files={small_data}", "-p", *assignment.split()]
    status, _, err = course(capsys, "run", *["--dry-run"] * dry, *words)
    assert status == 1 and not folder.exists()
    assert_one_message(err, *parts)
    advised = re.findall(r"-p \S+=\d+", err)[:1]
    assert not advised or course(capsys, "run", "--dry-run", *words, *advised[0].split())[0] == 0


def test_bad_records_and_repeats_are_told(capsys, small_data):
    rows = read_json(small_data)
    write_json(small_data, [*rows, rows[3], {"instruction": "no answer"}])
    status, _, err = course(capsys, "run", "--dry-run", "--data", small_data)
    assert status == 1
    assert_one_message(err, "index 41: field 'output' is missing", "--skip-bad")
    out = course(capsys, "run", "--dry-run", "--data", small_data, "--skip-bad")[1]
    assert "left out, since they can't be used: 1" in out and "skip_bad = true" in out
    assert "note: 1 of 41 records ask exactly what an earlier one asks" in out


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["-p", "epochs=0"], ["epochs can't be 0", "greater than 0"]),
        (["-p", "test_size=2.0"], ["test_size"]),
        (["--data", "nowhere.json"], ["nowhere.json", "does not exist"]),
        (["--name", "taken"], ["'taken'", "another name"]),
        (["--from", "merge", "--name", "taken"], ["'export'"]),
    ],
)
def test_dry_run_refuses_what_a_run_would(arguments, parts, capsys, folder):
    make_run("taken", done=("split",))
    before = tree(folder)
    status, _, err = course(capsys, "run", "--dry-run", *arguments)
    assert status == 1 and tree(folder) == before
    assert_one_message(err, *parts)


def test_dry_run_in_a_folder_that_cant_be_written(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COURSE_RUNS_DIR", str(tmp_path / "file" / "runs"))
    status, _, err = course(capsys, "run", "--dry-run")
    assert status == 1
    assert_one_message(err, str(tmp_path / "file"), "COURSE_RUNS_DIR=")


def test_dry_run_of_a_run_to_go_on_with(capsys, small_data):
    from helpers.data.split import PARTS

    run = make_run("mine", done=("split",), epochs=3)
    for size, file in zip((12, 3, 4), PARTS.values(), strict=True):
        write_json(run.file(f"split/{file}"), read_json(small_data)[:size])
    before = tree(run.path)
    found = plan(capsys, "--resume", "--until", "train", "-p", "batch_size=6")
    assert (
        not found["new"] and found["run"] == "mine" and [row["stage"] for row in found["stages"]] == ["train"]
    )
    assert (
        found["work"]["train"]["steps"] == 6 and found["data"]["records"] is None and tree(run.path) == before
    )


def test_what_would_go_wrong_is_said_before(capsys, small_data, tmp_path):
    def said(rows: list, *arguments: str) -> str:
        file = tmp_path / "own.json"
        file.write_text(json.dumps(rows))
        status, out, err = course(capsys, "run", "--dry-run", "--data", str(file), *arguments)
        assert status == 0, err
        return out

    words_of = [
        {
            "question": f"Who is number {n}?",
            "answer": f"The baker number {'abcdefghijklmnopqrst'[n]} {'called Bob ' * 20}",
        }
        for n in range(20)
    ]
    out = said(words_of, "-p", "max_tokens=24")
    assert re.search(
        r"the longest reference answer has \d+ tokens, and max_tokens=24 cuts answers off before: "
        r"-p max_tokens=\d+",
        out,
    )
    assert "20 of 20 answers hold no number, and task=math" in out and "note: 2 steps teach little" in out
    out = said(words_of, "-p", "task=text", "-p", "epochs=10", "-p", "max_tokens=200", "-p", "max_test=2")
    assert "note:" not in out and "left out: 2 by max_test (0 takes all)" in out
    numbers = [{"question": f"What is {n} + 1?", "answer": n + 1} for n in range(20)]  # a number, not text
    assert "hold no number" not in said(numbers)


@pytest.fixture
def price_list(monkeypatch) -> Iterator[list[dict]]:
    """Stands for the list that Tinker publishes; an empty one is not found."""
    rows: list[dict] = []

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if rows else 404)
            self.end_headers()
            self.wfile.write(json.dumps(rows).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(
            cost_estimation, "PRICING_URL", f"http://127.0.0.1:{server.server_port}/models.json"
        )
        monkeypatch.setattr(cost_estimation, "_pricing_fetched", False)
        monkeypatch.setattr(cost_estimation, "_pricing_entries", None)
        yield rows
        server.shutdown()


def test_hosted_cost_by_the_published_list(capsys, small_data, price_list):
    arguments = [*UNKNOWN, "--until", "train", "--data", str(small_data)]
    price_list += [
        {
            "tinker_id": "a/b:peft:131072",
            "prefill": "$9",
            "cached_prefill": "$9",
            "sample": "$9",
            "train": "$9",
        },
        {
            "tinker_id": "a/b",
            "prefill": "$100",
            "cached_prefill": "$1",
            "sample": "$10.5",
            "train": "$1,000",
            "note": "half price",
        },
    ]
    found = plan(capsys, *arguments)
    work, cost = found["work"]["train"], found["cost"]
    assert cost["dollars"] == pytest.approx(
        (work["train"] * 1000 + work["prefill"] * 100 + work["sample"] * 10.5) / 1e6, abs=1e-4
    )
    assert (
        f"by the prices of {date.today()} in http://127.0.0.1"
        in course(capsys, "run", "--dry-run", *arguments)[1]
    )


def test_hosted_cost_without_prices(capsys, small_data, price_list):
    status, out, _ = course(
        capsys, "run", "--dry-run", "--profile", "hosted", "--until", "export", "--data", str(small_data)
    )
    assert status == 0 and f"holds no price of {hosted_model()} for train, prefill, sample" in out
    assert (
        "https://tinker-docs.thinkingmachines.ai/tinker/models/" in out
        and "dollars per million tokens" in out
    )
    assert "TINKER_API_KEY is not set" in out and "time      unknown" in out and "$" not in out


def test_hosted_cost_with_prices(capsys, small_data, monkeypatch):
    table = {"source": "s", "date": "2026-11-25", "a/b": {"train": 1000, "prefill": 100, "sample": 10.5}}
    monkeypatch.setattr(prices, "read_toml", lambda path: table)
    found = plan(capsys, *UNKNOWN, "--until", "train", "--data", str(small_data))
    work, cost = found["work"]["train"], found["cost"]
    assert found["model"] == "a/b" and cost["missing"] == []
    assert cost["dollars"] == pytest.approx(
        (work["train"] * 1000 + work["prefill"] * 100 + work["sample"] * 10.5) / 1e6, abs=1e-4
    )
    assert cost["dollars_at_most"] > cost["dollars"]
    out = course(capsys, "run", "--dry-run", *UNKNOWN, "--data", small_data)[1]
    assert re.search(
        r"about \$\d+\.\d\d, at most \$\d+\.\d\d: an estimate, by the prices of 2026-11-25 in "
        r"helpers/runs/prices.toml",
        out,
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('["a/b"]\ntrain = "dear"', ["train = 'dear'", "dollars per million"]),
        ('["a/b"]\ntrain = -1', ["train = -1"]),
        ('["a/b"]\nlearn = 1', ["learn = 1"]),
        ("train = 1", ["'train' is no section"]),
        ("[a/b]\n", ["can't be read"]),
    ],
)
def test_prices_that_are_none(text, parts, capsys, monkeypatch, tmp_path, small_data):
    file = tmp_path / "prices.toml"
    file.write_text(text)
    monkeypatch.setattr(prices, "read_toml", lambda _: read_toml(file))
    status, _, err = course(capsys, "run", "--dry-run", "--backend", "hosted", "--data", str(small_data))
    assert status == 1
    assert_one_message(err, *parts)


def test_prices_of_the_course_can_be_read():
    assert prices.prices()["source"].startswith("https://")


def test_an_empty_section_of_prices_hides_nothing(monkeypatch, price_list):
    price_list.append(
        {"tinker_id": "a/b", "prefill": "$1", "cached_prefill": "$1", "sample": "$1", "train": "$1"}
    )
    monkeypatch.setattr(prices, "read_toml", lambda path: {"source": "s", "a/b": {}})
    tokens = {"train": 10**6, "prefill": 0, "sample": 0}
    assert prices.cost(tokens, 0, "a/b")["dollars"] == 1


def test_conversations_that_cant_be_trained_on_so_are_refused_before(capsys, tmp_path):
    """By the renderer itself, as notebook 02 would; its tokens are those that are counted."""
    turns = [("user", "Hello"), ("assistant", "Hi."), ("user", "How are you?"), ("assistant", "Well.")]
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": role, "content": f"{text} {n}"} for role, text in turns]} for n in range(20)
    ]
    rows[3]["messages"][1] |= {"weight": 0}
    file = tmp_path / "chats.json"
    file.write_text(json.dumps(rows))
    words = ["--data", str(file), "-p", "task=text", "-p", "prompt_format=template", "-p"]
    found = plan(capsys, *words, "train_on=all_assistant_messages")
    assert found["data"]["tokens_counted_by"].startswith("the tokenizer of")
    status, _, err = course(capsys, "run", "--dry-run", *words, "train_on=all_tokens")
    assert status == 1
    assert_one_message(err, "train_on='all_tokens' leaves nothing out")


def test_the_longest_of_many_examples_is_found(monkeypatch):
    rows = [{"instruction": "a" * n, "input": "", "output": "b"} for n in range(100)]
    whole = estimate.count_tokens(rows, estimate.ByCharacters(), "guide")
    monkeypatch.setattr(estimate, "MOST_COUNTED", 20)
    some = estimate.count_tokens(rows, estimate.ByCharacters(), "guide")
    assert (some.records, some.longest, some.longest_prompt) == (100, whole.longest, whole.longest_prompt)
    assert some.prompts == pytest.approx(whole.prompts, rel=0.1)
