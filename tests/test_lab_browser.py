"""JupyterLab as `course lab` starts it, in a real browser: a learner opens a notebook, runs it and tries an
exercise.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Tab, browser_tab
from browser_attack import find_browser
from texts import cells

from helpers.net import free_port
from helpers.paths import ROOT

pytestmark = pytest.mark.skipif(not find_browser(), reason="there is no Chromium")
NOTEBOOK = "document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden)')"
RENDERED = (
    f"[...{NOTEBOOK}?.querySelectorAll('.jp-MarkdownCell') ?? []]"
    ".filter(cell => cell.querySelector('.jp-RenderedMarkdown').textContent).length"
)
IDLE = f"{NOTEBOOK}?.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'"
FRONT = "document.querySelector('.lm-DockPanel-tabBar .lm-mod-current')?.textContent"
DIRTY = "document.querySelectorAll('.lm-DockPanel-tabBar .jp-mod-dirty').length"
POPPED_UP = "[...document.querySelectorAll('.jp-Dialog, .Toastify__toast')].map(box => box.textContent)"
ERROR_BOX = '[data-mime-type="application/vnd.jupyter.error"]'
ERRORS = f"[...{NOTEBOOK}.querySelectorAll('{ERROR_BOX}')].map(box => box.textContent)"
RUN_ALL = "jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project, which JupyterLab may write into."""
    left_out = shutil.ignore_patterns(".*", "runs", "__pycache__", "*.egg-info")
    copy = Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("lab") / "course", ignore=left_out))
    (copy / "runs").mkdir()
    return copy


@pytest.fixture
def tab(project, course_env, tmp_path) -> Iterator[Tab]:
    """A tab at the address that `course lab --no-browser` prints."""
    environment = course_env | {"HOME": str(tmp_path), "PYTHONPATH": str(project)}
    command = [
        sys.executable,
        "-m",
        "helpers.course",
        "lab",
        "--no-browser",
        "--port",
        str(free_port()),
        "--",
    ]
    more = ["--allow-root"] if os.geteuid() == 0 else []
    more.append("--LabApp.expose_app_in_browser=True")
    log = tmp_path / "lab.log"
    with open(log, "w") as written:
        server = subprocess.Popen(
            [*command, *more], cwd=project, env=environment, stdout=written, stderr=written
        )
    try:
        with browser_tab(tmp_path / "profile") as opened:
            opened.open(printed_address(log))
            yield opened
    finally:
        server.terminate()
        server.wait(60)


def printed_address(log: Path) -> str:
    deadline = time.monotonic() + 60
    while not (found := re.search(r"http://(localhost|127\.0\.0\.1):\S+", log.read_text())):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return found[0]


def wait_for(tab: Tab, notebook: Path) -> None:
    """Until it is in front, all of its text is there, and its kernel has started."""
    texts = sum(cell["cell_type"] == "markdown" for cell in cells(notebook))
    tab.wait(f"{FRONT} === '{notebook.name}' && {RENDERED} === {texts} && {IDLE}")


def check_page(tab: Tab) -> None:
    """No box in front of the notebook, no error in it, no figure missing, no link that leads nowhere."""
    assert tab.value(POPPED_UP) == [] and tab.value(ERRORS) == [] and tab.problems == []
    pictures = tab.value(f"[...{NOTEBOOK}.querySelectorAll('img')].map(p => [p.src, p.naturalWidth])")
    assert [source for source, width in pictures if not width] == []
    for target in tab.value(
        f"[...{NOTEBOOK}.querySelectorAll('.jp-RenderedMarkdown a[href]')].map(a => a.href)"
    ):
        if target.startswith(tab.value("location.origin")):
            assert tab.value(f"fetch({json.dumps(target)}).then(got => got.status)") == 200, target


def test_lab_opens_the_first_notebook_and_changes_nothing(tab, project):
    notebook = project / "notebooks/00_start_here.ipynb"
    before = notebook.read_bytes()
    wait_for(tab, notebook)
    headings = tab.value(f"[...{NOTEBOOK}.querySelectorAll('h1, h2')].map(h => h.textContent)")
    assert headings[0].startswith("00 · Start here") and headings[-1].startswith("Recap")
    check_page(tab)
    listed = tab.value("fetch('/api/contents/').then(got => got.json())")["content"]
    assert {"README.md", "runs", "docs", "notebooks"} <= {entry["name"] for entry in listed}
    assert not tab.value(DIRTY) and notebook.read_bytes() == before


@pytest.mark.soak  # two minutes on one core
def test_a_learner_runs_two_notebooks_and_tries_an_exercise(tab, project):
    first, second = (project / f"notebooks/{name}.ipynb" for name in ("00_start_here", "01_split"))
    wait_for(tab, first)
    run_all(tab)
    number, cell, wrong, right = exercise_of(first)
    for answer, told in ((wrong, "Hint:"), (right, "Right.")):
        assert tab.value(try_answer(cell, answer)).startswith(told), (number, answer)
    next_one = "[...document.querySelectorAll('a')].find(a => a.href.includes('01_split.ipynb'))"
    tab.value(f"{next_one}.click()")
    wait_for(tab, second)
    run_all(tab)
    [run] = (path for path in (project / "runs").iterdir() if not path.is_symlink())
    assert (run / "split/test_set.json").is_file()


def run_all(tab: Tab) -> None:
    assert tab.value(RUN_ALL)
    counts = "jupyterapp.shell.currentWidget.content.widgets.filter(c => c.model.type === 'code')"
    assert None not in tab.value(f"{counts}.map(c => c.model.executionCount)")
    check_page(tab)


def exercise_of(notebook: Path) -> tuple[str, int, str, str]:
    """The last exercise of a notebook: number, cell, and the cell's text with a wrong and a right answer."""
    answers = tomllib.loads((ROOT / f"tests/answers/{notebook.stem}.toml").read_text())
    number = max(key for key in answers if key.isdigit())
    sources = ["".join(cell["source"]) for cell in cells(notebook)]
    [cell] = [i for i, text in enumerate(sources) if f"check_exercise({number}," in text]
    [right] = [given[0] for hint, given in answers[number].items() if hint.startswith("Right")]
    wrong = next(given[0] for hint, given in answers[number].items() if not hint.startswith("Right"))
    return number, cell, filled_in(sources[cell], wrong), filled_in(sources[cell], right)


def filled_in(source: str, answer: str) -> str:
    return source.replace("= None  #", f"= {answer}  #").replace("return None  #", f"return {answer}  #")


def try_answer(cell: int, source: str) -> str:
    """JavaScript: put this source into the cell, run it, and give what it prints."""
    return f"""(async () => {{
        const notebook = jupyterapp.shell.currentWidget.content;
        notebook.activeCellIndex = {cell};
        notebook.activeCell.model.sharedModel.setSource({json.dumps(source)});
        await jupyterapp.commands.execute('notebook:run-cell');
        return notebook.widgets[{cell}].node.querySelector('.jp-OutputArea-output').textContent;
    }})()"""
