"""Reading the project's texts: pages and notebooks, their prose, code, headings and commands."""

import ast
import contextlib
import json
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

from helpers.paths import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LESSONS = [path for path in NOTEBOOKS if path.stem != "solutions"]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [
    ROOT / "README.md",
    *DOCS,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "data" / "README.md",
    ROOT / "helpers" / "stub_tinker" / "README.md",
]


def by_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def cells(notebook: Path) -> list[dict[str, Any]]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def tags(cell: dict[str, Any]) -> list[str]:
    return cell["metadata"].get("tags", [])


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    return [cell for cell in cells(notebook) if cell["cell_type"] == "code"]


def parameters_cell(notebook: Path) -> dict[str, Any]:
    """The one cell that papermill puts its values after."""
    [cell] = [cell for cell in code_cells(notebook) if "parameters" in tags(cell)]
    return cell


def prose(path: Path) -> str:
    """The Markdown of a page or a notebook."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(source(cell) for cell in cells(path) if cell["cell_type"] == "markdown")


def fenced(text: str, languages: str) -> list[str]:
    """Fenced blocks, also indented ones, of these languages (a regular expression)."""
    return re.findall(rf"(?ms)^ *```(?:{languages})\n(.*?)^ *```$", text)


def without_fences(text: str) -> str:
    return re.sub(r"(?ms)^ *```.*?^ *```$", "", text)


def spans(text: str) -> list[str]:
    """Inline code, with line breaks in it as spaces."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", without_fences(text))]


def commands(path: Path) -> list[list[str]]:
    """Commands in fenced shell blocks and inline code, as words, without variables set before them."""
    text, found = prose(path), []
    blocks = fenced(text, "bash|sh|shell")
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *spans(text)]:
        with contextlib.suppress(ValueError):  # a span that is no shell line
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                found.append([re.sub(r"^(\.\./)?\.venv/bin/", "", words[0]), *words[1:]])
    return found


def headings(path: Path) -> list[str]:
    return re.findall(r"(?m)^#+ (.+)$", without_fences(prose(path)))


def slug(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@cache
def module_path(name: str) -> Path | None:
    """The file of a module or package of ours, None if there is no such module."""
    path = ROOT / Path(*name.split("."))
    found = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()]
    return found[0] if found else None


@cache
def top_level(module: str) -> set[str]:
    """Names that a module of ours defines or imports, read from its text."""
    path = module_path(module)
    assert path, f"there is no module {module}"
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def wrong_imports(tree: ast.AST) -> list[str]:
    """What a piece of code imports from `helpers` and is not there."""
    wrong = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "helpers":
            module = node.module or ""
            if not module_path(module):
                wrong.append(module)
                continue
            wrong += [
                f"{module}.{alias.name}"
                for alias in node.names
                if not module_path(f"{module}.{alias.name}") and alias.name not in top_level(module)
            ]
    return wrong
