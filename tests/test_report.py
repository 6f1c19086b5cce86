"""The page of one run, read by an HTML parser. Runs are made up, so text, counts and p-values are known."""

import json
import os
import re
from pathlib import Path

import pytest
from html_page import Page
from runs_for_tests import PARITY, begin_stage, finish_stage, make_run, make_text_run

from helpers.errors import RunError
from helpers.evaluate.score import Mean
from helpers.files import write_json
from helpers.runs import result_files
from helpers.runs.info import readable_run
from helpers.runs.report.comparison import write_comparison
from helpers.runs.report.page import report_page, write_report
from helpers.runs.result_files import METRICS, ResultFile, Results

FILES = sorted(value.path for value in vars(result_files).values() if isinstance(value, ResultFile))
HOSTILE = [
    "<script>alert(1)</script>",
    "\"quoted\" & 'single' </div></details>",
    "abc \u202e\u2067 drow",
    "文字 题目",
    r"$\frac{1}{2$ \text{LaTeX} {{ 7 * 7 }} {% raw %}",
    "NUL \x00 and \ud800 alone",
    "-->]]>&lt;",
    "x" * 5000,
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("COURSE_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return tmp_path / "runs"


def test_a_complete_run(folder):
    run = make_run("mine", right="yyyyyynnnn", rank=4)
    page = Page(write_report(run))
    assert page.source == Page(write_report(run)).source, "it depends on when or how often it is made"
    for words in (
        "Small-1B, tuned on 64 examples of word_problems.json. Backend: stub. Made 2026-11-20 10:00 UTC",
        "the run is complete",
        "Accuracy on the 10 test problems: base model 10.0% (1.8% to 40.4%) → tuned model 60.0% (31.3%",
        "those of the accuracy overlap",
        "asked in 2 ways, and the strongest counts: chat template.",
        "mismatched answers, the references of other problems: accuracy 0/10",
        "always answering '4', the commonest in training: accuracy 1/10",
        "gained 6 and lost 1 against the base model. McNemar's exact test: p = 0.219",
        "Right: 6 of 6",
        "Wrong: 4 of 4",
        "Training: 104 tokens a second, the median of 8 steps",
        "Gained: 6 (only the tuned model is right)",
        "Lost: 1 (only the base model is right)",
        "All 10 are in evaluate/samples.jsonl",
        "All 61 settings, by stage",
        "0:54 in all",
    ):
        assert words in page.text, words
    for row in (
        ["rank", "4", "32", "train"],
        ["train", "64", "0"],
        ["merged model, vLLM", "6/10", "60.0%", "31.3% to 83.2%"],
        ["vLLM, 4 at once", "123"],
        ["chat template, 8 examples", "not asked: there is no room"],
        ["8", "0.222", "2/6"],
        ["merge", "0:09", "17%", ""],
    ):
        assert row in page.rows, row
    assert page.figures == 4
    assert "Not all of the run" not in page.text and str(folder) not in page.source


def test_the_verdict_on_parity():
    run = make_run("mine")
    write_json(
        run.file("vllm/parity.json"), PARITY | {"other": "vLLM", "max_abs_logprob_diff": 0.7, "passed": False}
    )
    page = Page(write_report(run))
    assert "Is the merged model the trained one? Yes, within the tolerance : log-prob" in page.text
    assert "160 tokens differ by 2e-05 nats at most (0.0005 are allowed)" in page.text
    assert "Does vLLM answer like the merged model? No : log-prob" in page.text
    compared = {row[0]: row[-1] for row in page.rows if " to Tinker sampler" in row[0]}
    assert compared == {
        "merged to Tinker sampler": "yes",
        "base model to Tinker sampler": "no",
        "vLLM to Tinker sampler": "no",
    }


def test_free_text_is_shown_by_exact_match_and_mean_f1_and_flagged():
    run = make_text_run()
    page = Page(write_report(run))
    low, high = Mean(0.5, 10).ci95
    f1 = f"{low:.2f} to {high:.2f}"
    assert "Exact match on the 10 test problems: base model 10.0%" in page.text
    assert f"→ tuned model 50.0% (23.7% to 76.3%), mean F1 0.50 ({f1})" in page.text
    assert ["merged model, vLLM", "5/10", "50.0%", "23.7% to 76.3%", "0.50", f1] in page.rows
    flag = "WARNING: mean F1 gives 0.5 or more to 8 of 10 answers to other problems"
    assert page.source.count(f'<p class="bad">{flag}') == 2 and "Accuracy" not in page.text
    both = Page(write_comparison([run, make_text_run("fine", 0)], run.path.parent / "c.html"))
    assert f"texts: {flag}" in both.text and "fine: WARNING" not in both.text
    row = next(row for row in both.rows if row[:3] == ["fine", "tuned model, sampler", "exact match"])
    assert row[-2:] == ["0.50", f1]


def test_what_a_task_measures_beside_the_rate():
    run = make_run("mine")
    path = run.file("evaluate/model_evaluation.json")
    measures = {"base": {"mean_f1": 0.25}, "tuned": {"mean_f1": 0.5}}
    write_json(path, json.loads(path.read_text()) | {"task": {"name": "text"}, "measures": measures})
    page = Page(write_report(run))
    assert re.search(r"mean F1 0.25, 95% interval 0.08 to 0.56 → 0.50, 95% interval 0.24 to 0.76", page.text)
    finish_stage(run, "split", results={"task": {"name": "classification", "labels": {"spam": 3, "ham": 2}}})
    page = Page(write_report(run))
    assert "An answer is right if it names the reference's label and no other" in page.text
    assert "stage evaluate is stale" in page.text and "mean F1 0.25" in page.text


def test_settings_of_several_stages_share_a_row():
    page = Page(
        write_report(make_run("mine", done=("split", "train", "evaluate"), max_tokens=24, dtype="bfloat16"))
    )
    assert ["max_tokens", "24", "96", "train, evaluate"] in page.rows
    assert not [row for row in page.rows if row[0] == "dtype"], "no stage that takes it was begun"


def test_categories_that_make_no_figure():
    run = make_run("mine")
    path = run.file("evaluate/model_evaluation.json")
    evaluation = json.loads(path.read_text())
    many = {f"kind {i}": {"correct": 1, "total": 2} for i in range(26)}
    write_json(path, evaluation | {"by_category": many, "base_by_category": many})
    page = Page(write_report(run))
    assert "26 categories are too many for a figure" in page.text and page.figures == 3
    assert ["kind 25", "1/2", "1/2", "50.0%", "9.5% to 90.5%"] in page.rows
    write_json(path, evaluation | {"by_category": {}, "base_by_category": {}})
    assert "The test problems have no category" in Page(write_report(run)).text


def test_hostile_text_stays_text():
    words = " ".join(HOSTILE)
    run = make_run("mine", text=words, instruction=words.replace("\ud800", "").replace("\0", ""))
    page = Page(write_report(run))
    shown = " ".join(page.words)
    for text in HOSTILE[:5]:
        assert text in shown, text
    assert "NUL � and � alone" in page.source and "the first 4,000 of" in page.text
    said = [attributes for _, attributes in page.tags if attributes.get("class") == "said"]
    assert said and all(attributes["dir"] == "auto" for attributes in said)
    labels = [re.sub("<.*?>", "", text) for text in re.findall(r"<text.*?</text>", page.source, re.S)]
    assert labels and max(len(line) for label in labels for line in label.splitlines()) < 60
    other = make_run("other", text=words)
    assert HOSTILE[0] in Page(write_comparison([run, other], run.path.parent / "c.html")).text


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_text('{"index": 0, "pro\n{"index": 1')


def change(path: Path) -> None:
    """JSON of another form: in a list of rows, the second one is wrong."""
    first = path.read_text().splitlines()[0] + "\n" if path.suffix == ".jsonl" else ""
    path.write_text(first + '{"step": "many", "base_correct": -1}\n')


@pytest.mark.parametrize("harm", [lose, cut, change])
def test_what_is_missing_or_damaged_is_named(harm):
    run = make_run("mine")
    for name in FILES:
        harm(run.file(name))
    page = Page(write_report(run))
    _, problems = report_page(readable_run("mine"))
    for name in FILES:
        pattern = rf"^{name}(, line \d,)? (is missing|is damaged)"
        [told] = [words for words in problems if re.search(pattern, words)]
        stage = name.split("/")[0]
        assert told.endswith(f"or `course run --from {stage} --name mine`")
        assert page.text.count(told) >= 2, "at the head, and where it would be shown"
    assert "Base and tuned model have no score" in page.text
    assert ["merged model, vLLM", "5/10", "50.0%", "23.7% to 76.3%"] in page.rows
    if harm is change:
        assert any(
            "evaluate/samples.jsonl, line 2, is damaged: index: Field required" in told for told in problems
        )


def test_counts_that_no_score_can_have():
    run = make_run("mine")
    path = run.file("evaluate/model_evaluation.json")
    path.write_text(path.read_text().replace('"test_correct": 5', '"test_correct": 11'))
    with run.edit() as manifest:
        manifest.stages.merge.results.correct = 11
    results = Results(readable_run("mine"))
    assert list(results.scores) == ["merged model, vLLM"]
    assert "more are right than the 10 of the test set" in results.problems["evaluate/model_evaluation.json"]
    assert "no usable score of the merged model, transformers" in results.problems["manifest.json, merge"]


def test_a_last_line_that_a_crash_has_cut_is_not_counted():
    run = make_run("mine")
    with run.file("train/metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "train')
    assert [row.step for row in METRICS.read(run.path)] == list(range(1, 9))
    assert not Results(readable_run("mine")).problems


def test_a_run_that_is_not_complete():
    page = Page(write_report(make_run("mine", done=("split", "train"))))
    for stage, notebook in (
        ("evaluate", "03_evaluate"),
        ("merge", "05_merge"),
        ("vllm", "06_vllm_inference"),
    ):
        assert f"stage {stage} was not run: notebooks/{notebook}.ipynb does it" in page.text
    assert page.text.count("Not checked.") == 2 and "chosen: step 8, 2 of 6" in page.text


def test_stale_stages_and_one_that_did_not_finish():
    run = make_run("mine")
    begin_stage(run, "train", rank=2)
    page = Page(write_report(run))
    for words in (
        "stage train was begun and did not finish",
        "stage evaluate is stale: it belongs to an earlier model",
        "no checkpoint is chosen yet",
        "the run is unfinished",
        "have no score",
    ):
        assert words in page.text, words


def test_files_that_are_gone():
    run = make_run("mine")
    run.file("merge/parity.json").unlink()
    page = Page(write_report(run))
    assert "Listed in manifest.json and no longer there: merge/parity.json." in page.text
    assert ["merge/parity.json", "merge", "missing"] in page.rows


def test_an_empty_run_and_one_of_another_version():
    run = make_run("empty", done=())
    assert "stage split was not run" in Page(write_report(run)).text
    write_json(run.manifest_path, {"name": "empty", "stages": {}})
    with pytest.raises(RunError, match="made by an earlier version of the course"):
        write_report(run)
