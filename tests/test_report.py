"""`course report`: the page of one run and the one that compares several, read by an HTML parser.

Runs are made up, with every file that the notebooks leave, so that text, counts and p-values are known.
"""

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from helpers.course import cli
from helpers.errors import DataError, RunError
from helpers.evaluate.score import wilson_interval
from helpers.files import write_json, write_jsonl
from helpers.runs.info import look_at
from helpers.runs.report import comparison
from helpers.runs.report.comparison import compare_settings, holm, write_comparison
from helpers.runs.report.page import write_report
from helpers.runs.run import STAGES, Run, new_run
from helpers.runs.run_files import FORMS

FILES = sorted(name for name in FORMS if "/" in name)
VOID = {"meta", "br", "hr", "img", "link"}
HOSTILE = [
    "<script>alert(1)</script>",
    "\"quoted\" & 'single' </div></details>",
    "abc \u202e\u2067 drow",
    "文字 题目",
    r"$\frac{1}{2$ \text{LaTeX}",
    "NUL \x00 and \ud800 alone",
    "-->]]>&lt;",
    "x" * 5000,
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("COURSE_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return tmp_path / "runs"


def score(correct: int, total: int) -> dict:
    return {
        "correct": correct,
        "total": total,
        "accuracy": correct / total,
        "ci95": list(wilson_interval(correct, total)),
    }


def make_run(
    name: str, right: str = "yyyyynnnnn", done: tuple[str, ...] = tuple(STAGES), words: str = "", **parameters
) -> Run:
    """A run with the files that the notebooks leave.

    Args:
        right: a letter for each test problem, y where the tuned model is right. The base model is right on the last one only.
        words: stands in problems, answers and the category.
        parameters: of the train stage.
    """
    run = new_run(name)
    count, wins = len(right), right.count("y")
    tuned = [
        {
            "index": i,
            "problem": f"problem {i} {words}",
            "output": f"tuned {words}",
            "expected": f"{i} {words}",
            "score": c == "y",
        }
        for i, c in enumerate(right)
    ]
    base = [row | {"output": f"base {words}", "score": i == count - 1} for i, row in enumerate(tuned)]
    flips = [
        {
            "flip": "gained" if b["score"] < a["score"] else "lost",
            "problem": a["problem"],
            "expected": a["expected"],
            "base": b["output"],
            "tuned": a["output"],
        }
        for b, a in zip(base, tuned)
        if b["score"] != a["score"]
    ]
    kind = words[:60] or "sums"
    parity = {
        "reference": "Tinker sampler",
        "other": "merged",
        "max_abs_logprob_diff": 2e-5,
        "mean_abs_logprob_diff": 1e-7,
        "token_agreement": 1.0,
        "prompts": 4,
        "tokens": 160,
        "tolerance": 5e-4,
        "mean_tolerance": 1e-5,
        "logit_noise": 1e-4,
        "passed": True,
    }
    looks = [{"step": step, "loss": 2.0 / (step + 1), "correct": step // 4, "total": 6} for step in (0, 4, 8)]
    files = {
        "train/metrics.jsonl": [
            {"step": i, "train_nll": 1.5 / i, "tokens_per_second": 100.0 + i} for i in range(1, 9)
        ],
        "train/checkpoints.jsonl": looks,
        "train/best_checkpoint.json": looks[-1],
        "evaluate/model_evaluation.json": {
            "base_accuracy": 1 / count,
            "base_correct": 1,
            "base_accuracy_ci95": list(wilson_interval(1, count)),
            "test_accuracy": wins / count,
            "test_correct": wins,
            "test_size": count,
            "test_accuracy_ci95": list(wilson_interval(wins, count)),
            "by_category": {kind: score(wins, count)},
            "base_by_category": {kind: score(1, count)},
            "gained": sum(flip["flip"] == "gained" for flip in flips),
            "lost": 1,
            "p_value": 0.21875,
        },
        "evaluate/samples.jsonl": tuned,
        "evaluate/base_samples.jsonl": base,
        "evaluate/flips.jsonl": flips,
        "merge/parity.json": parity
        | {
            "negative_control": parity
            | {"other": "base model", "max_abs_logprob_diff": 12.5, "passed": False}
        },
        "vllm/parity.json": parity | {"other": "vLLM", "max_abs_logprob_diff": 0.7, "passed": False},
        "vllm/evaluation.json": {
            "throughput": [
                {"at_once": 1, "tokens_per_second": 39.0},
                {"at_once": 4, "tokens_per_second": 123.0},
            ],
            "others": {},
            "dtype": "float32",
        },
    }
    results = {
        "split": {
            "leaks": 0,
            "records": 90,
            "sizes": {"train": 64, "validation": 6, "test": count},
            "notes": [],
        },
        "evaluate": {"test_accuracy": wins / count},
        "merge": {"correct": wins, "total": count},
        "vllm": {"correct": wins, "total": count},
    }
    given = {
        "split": {"data_files": "data/word_problems.json"},
        "train": {"rank": 8, "prompt_format": words.replace("\ud800", "")} | parameters,
    }
    for stage in done:
        work = run.begin(stage, given.get(stage, {}))
        own = [path for path in files if path.startswith(f"{stage}/")]
        for path in own:
            text = (
                json.dumps(files[path])
                if path.endswith(".json")
                else "".join(json.dumps(row) + "\n" for row in files[path])
            )
            run.file(path).write_text(text)
        work.finish(f"{stage} is done", artefacts=[run.file(path) for path in own], **results.get(stage, {}))
    run.update(base_model="/models/Small", backend={"kind": "stub"})
    return run


class Page(HTMLParser):
    """A page, checked while it is read: tags that match, ids that are there once, nothing that loads or runs."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        if "style" not in self.open[-1:]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def check(self) -> "Page":
        ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        links = [
            attributes[name]
            for _, attributes in self.tags
            for name in ("href", "src", "data", "action")
            if name in attributes
        ]
        assert links and all(link.startswith("#") and link[1:] in ids for link in links)
        used = re.findall(r"url\((.*?)\)", self.source)
        assert all(reference.strip("'\"")[1:] in ids for reference in used), used
        names = [tag for tag, _ in self.tags]
        assert not {"script", "iframe", "object", "embed", "link", "img", "form", "base"} & set(names)
        assert not [name for _, attributes in self.tags for name in attributes if name.startswith("on")]
        assert "http" not in self.source.replace("http-equiv", "")
        policy = next(
            attributes["content"]
            for tag, attributes in self.tags
            if attributes.get("http-equiv") == "Content-Security-Policy"
        )
        assert "default-src 'none'" in policy and "script-src" not in policy
        levels = [int(name[1]) for name in names if re.fullmatch(r"h[1-6]", name)]
        assert levels.count(1) == 1 == levels[0] and all(
            after <= before + 1 for before, after in zip(levels, levels[1:])
        )
        assert names.count("table") == names.count("caption") and all(
            "scope" in attributes for tag, attributes in self.tags if tag == "th"
        )
        assert all(
            attributes.get("role") == "img" and attributes["aria-label"]
            for tag, attributes in self.tags
            if tag == "svg"
        )
        return self


def course(capsys, *arguments: str) -> tuple[int, str, str]:
    try:
        status = cli.main(["report", *arguments])
    except SystemExit as end:
        status = end.code
    return status, *capsys.readouterr()


# one run


def test_a_complete_run(folder):
    run = make_run("mine", "yyyyyynnnn", rank=4)
    page = Page(write_report(run)).check()
    assert page.source == Page(write_report(run)).source  # nothing in it depends on when or how often
    text = page.text
    assert (
        "Small, tuned on 64 examples of word_problems.json. Backend: stub." in text
        and "the run is complete" in text
    )
    assert (
        "base model 10.0% (1.8% to 40.4%) → tuned model 60.0% (31.3% to 83.2%)" in text and "overlap" in text
    )
    assert (
        "gained 6 and lost 1" in text
        and "p = 0.219" in text
        and "Right: 6 of 6" in text
        and "Wrong: 4 of 4" in text
    )
    assert (
        re.search(r"Is the merged model the trained one\? +Yes, within the tolerance", text)
        and "160 tokens differ by 2e-05 nats at most (0.0005 are allowed)" in text
    )
    assert (
        re.search(r"Does vLLM answer like the merged model\? +No", text)
        and "base model to Tinker sampler" in text
    )
    assert (
        "Training: 104 tokens a second" in text
        and "vLLM, 4 at once 123" in re.sub(r" +", " ", text)
        and "Gained: 6" in text
        and "Lost: 1" in text
    )
    assert re.search(
        r'<th scope="row" class="code">rank</th><td class="code">4</td><td>32 \(train\)', page.source
    )
    assert (
        "evaluate/flips.jsonl" in text and "Not all of the run" not in text and str(folder) not in page.source
    )
    assert sum(tag == "svg" for tag, _ in page.tags) == 4


def test_hostile_text_stays_text():
    run = make_run("mine", words=" ".join(HOSTILE))
    page = Page(write_report(run)).check()
    text = page.text
    for words in HOSTILE[:5]:
        assert words in text, words
    assert "NUL � and � alone" in page.source and "the first 4,000 of" in text
    assert all(
        attributes.get("dir") == "auto" for _, attributes in page.tags if attributes.get("class") == "said"
    )
    assert (
        max(
            len(line)
            for figure in re.findall(r"<text.*?</text>", page.source, re.S)
            for line in re.sub("<.*?>", "", figure).splitlines()
        )
        < 60
    )
    other = make_run("other", words=" ".join(HOSTILE))
    assert HOSTILE[0] in Page(write_comparison([run, other], run.path.parent / "c.html")).check().text


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_text('{"index": 0, "pro\n{"index": 1')


def change(path: Path) -> None:
    """JSON of another form: in a list of rows, the second one is wrong."""
    first = path.read_text().splitlines()[0] + "\n" if path.suffix == ".jsonl" else ""
    path.write_text(first + '{"step": "many", "base_correct": -1}\n')


@pytest.mark.parametrize("harm", [lose, cut, change])
def test_what_is_missing_or_damaged_is_named(harm, capsys):
    run = make_run("mine")
    for name in FILES:
        harm(run.file(name))
    page = Page(write_report(run)).check()
    for name in FILES:
        assert re.search(
            rf"{name}(, line 2,)? (is missing|is damaged|can't be read)|{name}, line \d is damaged", page.text
        ), name
    assert (
        "Base and tuned model have no score" in page.text
        and "64" in page.text
        and "merged model, vLLM" in page.text
    )
    status, out, _ = course(capsys, "mine", "--json")
    told = json.loads(out)
    assert (
        status == 0
        and all(any(name in words for words in told["problems"]) for name in FILES)
        and told["runs"][0]["scores"][0]["correct"] == 5
    )
    if harm is change:
        assert "evaluate/samples.jsonl, line 2, is damaged: index: Field required" in page.text


def test_a_run_that_is_not_complete(capsys):
    run = make_run("mine", done=("split", "train"))
    page = Page(write_report(run)).check()
    for stage, notebook in (
        ("evaluate", "03_evaluate"),
        ("merge", "05_merge"),
        ("vllm", "06_vllm_inference"),
    ):
        assert f"stage {stage} was not run: notebooks/{notebook}.ipynb does it" in page.text
    assert page.text.count("Not checked.") == 2 and "chosen: step 8, 2 of 6" in page.text
    status, out, _ = course(capsys)
    assert (
        status == 0
        and out.count("note: stage ") == 4
        and out.splitlines()[-1] == str(run.file("report.html"))
    )


def test_stale_stages_and_one_that_did_not_finish():
    run = make_run("mine")
    run.begin("train", {"rank": 2})
    page = Page(write_report(run)).check()
    assert (
        "stage train was begun and did not finish" in page.text
        and "stage evaluate is stale: it belongs to an earlier model" in page.text
    )
    assert (
        "no checkpoint is chosen yet" in page.text
        and "the run is unfinished" in page.text
        and "have no score" in page.text
    )


def test_an_empty_run_and_strange_results():
    assert "stage split was not run" in Page(write_report(make_run("empty", done=()))).check().text
    run = make_run("mine", done=("split",))
    manifest = run.manifest
    manifest["stages"]["split"]["results"]["sizes"] = 7
    write_json(run.manifest_path, manifest)
    assert (
        "manifest.json, results of split is damaged: sizes: Input should be a valid dictionary"
        in Page(write_report(run)).check().text
    )
    run.manifest_path.write_text("{")
    with pytest.raises(RunError, match="mine is damaged: manifest.json can't be read"):
        write_report(run)


# several runs


def test_a_comparison_of_two_runs(monkeypatch, folder):
    first, second = make_run("first", "yyyyynnnnn", rank=4), make_run("second", "ynyyyyyynn", rank=16)
    second.update(packages=second.manifest["packages"] | {"torch": "0.0.1"})
    manifest = second.manifest
    manifest["stages"]["split"]["data"][0]["sha256"] = "f" * 64
    write_json(second.manifest_path, manifest)
    page = Page(write_comparison([first, second], folder / "comparison.html")).check()
    rows = [re.sub(r"<[^>]+>", "|", row) for row in re.findall(r"<tr>.*?</tr>", page.source)]
    cells = [[cell for cell in row.split("|") if cell] for row in rows]
    assert ["run", "rank"] in cells and ["first", "4"] in cells and ["second", "16"] in cells
    assert ["second to first", "+20.0", "3", "1", "4", "2", "0.625", "0.625"] in cells  # 2 × (1 + 4) / 2⁴
    assert ["second", "tuned model, sampler", "7/10", "70.0%", "39.7% to 89.2%"] in cells and [
        "first",
        "vLLM to merged model",
        "0.7",
        "0.0005",
        "no",
    ] in cells
    assert ["second", "f" * 12] in cells and ["second", "0.0.1"] in cells
    assert (
        "second to first: 3 gained" in page.text
        and "first to first" not in page.text
        and "not all scored on the same" not in page.text
    )
    assert sum(tag == "svg" for tag, _ in page.tags) == 4


def test_other_test_problems_are_not_paired(folder):
    runs = [
        make_run("one"),
        make_run("short", "yyn"),
        make_run("two"),
        make_run("bare", done=("split", "train")),
    ]
    page = Page(write_comparison(runs, folder / "c.html")).check()
    assert (
        "not all scored on the same test problems" in page.text
        and "one, two: 10 problems" in page.text
        and "short: 3 problems, 3 of them" in page.text
    )
    assert (
        "two to one" in page.text
        and "short to" not in page.text
        and "run bare: stage evaluate was not run" in page.text
    )
    assert (
        "for want of a usable evaluate/samples.jsonl: bare" in page.text
        and "Without a score: bare" in page.text
    )
    write_jsonl(runs[2].file("evaluate/samples.jsonl"), [{"index": 0}])
    page = Page(write_comparison(runs, folder / "c.html")).check()
    assert (
        "run two: evaluate/samples.jsonl, line 1, is damaged" in page.text
        and "So there is no pair" in page.text
    )


def test_settings_that_differ():
    runs = [
        look_at(make_run(name, done=done, rank=rank).path)
        for name, rank, done in (
            ("a", 4, ("split", "train")),
            ("b", 8, ("split", "train")),
            ("c", 4, ("split",)),
        )
    ]
    different, same = compare_settings(runs)
    assert different == {"rank": ["4", "8", "–"]}
    assert (
        same["data_files"] == '"data/word_problems.json"'
        and same["base model"] == "Small"
        and same["backend"] == "stub"
    )


def test_holm_allows_for_several_tests():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([0.2]) == [0.2]


def test_one_run_makes_no_comparison(folder):
    with pytest.raises(DataError, match="1 runs make no comparison"):
        write_comparison([make_run("one")], folder / "c.html")


# the command


def test_where_the_page_goes(capsys, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.runs.report.page.report_page", lambda run: (f"page of {run.name}", []))
    monkeypatch.setattr(comparison, "comparison_page", lambda runs: (" ".join(run.name for run in runs), []))
    make_run("old", done=())
    make_run("newest", done=())
    newest = folder / "newest" / "report.html"
    assert course(capsys) == (0, f"{newest}\n", "") and newest.read_text() == "page of newest"
    assert (
        course(capsys, "old", "newest")[1] == f"{folder / 'comparison.html'}\n"
        and (folder / "comparison.html").read_text() == "old newest"
    )
    assert (
        course(capsys, "old", "--output", str(tmp_path / "a" / "b.html"))[0] == 0
        and (tmp_path / "a" / "b.html").read_text() == "page of old"
    )
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or len(opened) == 1)
    assert course(capsys, "--open")[0] == 0 and opened == [newest.as_uri()]
    status, _, err = course(capsys, "--open")
    assert status == 1 and "no browser could be started; the page is written" in err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["one", "latest"], 2, "named twice"),
        (["two"], 1, "there is no run 'two'"),
        (["--output", "report.txt"], 2, "must end in .html"),
        (["--output", "/proc/no/report.html"], 1, "can't write /proc/no/report.html"),
    ],
)
def test_what_is_refused(arguments, status, words, capsys, monkeypatch):
    monkeypatch.setattr("helpers.runs.report.page.report_page", lambda run: ("", []))
    make_run("one", done=())
    got, _, err = course(capsys, *arguments)
    assert got == status and words in err and len(re.findall(r"^→ \S", err, re.M)) == 1


def test_a_report_of_a_run_that_is_gone(capsys, folder):
    shutil.rmtree(make_run("one", done=()).path)
    assert course(capsys)[0] == 1
