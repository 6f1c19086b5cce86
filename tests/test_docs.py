"""What README, data card and notebooks name must exist: files, links, headings, commands, options, parameters, functions.

Texts drift: a parameter is renamed, and a command in the README fails for every reader. Nothing heavy is imported here, and
the notebooks are read, not run.
"""

import ast
import contextlib
import importlib.util
import io
import json
import re
import shlex
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest

from helpers.course import cli
from helpers.errors import CourseError
from helpers.paths import ROOT
from helpers.runs.run import STAGES
from helpers.runs.sweep.settings import grid, grid_values

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LESSONS = [path for path in NOTEBOOKS if path.stem != "solutions"]
PAGES = [ROOT / "README.md", ROOT / "data" / "README.md"]
TEXTS = [*PAGES, *NOTEBOOKS]
PLACEHOLDERS = {"NAME", "FILE", "FOLDER", "…"}
# Environment variables of other programs that the texts may name.
FOREIGN = {"HF_TOKEN", "HF_HUB_OFFLINE", "HTTPS_PROXY", "PIP_CERT", "PYTHON", "ARGS"}


def by_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_text = pytest.mark.parametrize("text", TEXTS, ids=by_name)
each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=by_name)


# reading


@cache
def cells(notebook: Path) -> list[dict]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def code_cells(notebook: Path) -> list[dict]:
    return [cell for cell in cells(notebook) if cell["cell_type"] == "code"]


def prose(path: Path) -> str:
    """The Markdown of a page or a notebook."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(source(cell) for cell in cells(path) if cell["cell_type"] == "markdown")


def without_fences(text: str) -> str:
    return re.sub(r"(?ms)^```.*?^```$", "", text)


def spans(text: str) -> list[str]:
    """Inline code, with line breaks in it as spaces."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", without_fences(text))]


def commands(path: Path) -> list[list[str]]:
    """Commands in fenced shell blocks and inline code, as words, without variables set before them."""
    text = prose(path)
    lines = [
        line
        for block in re.findall(r"(?ms)^```(?:bash|sh|shell)\n(.*?)^```", text)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    lines += spans(text)
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):  # a span that is no shell line
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                found.append([re.sub(r"^(\.\./)?\.venv/bin/", "", words[0]), *words[1:]])
    return found


def slug(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def headings(path: Path) -> list[str]:
    return re.findall(r"(?m)^#+ (.+)$", without_fences(prose(path)))


# files, links, headings


@each_text
def test_links_lead_somewhere(text):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_fences(prose(text))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (text.parent / file).resolve() if file else text
        assert path.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in map(slug, headings(path)), f"{target}: no such heading"


@each_text
def test_named_files_exist(text):
    for word in re.findall(r"(?<![\w./-])(?:data|helpers|notebooks|tests)/[\w./]*\w", prose(text)):
        assert (ROOT / word).exists(), f"there is no {word}"


@each_text
def test_named_notebooks_exist(text):
    known = {path.stem for path in NOTEBOOKS}
    for name in re.findall(r"\b0\d_[a-z_]+\b", prose(text)):
        assert name in known, f"there is no notebook {name}"


@each_text
def test_named_sections_of_the_readme_exist(text):
    known = headings(ROOT / "README.md")
    for name in re.findall(r"README[^.\n]{0,40}?[\"“]([^\"”]+)[\"”]", prose(text)):
        assert name in known, f"README has no section {name!r}"


def test_every_notebook_is_in_the_readme():
    text = prose(ROOT / "README.md")
    assert len(LESSONS) == 7 and {name for name, _ in STAGES.values()} <= {path.stem for path in NOTEBOOKS}
    for notebook in NOTEBOOKS:
        assert f"(notebooks/{notebook.name})" in text, f"{notebook.name} is not linked"


def test_the_readme_has_its_picture_and_its_numbers():
    text = prose(ROOT / "README.md")
    picture = ROOT / re.search(r"!\[[^\]]+\]\(([^)]+)\)", text)[1]
    assert picture.stat().st_size < 100_000
    table = text.split("<!-- numbers -->")[1].split("<!-- end of numbers -->")[0]
    assert "| tuned model, test set |" in table and "course run" in table


# commands


def parsed(parser, words: list[str]):
    """What the parser makes of the words; fails with its message where it refuses them."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return parser(words)
    except SystemExit as end:
        if end.code:
            pytest.fail(f"`{' '.join(words)}` is refused: {said.getvalue().strip().splitlines()[-1]}")


def check_course(words: list[str]) -> None:
    options = parsed(cli._parser().parse_args, words)
    if words[0] not in ("run", "sweep"):
        return
    options.parameter = [text for text in options.parameter if text.split("=")[0] not in PLACEHOLDERS]
    options.profile = None if options.profile in PLACEHOLDERS else options.profile
    parameters = cli.chosen_parameters(options)
    filled = {name: value for name, value in parameters.items() if value not in PLACEHOLDERS}
    try:
        for setting in grid(grid_values(options.grid if words[0] == "sweep" else [])):
            cli.check_parameters(filled | setting, cli.notebook_parameters())
    except CourseError as error:
        pytest.fail(f"`course {' '.join(words)}`: {error}")
    if options.last and options.first:
        assert list(STAGES).index(options.first) <= list(STAGES).index(options.last)


def check_make(words: list[str]) -> None:
    targets = re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text())
    variables = [word for word in words if "=" in word]
    for target in set(words) - set(variables):
        assert target in targets, f"`make {target}`: the Makefile has {', '.join(targets)}"
    for name, _, value in (word.partition("=") for word in variables):
        assert f"$({name})" in (ROOT / "Makefile").read_text(), (
            f"`make {name}=…`: the Makefile does not use it"
        )
        if name == "ARGS" and "run" in words:
            check_course(["run", *shlex.split(value)])
        if name == "ARGS" and "test" in words:
            assert all((ROOT / word).exists() for word in shlex.split(value) if not word.startswith("-")), (
                value
            )


def check_module(module: str, words: list[str]) -> None:
    path = ROOT / Path(*module.split("."))
    assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"there is no module {module}"
    if words:
        assert module == "helpers.stub_tinker", f"teach this test the options of {module}"
        from helpers.stub_tinker.options import parse_arguments

        parsed(parse_arguments, words)


def check_script(script: str, words: list[str]) -> None:
    assert (ROOT / script).exists(), f"there is no {script}"
    for word in words:
        if word.startswith("-"):
            assert f'"{word}"' in (ROOT / script).read_text(), f"{script} has no option {word}"


def check_papermill(words: list[str]) -> None:
    notebook, given = words[0], [words[i + 1] for i, word in enumerate(words) if word == "-p"]
    assert any((folder / notebook).exists() for folder in (ROOT, ROOT / "notebooks")), (
        f"there is no notebook {notebook}"
    )
    known = next(
        names for stage, names in cli.notebook_parameters().items() if STAGES[stage][0] == Path(notebook).stem
    )
    assert set(given) <= set(known), f"{notebook} has no parameter {set(given) - set(known)}"


def check_command(words: list[str]) -> bool:
    """Check a command; False if it is none of ours."""
    program, rest = words[0], words[1:]
    if program == "course" and rest:
        check_course(rest)
    elif program == "make" and rest:
        check_make(rest)
    elif program == "papermill" and rest:
        check_papermill(rest)
    elif re.fullmatch(r"python[\d.]*", program) and rest[:1] == ["-m"]:
        if not rest[1].startswith("helpers."):
            return False
        check_module(rest[1], rest[2:])
    elif re.fullmatch(r"python[\d.]*", program) and rest and rest[0].endswith(".py"):
        check_script(rest[0], rest[1:])
    else:
        return False
    return True


@each_text
def test_commands_would_be_accepted(text):
    for words in commands(text):
        check_command(words)


def test_commands_are_found():
    """Or the test above would pass on nothing."""
    assert sum(check_command(words) for words in commands(ROOT / "README.md")) > 25
    assert sum(check_command(words) for words in commands(ROOT / "notebooks" / "00_start_here.ipynb")) >= 5


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
        "course stub start",
        "make runs",
        "make run SPEED=9",
        'make run ARGS="-p epoch=2"',
        "python -m helpers.nothing",
        "python -m helpers.stub_tinker --prot 1",
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


# code in notebooks


@cache
def top_level(module: str) -> set[str]:
    """Names that a module of ours defines or imports, read from its text."""
    path = ROOT / Path(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def is_module(name: str) -> bool:
    path = ROOT / Path(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


@each_notebook
def test_imported_names_exist(notebook):
    trees = [ast.parse(source(cell)) for cell in code_cells(notebook)]
    modules = {}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "helpers":
            assert is_module(node.module), f"there is no {node.module}"
            for alias in node.names:
                if is_module(f"{node.module}.{alias.name}"):
                    modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                else:
                    assert alias.name in top_level(node.module), f"{node.module} has no {alias.name}"
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and not getattr(node, "level", 0):
            for name in (
                [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            ):
                assert importlib.util.find_spec(name.split(".")[0]), f"{name} is not installed"
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            assert node.attr in top_level(modules[node.value.id]), (
                f"{modules[node.value.id]} has no {node.attr}"
            )


@each_text
def test_named_helpers_exist(text):
    for span in spans(prose(text)):
        for name in re.findall(r"\bhelpers(?:\.\w+)+", span):
            module, _, last = name.rpartition(".")
            assert is_module(name) or (is_module(module) and last in top_level(module)), (
                f"`{span}`: there is no {name}"
            )


@each_text
def test_named_settings_exist(text):
    """`name=value` in the text is a setting or an argument that code or a command knows."""
    code = "\n".join(source(cell) for notebook in NOTEBOOKS for cell in code_cells(notebook))
    code += "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "helpers").rglob("*.py"))
    known = set(re.findall(r"\b[a-z_]\w+\b", code))
    parameters = {name for names in cli.notebook_parameters().values() for name in names}
    for span in spans(prose(text)):
        for name in re.findall(r"(?<![\w/.-])([a-z_]\w+) ?=(?!=)", span):
            assert name in known, f"`{span}`: nothing is called {name}"
        for name in re.findall(r"-p (\w+)=", span):
            assert name in parameters | PLACEHOLDERS, f"`{span}`: no notebook has a parameter {name}"


@each_notebook
def test_parameters_are_plain_values_in_one_cell(notebook):
    tagged = [cell for cell in code_cells(notebook) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1, "papermill puts its values after the one cell tagged parameters"
    lines = source(tagged[0]).splitlines()
    for node in ast.parse(source(tagged[0])).body:
        assert (
            isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)
        )
        assert isinstance(ast.literal_eval(node.value), (str, int, float, bool)), (
            f"{lines[node.lineno - 1]}: no plain value"
        )
        assert lines[node.lineno - 1].count("=") == 1, (
            f"{lines[node.lineno - 1]}: papermill can't read a line with two equals signs"
        )
    if notebook.stem in {name for name, _ in STAGES.values()}:
        assert "run_name = " in source(tagged[0])


@each_notebook
def test_parameters_are_used(notebook):
    tagged = next(cell for cell in code_cells(notebook) if "parameters" in cell["metadata"].get("tags", []))
    names = {node.targets[0].id for node in ast.parse(source(tagged)).body}
    read = {
        node.id
        for cell in code_cells(notebook)
        if cell is not tagged
        for node in ast.walk(ast.parse(source(cell)))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    assert names <= read, f"nothing reads {names - read}"


def test_profiles_name_real_parameters():
    profiles = tomllib.loads((ROOT / "helpers" / "runs" / "profiles.toml").read_text(encoding="utf-8"))
    for name, parameters in profiles.items():
        cli.check_parameters(parameters, cli.notebook_parameters())
        assert name.islower()


# form


@pytest.mark.parametrize("notebook", LESSONS, ids=by_name)
def test_form(notebook):
    """Wide bounds: one idea a cell, text between the code."""
    code, count = code_cells(notebook), len(cells(notebook))
    lengths = [len(source(cell).splitlines()) for cell in code]
    assert 15 <= count <= 45 and max(lengths) <= 30 and sum(lengths) <= 240
    assert len(code) <= 1.3 * (count - len(code)), "too little text between the code"
    first, last = cells(notebook)[0], cells(notebook)[-1]
    assert first["cell_type"] == last["cell_type"] == "markdown"
    for word in ("**Needs**", "**Makes**", "**Time**", "**Cost**", "you are here"):
        assert word in source(first)
    assert "**A common mistake**" in source(last) and "**Next**" in source(last)
    assert not re.search(r"(?m)^\s*[!%]", "\n".join(source(cell) for cell in code)), "no shell or magic lines"


@each_notebook
def test_outputs_that_are_not_compared_say_why(notebook):
    for cell in code_cells(notebook):
        for line in re.findall(r"(?m)^.*NBVAL_.*$", source(cell)):
            assert re.fullmatch(r"# NBVAL_IGNORE_OUTPUT:? +\(?\w.{6,}", line), line


@each_text
def test_nothing_of_one_machine_or_person(text):
    """The raw file, so that outputs and metadata are searched too."""
    raw = text.read_text(encoding="utf-8")
    paths = r"/(?:root|home|work|Users)/[\w.]+"
    keys = r"\btml-(?!stub\b|my-class\b|renderers\b)[\w-]{6,}|\bhf_[A-Za-z0-9]{20,}|\beyJ[\w-]{20,}\."
    for pattern in (paths, keys):
        found = re.search(pattern, raw)
        assert not found, f"{found[0]} (character {found.start()})"


@each_notebook
def test_outputs_are_of_one_run_from_top_to_bottom(notebook):
    code = code_cells(notebook)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), (
        "commit outputs of a whole run"
    )
    assert not any("injected-parameters" in cell["metadata"].get("tags", []) for cell in code)
    for cell in code:
        said = json.dumps(cell["outputs"])
        assert '"output_type": "error"' not in said
        assert not re.search(r"pypi|pythonhosted|pytorch\.org|index-url", said), (
            "an output names a package registry"
        )


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_the_top_level_is_small():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    shown = {name.split("/")[0] for name in tracked if not name.startswith(".")}
    assert shown == {
        "LICENSE",
        "Makefile",
        "README.md",
        "data",
        "environment.yml",
        "helpers",
        "notebooks",
        "pyproject.toml",
        "requirements.lock",
        "tests",
    }
