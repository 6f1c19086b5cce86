"""What pages and notebooks name must exist: files, links, headings, commands, options, settings, functions.

Texts drift: a setting is renamed, and a command in the README fails for every reader. Nothing heavy is
imported here, and the notebooks are read, not run.
"""

import argparse
import ast
import contextlib
import io
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pytest
from texts import (
    DOCS,
    LESSONS,
    NOTEBOOKS,
    PAGES,
    by_name,
    code_cells,
    commands,
    fenced,
    headings,
    module_path,
    prose,
    slug,
    source,
    spans,
    top_level,
    without_fences,
    wrong_imports,
)

from helpers.course.main import main
from helpers.errors import CourseError
from helpers.paths import ROOT
from helpers.runs.chosen import choose
from helpers.runs.lessons import choose_lessons
from helpers.runs.settings import SETTINGS, setting_names
from helpers.runs.stages import LESSONS as PARTS
from helpers.runs.stages import STAGES, lessons_by_number

README = ROOT / "README.md"
PLACEHOLDERS = {"NAME", "FILE", "FOLDER", "MODEL", "…"}
# Environment variables of other programs that the texts may name.
FOREIGN = {
    "ONEDNN_MAX_CPU_ISA",
    "HF_TOKEN",
    "HF_HUB_OFFLINE",
    "HTTPS_PROXY",
    "PIP_CERT",
    "PYTHON",
    "ARGS",
    "TINKER_PROJECT_ID",
    "TINKER_SECOND_API_KEY",
}

each_text = pytest.mark.parametrize("text", [*PAGES, *NOTEBOOKS], ids=by_name)
each_page = pytest.mark.parametrize("page", PAGES, ids=by_name)


# files, links, headings


def targets(text: Path) -> list[str]:
    """Where the links of a text lead, addresses of the web left out."""
    found = re.findall(r"\]\(([^)\s]+)\)", without_fences(prose(text)))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


@each_text
def test_links_lead_somewhere(text):
    for target in targets(text):
        file, _, anchor = target.partition("#")
        path = (text.parent / file).resolve() if file else text
        assert path.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in map(slug, headings(path)), f"{target}: no such heading"


@each_text
def test_named_files_exist(text):
    for word in re.findall(r"(?<![\w./-])(?:data|docs|helpers|notebooks|tests)/[\w./-]*\w", prose(text)):
        assert (ROOT / word).exists(), f"there is no {word}"


@each_text
def test_named_notebooks_exist(text):
    known = {path.stem for path in NOTEBOOKS}
    for name in re.findall(r"\b\d\d_[a-z_]+\b", prose(text)):
        assert name in known, f"there is no notebook {name}"


@each_text
def test_named_sections_of_the_readme_exist(text):
    known = headings(README)
    for name in re.findall(r"README[^.\n]{0,40}?[\"“]([^\"”]+)[\"”]", prose(text)):
        assert name in known, f"README has no section {name!r}"


def test_every_notebook_and_every_page_is_in_the_readme():
    assert len(LESSONS) == 14 and {kind.notebook for kind in STAGES.values()} <= {
        path.stem for path in NOTEBOOKS
    }
    linked = {target.partition("#")[0] for target in targets(README)}
    assert {by_name(path) for path in [*NOTEBOOKS, *PAGES[1:]]} - linked == set()


def test_the_readme_is_short_and_so_is_every_page_of_docs():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 100
    for page in DOCS:
        assert len(page.read_text(encoding="utf-8").splitlines()) <= 130, page.name


def table_of_numbers(page: Path) -> list[str]:
    return prose(page).split("<!-- numbers -->")[1].split("<!-- end of numbers -->")[0].splitlines()


def test_the_readme_has_its_picture_and_its_numbers():
    picture = ROOT / re.search(r"!\[[^\]]+\]\(([^)]+)\)", prose(README))[1]
    assert picture.stat().st_size < 100_000
    short, full = table_of_numbers(README), table_of_numbers(ROOT / "docs" / "measured.md")
    assert any(line.startswith("| tuned model, test set |") for line in short)
    assert [line for line in short if line not in full] == [], "of two runs: notebooks/images/make_images.py"


# commands


class Accepted(BaseException):
    """The parser took the words; what would come next is not run."""


def parsed(entry: Callable[[list[str]], object], words: list[str]) -> None:
    """Let a command parse the words, and no more; fails with its message where it refuses them."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_only(self, *arguments):
        parse_args(self, *arguments)
        raise Accepted

    said = io.StringIO()
    try:
        with (
            mock.patch.object(argparse.ArgumentParser, "parse_args", parse_only),
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(said),
        ):
            entry(words)
    except Accepted:
        return
    except SystemExit as end:
        if not end.code:  # --help
            return
    pytest.fail(f"`{' '.join(words)}` is refused: {said.getvalue().strip().splitlines()[-1:]}")


def after(words: list[str], *options: str) -> list[str]:
    """What stands after each of these options, placeholders left out."""
    found = [value for option, value in pairwise(words) if option in options]
    return [value for value in found if not PLACEHOLDERS & {value, *value.split("=")}]


def check_course(words: list[str]) -> None:
    parsed(main, words)
    if words[0] not in ("run", "sweep"):
        return
    [profile] = after(words, "--profile") or [None]
    assignments = after(words, "-p", "--parameter")
    for name, _, values in (text.partition("=") for text in after(words, "--grid")):
        assignments += [f"{name}={value}" for value in values.split(",")]
    columns, backend = ([*after(words, option), None][0] for option in ("--columns", "--backend"))
    lessons = [lessons_by_number()[number] for number in after(words, "--lesson")]
    lessons += [lesson for part in after(words, "--part") for lesson in PARTS.get(int(part), ())]
    if lessons:
        choose_lessons(lessons, assignments)
        return
    try:
        for setting in assignments or [""]:
            choose(profile, [setting] if setting else [], columns=columns, backend=backend)
    except CourseError as error:
        pytest.fail(f"`course {' '.join(words)}`: {error}")
    ends = [list(STAGES).index(stage) for stage in [*after(words, "--from"), *after(words, "--until")]]
    assert ends == sorted(ends), f"`course {' '.join(words)}`: --until comes before --from"


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    known = re.findall(r"(?m)^([a-z]+):", makefile)
    variables = [word for word in words if "=" in word]
    for target in set(words) - set(variables):
        assert target in known, f"`make {target}`: the Makefile has {', '.join(known)}"
    for name, _, value in (word.partition("=") for word in variables):
        assert f"$({name})" in makefile, f"`make {name}=…`: the Makefile does not use it"
        if name == "ARGS" and "run" in words:
            check_course(["run", *shlex.split(value)])
        if name == "ARGS" and "test" in words:
            paths = [word for word in shlex.split(value) if not word.startswith("-")]
            assert all((ROOT / path).exists() for path in paths), value


def check_module(module: str, words: list[str]) -> None:
    path = ROOT / Path(*module.split("."))
    assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"there is no module {module}"
    if words:
        with mock.patch.object(sys, "argv", [module, *words]):
            parsed(lambda _: runpy.run_module(module, run_name="__main__"), words)


def check_script(script: str, words: list[str]) -> None:
    assert (ROOT / script).exists(), f"there is no {script}"
    for word in words:
        if word.startswith("-"):
            assert f'"{word}"' in (ROOT / script).read_text(), f"{script} has no option {word}"


def check_papermill(words: list[str]) -> None:
    notebook, given = words[0], [words[i + 1] for i, word in enumerate(words) if word == "-p"]
    found = [folder / notebook for folder in (ROOT, ROOT / "notebooks") if (folder / notebook).exists()]
    assert found, f"there is no notebook {notebook}"
    [stage] = [stage for stage, kind in STAGES.items() if kind.notebook == found[0].stem]
    unknown = set(given) - {"run_name", *SETTINGS[stage].model_fields}
    assert not unknown, f"{notebook} has no parameter {unknown}"


def check_command(words: list[str]) -> bool:
    """Check a command; False if it is none of ours."""
    program, rest = words[0], words[1:]
    is_python = bool(re.fullmatch(r"python[\d.]*", program))
    if program == "course" and rest:
        check_course(rest)
    elif program == "make" and rest:
        check_make(rest)
    elif program == "papermill" and rest:
        check_papermill(rest)
    elif is_python and rest[:1] == ["-m"] and rest[1].startswith("helpers."):
        check_module(rest[1], rest[2:])
    elif is_python and rest and rest[0].endswith(".py"):
        check_script(rest[0], rest[1:])
    elif is_python and rest[:1] == ["-c"]:
        assert not wrong_imports(ast.parse(rest[1])), rest[1]
    else:
        return False
    return True


@each_text
def test_commands_would_be_accepted(text):
    for words in commands(text):
        check_command(words)


def test_commands_are_found():
    """Or the test above would pass on nothing."""
    assert sum(check_command(words) for page in PAGES for words in commands(page)) > 90
    assert sum(check_command(words) for words in commands(ROOT / "notebooks" / "00_start_here.ipynb")) >= 4


@pytest.mark.parametrize(
    "command",
    [
        "course go",
        "course run --fast",
        "course run -p epoch=2",
        "course run -p epochs=many",
        "course run --profile huge",
        "course sweep --grid rank=8",
        "course sweep --name s --grid ranks=8",
        "course sweep --name s --grid rank=8,many",
        "course sweep --name s --lesson 10 --grid epochs=1",
        "course run --part 3 -p epochs=1",
        "course stub start",
        "make runs",
        "make run SPEED=9",
        'make run ARGS="-p epoch=2"',
        "python -m helpers.nothing",
        "python -m helpers.stub_tinker --prot 1",
        "python -c 'from helpers.paths import NOTHING'",
        "python install.py --there",
        "papermill 01_split.ipynb x.ipynb -p epochs 2",
    ],
)
def test_a_wrong_command_is_noticed(command):
    with pytest.raises((AssertionError, CourseError, pytest.fail.Exception)):
        check_command(shlex.split(command))


@each_text
def test_environment_variables_are_read_somewhere(text):
    ours = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "helpers").rglob("*.py"))
    for name in re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b", " ".join(spans(prose(text)))):
        assert name in ours or name in FOREIGN, f"nothing reads {name}"


# code and names


@each_page
def test_python_examples_import_what_exists(page):
    for block in fenced(prose(page), "python"):
        assert wrong_imports(ast.parse(block)) == []


@each_text
def test_named_helpers_exist(text):
    for span in spans(prose(text)):
        for name in re.findall(r"\bhelpers(?:\.\w+)+", span):
            module, _, last = name.rpartition(".")
            inside = module_path(module) and last in top_level(module)
            assert module_path(name) or inside, f"`{span}`: there is no {name}"


@each_text
def test_named_settings_exist(text):
    """`name=value` in the text is a setting or an argument that code or a command knows."""
    code = "\n".join(source(cell) for notebook in NOTEBOOKS for cell in code_cells(notebook))
    code += "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "helpers").rglob("*.py"))
    known = set(re.findall(r"\b[a-z_]\w+\b", code))
    settings = {"run_name", *setting_names()}
    for span in spans(prose(text)):
        for name in re.findall(r"(?<![\w/.-])([a-z_]\w+) ?=(?!=)", span):
            assert name in known, f"`{span}`: nothing is called {name}"
        for name in re.findall(r"-p (\w+)=", span):
            assert name in settings | PLACEHOLDERS, f"`{span}`: there is no setting {name}"


# what must not be there


@each_text
def test_nothing_of_one_machine_or_person(text):
    """The raw file, so that outputs and metadata are searched too."""
    raw = text.read_text(encoding="utf-8")
    paths = r"/(?:root|home|work|Users)/[\w.]+"
    keys = r"\btml-(?!stub\b|my-class\b|renderers\b)[\w-]{6,}|\bhf_[A-Za-z0-9]{20,}|\beyJ[\w-]{20,}\."
    for pattern in (paths, keys):
        found = re.search(pattern, raw)
        assert not found, f"{found[0]} (character {found.start()})"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_the_top_level_is_small():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    shown = {name.split("/")[0] for name in done.stdout.splitlines() if not name.startswith(".")}
    files = (
        "CHANGELOG.md CONTRIBUTING.md LICENSE Makefile README.md environment.yml install.py pyproject.toml"
    )
    assert shown == {
        *files.split(),
        "requirements.lock",
        "requirements-gpu.lock",
        "data",
        "docs",
        "helpers",
        "notebooks",
        "tests",
    }
