"""`course run --part`: the notebooks of Parts 2 and 3 on a run, its manifest and its page."""

import nbformat
import pytest
from commands import assert_one_message, course
from nbformat.v4 import new_code_cell, new_notebook
from runs_for_tests import make_run

from helpers.paths import NOTEBOOKS
from helpers.runs.lessons import choose_lessons, defaults_of_lesson, placed
from helpers.runs.manifest import BackendUsed
from helpers.runs.stages import LESSONS, STAGES

pytestmark = pytest.mark.usefixtures("folder")
PYTHON = {"language_info": {"name": "python"}}


def test_every_notebook_after_the_road_belongs_to_a_part():
    numbered = {path.stem for path in NOTEBOOKS.glob("[0-9]*.ipynb")} - {"00_start_here"}
    lessons = [lesson for part in LESSONS.values() for lesson in part]
    assert numbered == {kind.notebook for kind in STAGES.values()} | set(lessons)
    assert all({"run_name", "folder_name"} & defaults_of_lesson(lesson).keys() for lesson in lessons)


def test_a_setting_goes_to_the_lessons_that_take_it():
    chosen = choose_lessons(LESSONS[3], ["rank=8", "kl=1", "loss_fn=ppo"])
    assert chosen["10_reinforcement_learning"] == {"rank": 8, "kl": 1.0, "loss_fn": "ppo"}
    assert isinstance(chosen["10_reinforcement_learning"]["kl"], float)
    assert "loss_fn" not in chosen["11_preferences"]
    quoted = choose_lessons(LESSONS[3], ['loss_fn="ppo"'])
    assert quoted["10_reinforcement_learning"] == {"loss_fn": "ppo"}  # as in a setting of Part 1


def test_a_lesson_goes_to_the_backend_of_its_run():
    run, url = make_run("mine", done=("split", "train")), "http://127.0.0.1:9/"
    rl, tokens = "10_reinforcement_learning", "07_tokens_and_templates"
    assert placed(run, tokens, {"problems": 4}) == {"run_name": "mine", "backend_name": "stub", "problems": 4}
    run.update(backend=BackendUsed(kind="url", url=url))
    assert placed(run, rl, {}) == {"folder_name": f"mine/{rl}", "backend_name": url}
    assert placed(run, rl, {"backend_name": "hosted"})["backend_name"] == "hosted"


@pytest.mark.parametrize(
    ("arguments", "parts", "status"),
    [
        (["-p", "group_sise=4"], ["'group_sise=4'", "did you mean group_size?"], 1),
        (["-p", "group_size"], ["'group_size'"], 1),
        (["-p", "group_size=4.5"], ["group_size", "4.5", "the default is 8"], 1),
        (["-p", "run_name=other"], ["'run_name=other'"], 1),
        (["--until", "train"], ["part 3 is run whole", "--until"], 2),
        (["--json"], ["part 3 is run whole", "--json"], 2),
        (["--name", "none"], ["no run 'none'"], 1),
        (["--name", "split-only"], ["no finished 'train' stage"], 1),
    ],
)
def test_refused_before_a_lesson_starts(arguments, parts, status, capsys):
    make_run("split-only", done=("split",))
    run = make_run("mine", done=("split", "train"))
    code, _, err = course(capsys, "run", "--part", 3, *arguments)
    assert code == status
    assert_one_message(err, *parts)
    assert run.manifest.lessons == {}


def test_lessons_run_into_the_folder_of_the_run(capsys, tmp_path, monkeypatch):
    """The second one fails until what it needs is there; then `--resume` leaves out the first."""
    needed = tmp_path / "needed"
    works = "from helpers.paths import runs_dir\n(runs_dir() / folder_name).mkdir()\nassert n == 3"
    fails = "from pathlib import Path\nfrom helpers.errors import DataError\n"
    fails += "from helpers.runs import open_run\nopen_run(run_name)\n"
    fails += f"if not Path({str(needed)!r}).exists():\n"
    fails += "    raise DataError('no file, in\\ntwo lines', 'write it')"
    for name, parameters, code in (
        ("1_a", "folder_name = 'x'\nn = 1", works),
        ("2_b", "run_name = ''", fails),
    ):
        tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
        nbformat.write(
            new_notebook(cells=[tagged, new_code_cell(code)], metadata=PYTHON), tmp_path / f"{name}.ipynb"
        )
    for module in ("helpers.paths", "helpers.runs.lessons"):
        monkeypatch.setattr(f"{module}.NOTEBOOKS", tmp_path)
    monkeypatch.setitem(LESSONS, 3, ("1_a", "2_b"))
    run = make_run("mine", done=("split", "train"))
    code, out, err = course(capsys, "run", "--part", 3, "-p", "n=3")
    first, second = (run.manifest.lessons[name] for name in ("1_a", "2_b"))
    assert code == 1 and "course run --part 3 --resume --name mine -p n=3" in err
    assert first.status == "done" and first.settings == {"n": 3} and run.file("1_a").is_dir()
    assert second.status == "started" and second.failure and second.failure.kind == "DataError"
    assert (second.failure.what, second.failure.fix) == ("no file, in\ntwo lines", "write it")
    assert "course: no file, in\ntwo lines\n→ write it\n" in err and "Traceback" not in err
    assert second.failure.what in course(capsys, "show")[1]
    code, _, err = course(capsys, "run", "--part", 3, "--resume", "-p", "n=4")
    assert code == 2 and "1_a is done, and not with n=4" in err and "leave out --resume" in err
    needed.write_text("{}")
    code, out, _ = course(capsys, "run", "--lesson", 2, "--resume")
    assert code == 0 and "[1/1] 2_b" in out and "1_a" not in out
    assert run.manifest.lessons["1_a"] == first and run.manifest.lessons["2_b"].failure is None
    page = run.file("report.html").read_text()
    assert "notebooks/1_a.ipynb" in page and "n=3" in page and run.file("notebooks/2_b.ipynb").exists()
