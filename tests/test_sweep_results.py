"""The results of a sweep: which run is best, the table, the plot, the folder among the others."""

import csv
import os
import re

import pytest
from commands import course
from runs_for_tests import make_run
from sweeps_for_tests import data_of, sweep_of_two

from helpers import plots
from helpers.runs.info import find_runs
from helpers.runs.sweep import collect, grid, plan_sweep
from helpers.runs.sweep.results import best_row, csv_text, flags_text, results_text

pytestmark = pytest.mark.usefixtures("folder")


def rows_with(sweep, *scores: tuple[int, float]) -> list[dict]:
    """Made-up rows: right answers of 20, and loss."""
    empty = collect(sweep)
    return [
        row
        | {
            "status": "done",
            "validation": {
                "correct": c,
                "total": 20,
                "accuracy": c / 20,
                "ci95": [max(0, c / 20 - 0.1), c / 20 + 0.1],
            },
            "validation_loss": loss,
        }
        for row, (c, loss) in zip(empty, scores, strict=True)
    ]


def test_the_best_is_chosen_by_validation(small_data):
    sweep = plan_sweep("s", grid({"rank": [2, 4, 8]}), data_of(small_data))
    rows = rows_with(sweep, (5, 0.3), (12, 0.9), (12, 0.5))
    rows[0]["test"] = {
        "correct": 9,
        "total": 10,
        "accuracy": 0.9,
        "ci95": [0.6, 0.98],
    }  # the best on the test set is not the best
    assert best_row(sweep, rows)["run"] == "s-03"
    assert "Intervals that overlap with its own: 1 of 2" in results_text(sweep, rows)
    rows[2]["status"] = "failed"
    assert best_row(sweep, rows)["run"] == "s-02"
    by_loss = plan_sweep("t", grid({"rank": [2, 4, 8]}), data_of(small_data) | {"best_metric": "loss"})
    assert best_row(by_loss, rows_with(by_loss, (5, 0.3), (12, 0.9), (12, 0.5)))["run"] == "t-01"
    assert best_row(sweep, collect(sweep)) is None


def test_other_validation_problems_are_pointed_out(small_data):
    sweep = plan_sweep("s", grid({"seed": [1, 2]}), data_of(small_data))
    assert "not all split alike" in results_text(sweep, rows_with(sweep, (5, 0.3), (6, 0.3)))
    alike = plan_sweep("t", grid({"rank": [1, 2]}), data_of(small_data))
    assert "not all split alike" not in results_text(alike, rows_with(alike, (5, 0.3), (6, 0.3)))


def test_measures_have_their_names_and_a_lenient_one_is_flagged(small_data):
    sweep = plan_sweep("s", grid({"rank": [2, 4]}), data_of(small_data))
    rows = rows_with(sweep, (5, 0.3), (6, 0.3))
    assert "validation, right answers (95%)" in results_text(sweep, rows)
    test = {"correct": 9, "total": 10, "accuracy": 0.9, "ci95": [0.6, 0.98], "mean_f1": 0.75}
    rows = [row | {"measure": "exact match", "flag": "WARNING: lenient", "test": test} for row in rows]
    text = results_text(sweep, rows)
    assert "validation, exact match (95%)" in text and "9/10  90% [60%, 98%], mean F1 0.75" in text
    assert flags_text(rows) == "s-01, s-02: WARNING: lenient" and "by highest exact match" in text
    line = next(csv.DictReader(csv_text(sweep, rows).splitlines()))
    assert (line["measure"], line["test_mean_f1"], line["flag"]) == (
        "exact match",
        "0.75",
        "WARNING: lenient",
    )


def test_texts_with_commas_in_the_csv(small_data):
    sweep = plan_sweep("s", grid({"unseen_templates": ["ages,change", "ages"]}), data_of(small_data))
    assert [
        row["unseen_templates"] for row in csv.DictReader(csv_text(sweep, collect(sweep)).splitlines())
    ] == ["ages,change", "ages"]


def test_the_plot(small_data):
    sweep = plan_sweep(
        "s",
        grid({"rank": [2, 16], "learning_rate": [1e-3, 3e-4], "prompt_format": ["guide", "role_colon"]}),
        data_of(small_data),
    )
    figure = plots.sweep_panels(
        rows_with(sweep, *((n, 1.0) for n in range(8))), list(sweep.swept), "s-08", left_out=1
    )
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "rank, width of the LoRA factors",
        "learning_rate, of the first step",
        "prompt_format",
    ]
    assert [text.get_text() for text in figure.axes[1].get_xticklabels()] == ["0.0003", "0.001"]
    # A kind of point for each combination of the others.
    assert all(len(axes.containers) == 4 for axes in figure.axes)
    assert "right answers" in figure.axes[0].get_ylabel() and "1 not finished" in figure._suptitle.get_text()


def test_list_and_clean(capsys, small_data, notebooks, folder):
    make_run("other", done=())
    sweep_of_two(capsys, small_data)
    status, out, _ = course(capsys, "list")
    assert (
        status == 0
        and "sweep s: `course show s`" in out
        and "damaged" not in out
        and {run.name for run in find_runs()} == {"other", "s-01", "s-02"}
    )
    assert "split     done, as in s-01" in course(capsys, "show", "s-02")[1]
    for arguments, said in (
        (["run", "--name", "s"], "a sweep named 's' exists"),
        (["run", "--like", "s"], "s is a sweep, not a run"),
    ):
        assert said in course(capsys, *arguments)[2]
    status, out, _ = course(capsys, "clean", "s", "--yes")
    assert status == 0 and "table and plot of a sweep" in out and "deleted 3 folders" in out
    assert (
        sorted(path.name for path in folder.iterdir()) == ["latest", "other"]
        and os.readlink(folder / "latest") == "other"
    )


def test_a_damaged_sweep(capsys, small_data, notebooks, folder):
    sweep_of_two(capsys, small_data)
    for text in ("{", "[]", '{"until": "never", "swept": [], "runs": {"s-01": {}}}'):
        (folder / "s/sweep.json").write_text(text)
        status, _, err = course(capsys, "show", "s")
        assert status == 1 and "sweep.json is damaged" in err
    assert course(capsys, "list")[0] == 0
    assert course(capsys, "clean", "s", "--yes")[0] == 0 and not (folder / "s").exists()


def test_a_damaged_run_of_a_sweep(capsys, small_data, notebooks, folder):
    sweep_of_two(capsys, small_data)
    (folder / "s-01/train/best_checkpoint.json").write_text("{")
    (folder / "s-02/manifest.json").write_text("[]")
    out = course(capsys, "show", "s")[1]
    assert (
        re.search(r"s-01 damaged: .*best_checkpoint.json is damaged", out)
        and "s-02 damaged: manifest.json is damaged" in out
    )
