"""JupyterLab as `course lab` starts it, in a real browser: what a learner sees when opening a notebook, running it
and trying an exercise.
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

from helpers.net import free_port
from helpers.paths import ROOT

pytestmark = pytest.mark.skipif(not find_browser(), reason="there is no Chromium")
NOTEBOOK = "document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden)')"
IDLE = f"{NOTEBOOK}?.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'"
FRONT = "[...document.querySelectorAll('.lm-DockPanel-tabBar .lm-mod-current')].map(tab => tab.title)"
DIRTY = "document.querySelectorAll('.lm-DockPanel-tabBar .jp-mod-dirty').length"
POPPED_UP = "[...document.querySelectorAll('.jp-Dialog, .Toastify__toast')].map(box => box.textContent)"
ERRORS = (
    f"[...{NOTEBOOK}.querySelectorAll('[data-mime-type=\"application/vnd.jupyter.error\"], .jp-RenderedText-error')]"
    ".map(box => box.textContent)"
)


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
    command = [sys.executable, "-m", "helpers.course", "lab", "--no-browser", "--port", str(free_port()), "--"]
    more = ["--allow-root"] if os.geteuid() == 0 else []
    more.append("--LabApp.expose_app_in_browser=True")
    log = tmp_path / "lab.log"
    with open(log, "w") as written:
        server = subprocess.Popen([*command, *more], cwd=project, env=environment, stdout=written, stderr=written)
    try:
        with browser_tab(tmp_path / "profile") as opened:
            opened.open(printed_address(log))
            opened.wait(IDLE)
            yield opened
    finally:
        server.terminate()
        server.wait(30)


def printed_address(log: Path) -> str:
    deadline = time.monotonic() + 60
    while not (found := re.search(r"http://(localhost|127\.0\.0\.1):\S+", log.read_text())):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return found[0]


def check_page(tab: Tab) -> None:
    """No box in front of the notebook, no error in it, no figure missing, no link that leads nowhere."""
    assert tab.value(POPPED_UP) == [] and tab.value(ERRORS) == [] and tab.problems == []
    pictures = tab.value(f"[...{NOTEBOOK}.querySelectorAll('img')].map(p => [p.src, p.naturalWidth])")
    assert [source for source, width in pictures if not width] == []
    for target in tab.value(f"[...{NOTEBOOK}.querySelectorAll('.jp-RenderedMarkdown a[href]')].map(a => a.href)"):
        if target.startswith(tab.value("location.origin")):
            assert tab.value(f"fetch({json.dumps(target)}).then(got => got.status)") == 200, target


def test_lab_opens_the_first_notebook_and_changes_nothing(tab, project):
    path = "notebooks/00_start_here.ipynb"
    before = (project / path).read_bytes()
    assert tab.value("document.title").startswith("00_start_her")
    headings = tab.value(f"[...{NOTEBOOK}.querySelectorAll('h1, h2')].map(h => h.textContent)")
    assert headings[0].startswith("00 · Start here") and headings[-1].startswith("Recap")
    check_page(tab)
    listed = tab.value("fetch('/api/contents/').then(got => got.json())")["content"]
    assert {"README.md", "runs", "docs", "notebooks"} <= {entry["name"] for entry in listed}
    assert not tab.value(DIRTY) and (project / path).read_bytes() == before
