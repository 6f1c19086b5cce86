"""The rules of the house: format, lint, types, which room imports which, and what is too long."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.paths import ROOT

MOST_LINES, MOST_LINES_OF_A_FUNCTION = 500, 60
SOURCES = sorted(
    [
        ROOT / "install.py",
        *(ROOT / "data").glob("*.py"),
        *(ROOT / "helpers").rglob("*.py"),
        *(ROOT / "tests").rglob("*.py"),
    ]
)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "format", "--check", "."],
        ["ruff", "check", "."],  # complexity too
        ["lint-imports", "--no-cache"],
        ["basedpyright", "--pythonpath", sys.executable],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_tool_has_nothing_to_say(command):
    """The tools of the environment that runs the tests, with the settings in pyproject.toml."""
    tool = Path(sys.executable).with_name(command[0])
    assert tool.is_file(), f"{command[0]} is not installed in {tool.parent}: make install"
    done = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def too_long(text: str) -> list[str]:
    """What is too long in a file's text: the file itself, or functions in it. Decorators count."""
    lines = len(text.splitlines())
    found = [f"{lines} lines"] if lines > MOST_LINES else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            length = (node.end_lineno or node.lineno) - first + 1
            if length > MOST_LINES_OF_A_FUNCTION:
                found.append(f"{node.name} (line {node.lineno}): {length} lines")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_and_no_function_is_too_long(path):
    assert too_long(path.read_text(encoding="utf-8")) == []


def test_what_is_too_long_is_noticed():
    assert too_long("x = 1\n" * MOST_LINES) == []
    assert too_long("x = 1\n" * (MOST_LINES + 1)) == [f"{MOST_LINES + 1} lines"]
    body = "    x = 1\n" * (MOST_LINES_OF_A_FUNCTION - 1)
    assert too_long(f"def short():\n{body}") == []
    assert too_long(
        f"class C:\n    @property\n    def long(self):\n{body.replace('    x', '        x')}"
    ) == [f"long (line 3): {MOST_LINES_OF_A_FUNCTION + 1} lines"]
