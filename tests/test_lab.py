"""`course lab` up to the point where JupyterLab takes over."""

import asyncio
import json
import os
import subprocess

import pytest
from commands import course
from ipykernel.ipkernel import IPythonKernel

from helpers.course import lab
from helpers.course.lab_files import CourseFiles
from helpers.course.main import main
from helpers.errors import CourseError
from helpers.net import free_port
from helpers.paths import ROOT


@pytest.fixture
def became(monkeypatch) -> list:
    """Instead of JupyterLab: the command that this process would become."""
    commands = []
    monkeypatch.setattr(
        os, "execve", lambda program, command, environment: commands.append((command, environment))
    )
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.chdir(ROOT)
    return commands


def test_lab_opens_the_notebook(became, capsys):
    port = free_port()
    for arguments, notebook in (
        ([], "00_start_here"),
        (["02"], "02_train"),
        (["notebooks/03_evaluate.ipynb"], "03_evaluate"),
        (["solutions"], "solutions"),
    ):
        main(["lab", *arguments])
        command, environment = became[-1]
        assert f"--ServerApp.root_dir={ROOT}" in command
        assert f"--LabApp.default_url=/lab/tree/notebooks/{notebook}.ipynb" in command
        assert environment["JUPYTER_PREFER_ENV_PATH"] == "1"
        assert environment["JUPYTER_CONFIG_PATH"].split(os.pathsep)[0] == str(lab.JUPYTER_CONFIG)
    main(["lab", "--no-browser", "--port", str(port), "--", "--ip", "0.0.0.0"])
    assert (
        became[-1][0][-3:] == ["--no-browser", "--ip", "0.0.0.0"]
        and f"--ServerApp.port={port}" in became[-1][0]
    )
    assert "Ctrl-C here ends it" in capsys.readouterr().out


def test_a_notebook_is_read_as_its_kernel_would_leave_it(tmp_path):
    """Or JupyterLab takes it for modified. tests/test_lab_browser.py looks at the real one."""
    metadata = {"kernelspec": {"name": "python3"}, "language_info": {"name": "python"}}
    notebook = {"cells": [], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "a.ipynb").write_text(json.dumps(notebook))
    files = CourseFiles(root_dir=str(tmp_path))
    read = asyncio.run(files.get("a.ipynb"))["content"]["metadata"]
    assert read == metadata | {"language_info": IPythonKernel.language_info}
    assert asyncio.run(files.get("a.ipynb", content=False))["content"] is None
    assert asyncio.run(files.get(""))["type"] == "directory"


def test_lab_opens_a_notebook_that_lies_elsewhere(became, tmp_path):
    mine = tmp_path / "my notes.ipynb"
    mine.write_text("{}")
    lab.start_lab(str(mine))
    assert {f"--ServerApp.root_dir={tmp_path}", "--LabApp.default_url=/lab/tree/my%20notes.ipynb"} <= set(
        became[-1][0]
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["02_trian"], "notebooks are 02_train"), (["--port", "99999"], "can't listen on port 99999")],
)
def test_lab_refuses(arguments, words, became, capsys):
    status, _, err = course(capsys, "lab", *arguments)
    assert status == 1 and words in err and not became


def test_lab_that_cant_start(became, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CourseError, match=r"(?s)jupyterlab is not installed.*make install"):
        lab.start_lab()
    monkeypatch.undo()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(CourseError, match="root"):
        lab.start_lab()


def test_make_lab_hands_its_arguments_on():
    printed = subprocess.run(
        ["make", "--no-print-directory", "-n", "lab", "ARGS=--ip 0.0.0.0 --no-browser"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout
    assert printed.splitlines()[-1] == ".venv/bin/course lab -- --ip 0.0.0.0 --no-browser"
