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
CELLS = f"[...{NOTEBOOK}?.querySelectorAll('.jp-Cell') ?? []]"
SHOWN = (  # how many cells show their text, and how many what they printed
    "['.jp-RenderedMarkdown', '.jp-OutputArea-output'].map("
    f"what => {CELLS}.filter(cell => cell.querySelector(what)?.innerHTML).length).join()"
)
FRONT = "document.querySelector('.lm-DockPanel-tabBar .lm-mod-current')?.textContent"
DIRTY = "document.querySelectorAll('.lm-DockPanel-tabBar .jp-mod-dirty').length"
POPPED_UP = "[...document.querySelectorAll('.jp-Dialog, .Toastify__toast')].map(box => box.textContent)"
RED = ", ".join(f'[data-mime-type="application/vnd.jupyter.{kind}"]' for kind in ("error", "stderr"))
ERRORS = f"[...{NOTEBOOK}.querySelectorAll('{RED}')].map(box => box.textContent)"
PANEL = "[...jupyterapp.shell.widgets('main')].find(widget => widget.isVisible && widget.content?.widgets)"
KERNEL = f"{PANEL}?.sessionContext.session?.kernel"
IDLE = f"{KERNEL}?.connectionStatus === 'connected' && {KERNEL}.status === 'idle'"
ACTIVE = f"jupyterapp.shell.activateById({PANEL}.id), jupyterapp.shell.currentWidget === {PANEL}"
RUN_ALL = "void jupyterapp.commands.execute('notebook:run-all-cells')"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project, which JupyterLab may write into."""
    left_out = shutil.ignore_patterns(".*", "runs", "__pycache__", "*.egg-info")
    copy = Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("lab") / "course", ignore=left_out))
    (copy / "runs").mkdir()
    return copy


@pytest.fixture(scope="module")
def tab(project, course_env, tmp_path_factory) -> Iterator[Tab]:
    """A tab at the address that `course lab --no-browser` prints."""
    home = tmp_path_factory.mktemp("lab-home")
    environment = course_env | {"HOME": str(home), "PYTHONPATH": str(project)}
    environment.pop("COURSE_RUNS_DIR")  # runs lie in the project, as a learner has them
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
    log = home / "lab.log"
    with open(log, "w") as written:
        server = subprocess.Popen(
            [*command, *more], cwd=project, env=environment, stdout=written, stderr=written
        )
    try:
        with browser_tab(home / "profile") as opened:
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
    """Until it is in front, with all of its texts, outputs and pictures, and its kernel has started."""
    texts = sum(cell["cell_type"] == "markdown" for cell in cells(notebook))
    outputs = sum(bool(cell.get("outputs")) for cell in cells(notebook))
    tab.wait(f"{FRONT} === '{notebook.name}' && {SHOWN} === '{texts},{outputs}' && {IDLE}")
    tab.wait(f"[...{NOTEBOOK}.querySelectorAll('img')].every(picture => picture.complete)")
    tab.value(f"{KERNEL}.info.then(() => true)")
    tab.wait(ACTIVE)


def go_to(tab: Tab, notebook: Path) -> None:
    tab.problems.clear()
    tab.open(f"{tab.value('location.origin')}/lab/tree/notebooks/{notebook.name}?reset")  # no tabs of before
    wait_for(tab, notebook)


def faults(tab: Tab) -> list[str]:
    """What a page must not have: a box in front of it, an error, a missing figure, a link to nowhere."""
    found = tab.value(POPPED_UP) + tab.value(ERRORS) + tab.problems
    pictures = tab.value(f"[...{NOTEBOOK}.querySelectorAll('img')].map(p => [p.src, p.naturalWidth])")
    found += [f"no figure: {source}" for source, width in pictures if not width]
    here, links = tab.value("location.origin"), f"{NOTEBOOK}.querySelectorAll('.jp-RenderedMarkdown a[href]')"
    for target in tab.value(f"[...{links}].map(link => link.href)"):
        if target.startswith(here) and tab.value(f"fetch({json.dumps(target)}).then(got => got.ok)") is False:
            found.append(f"dead link: {target}")
    return found


def test_lab_opens_the_first_notebook_and_changes_nothing(tab, project):
    notebook = project / "notebooks/00_start_here.ipynb"
    before = notebook.read_bytes()
    wait_for(tab, notebook)
    headings = tab.value(f"[...{NOTEBOOK}.querySelectorAll('h1, h2')].map(h => h.textContent)")
    assert headings[0].startswith("00 · Start here") and headings[-1].startswith("Recap")
    assert faults(tab) == []
    listed = tab.value("fetch('/api/contents/').then(got => got.json())")["content"]
    assert {"README.md", "runs", "docs", "notebooks"} <= {entry["name"] for entry in listed}
    assert not tab.value(DIRTY) and notebook.read_bytes() == before


BROKEN = """[Next](99_none.ipynb)

![A figure](images/none.svg)"""


def test_what_is_broken_is_noticed(tab, project):
    notebook = project / "notebooks/broken.ipynb"
    failed = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": ["ValueError: no"]}
    code = {
        "cell_type": "code",
        "id": "b",
        "execution_count": 1,
        "metadata": {},
        "source": "",
        "outputs": [failed],
    }
    text = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": BROKEN}
    whole = {"cells": [text, code], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    notebook.write_text(json.dumps(whole))
    go_to(tab, notebook)
    told = faults(tab)
    assert [f for f in told if "ValueError" in f] and [f for f in told if f.startswith("no figure")]
    assert [f for f in told if f.startswith("dead link")]


@pytest.mark.soak  # two minutes on one core
def test_a_learner_runs_two_notebooks_and_tries_an_exercise(tab, project):
    first, second = (project / f"notebooks/{name}.ipynb" for name in ("00_start_here", "01_split"))
    go_to(tab, first)
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
    code = f"{PANEL}.content.widgets.filter(cell => cell.model.type === 'code')"
    tab.value(RUN_ALL)
    tab.wait(f"{code}.every(cell => cell.model.executionState === 'idle' && cell.model.executionCount)", 200)
    assert faults(tab) == []


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
        const notebook = {PANEL}.content;
        notebook.activeCellIndex = {cell};
        notebook.activeCell.model.sharedModel.setSource({json.dumps(source)});
        await jupyterapp.commands.execute('notebook:run-cell');
        return notebook.widgets[{cell}].node.querySelector('.jp-OutputArea-output').textContent;
    }})()"""
