"""The form of the notebooks, which are read and not run: parameters, imports, text, outputs of one run."""

import ast
import importlib.util
import json
import re

import pytest
from texts import (
    LESSONS,
    NOTEBOOKS,
    by_name,
    cells,
    code_cells,
    module_path,
    parameters_cell,
    prose,
    source,
    tags,
    top_level,
    wrong_imports,
)

from helpers.runs.chosen import choose, profiles
from helpers.runs.settings import SETTINGS
from helpers.runs.stages import STAGES

NOT_COMPARED = "nbval-ignore-output"  # nbval's tag
each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=by_name)


@each_notebook
def test_imported_names_exist(notebook):
    trees = [ast.parse(source(cell)) for cell in code_cells(notebook)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    assert [name for tree in trees for name in wrong_imports(tree)] == []
    modules = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "helpers":
            for alias in node.names:
                if module_path(f"{node.module}.{alias.name}"):
                    modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            for name in names:
                assert importlib.util.find_spec(name.split(".")[0]), f"{name} is not installed"
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            module = modules[node.value.id]
            assert node.attr in top_level(module), f"{module} has no {node.attr}"


def test_part_one_imports_few_names():
    part_one = [notebook for notebook in LESSONS if notebook.stem < "07"]
    trees = [ast.parse(source(cell)) for notebook in part_one for cell in code_cells(notebook)]
    imports = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if (node.module or "").split(".")[0] == "helpers"]
    names = {alias.name for node in ours for alias in node.names}
    assert 30 <= len(names) <= 45, sorted(names)


@each_notebook
def test_parameters_are_plain_values_in_one_cell(notebook):
    text = source(parameters_cell(notebook))
    lines = text.splitlines()
    for node in ast.parse(text).body:
        assert isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        line = lines[node.lineno - 1]
        assert isinstance(ast.literal_eval(node.value), str | int | float | bool), f"{line}: no plain value"
        assert line.count("=") == 1, f"{line}: papermill can't read a line with two equals signs"
    if notebook.stem in {kind.notebook for kind in STAGES.values()}:
        assert "run_name = " in text


@each_notebook
def test_parameters_are_used(notebook):
    """By name; or by `open_stage(…, globals())`, which takes those that are settings of the stage."""
    tagged = parameters_cell(notebook)
    names = {node.targets[0].id for node in ast.parse(source(tagged)).body}
    trees = [ast.parse(source(cell)) for cell in code_cells(notebook) if cell is not tagged]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    if "globals" in read:
        [stage] = [stage for stage, kind in STAGES.items() if kind.notebook == notebook.stem]
        read |= set(SETTINGS[stage].model_fields)
    assert names <= read, f"nothing reads {names - read}"


def test_profiles_name_real_settings():
    assert {"quick", "small", "full", "hosted"} <= set(profiles())
    for name, settings in profiles().items():
        assert choose(name) == settings and name.islower()


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


@pytest.mark.parametrize("notebook", LESSONS, ids=by_name)
def test_a_lesson_can_be_finished(notebook):
    code = [source(cell) for cell in code_cells(notebook)]
    lengths = sorted(sum(bool(line.strip()) for line in text.splitlines()) for text in code)
    assert (
        20 <= len(cells(notebook)) <= 35 and sum(lengths) <= 180 and lengths[round(0.9 * len(code)) - 1] <= 15
    )
    assert [line for text in code for line in text.splitlines() if len(line) > 100] == []
    without_folds = re.sub(r"(?s)<details>.*?</details>", "", prose(notebook))
    assert 600 <= len(without_folds.split()) <= 1300
    assert "](images/" in prose(notebook), "no diagram"
    assert sum("check_exercise(" in text for text in code) >= 3, "too few exercises"


def silent(code: list[dict]) -> list[str]:
    """First lines of cells whose output is not compared and that don't say why."""
    first_lines = [source(cell).split("\n")[0] for cell in code if NOT_COMPARED in tags(cell)]
    return [line for line in first_lines if not re.fullmatch(r"# Not compared by tests: \w.{4,}", line)]


@each_notebook
def test_outputs_that_are_not_compared_say_why(notebook):
    code = code_cells(notebook)
    assert silent(code) == []
    said = [cell for cell in code if "Not compared by tests" in source(cell)]
    assert [source(cell).split("\n")[0] for cell in said if NOT_COMPARED not in tags(cell)] == []


def test_a_cell_that_does_not_say_why_is_noticed():
    cell = {"metadata": {"tags": [NOT_COMPARED]}, "source": ["print(1)\n"]}
    assert silent([cell]) == ["print(1)"]
    assert silent([cell | {"source": ["# Not compared by tests: \n"]}]) != []
    assert any(NOT_COMPARED in tags(cell) for notebook in NOTEBOOKS for cell in code_cells(notebook))


BOLD_NUMBER = re.compile(r"\*\*([+−-]?\d(?:[\d.,/e−-]*\d)?%?)\*\*")


def misquoted(all_cells: list[dict]) -> list[str]:
    """Bold numbers of the text, such as **70/120**, that no output above them in their section has."""
    wrong, outputs = [], []
    for cell in all_cells:
        text = source(cell)
        if cell["cell_type"] == "code":
            outputs.append(shown(cell))
            continue
        for number in BOLD_NUMBER.findall(text):
            if not re.search(rf"(?<![\d.,]){re.escape(number)}(?![\d%]|[.,]\d)", "\n".join(outputs)):
                wrong.append(number)
        if re.search(r"(?m)^#+ ", text):
            outputs = []
    return wrong


def shown(cell: dict) -> str:
    """What a cell prints or gives as text."""
    given = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell["outputs"]]
    return "\n".join("".join(lines) for lines in given)


@each_notebook
def test_numbers_quoted_from_outputs_are_those_of_the_outputs(notebook):
    """A number in bold is a quotation: `make notebooks` changes outputs, this says what to change."""
    assert misquoted(cells(notebook)) == []


def test_a_number_that_no_output_has_is_noticed():
    def markdown(text):
        return {"cell_type": "markdown", "source": [text]}

    said = {"cell_type": "code", "source": [""], "outputs": [{"text": ["70/120 right, 58.3%, p = 9e-17\n"]}]}
    assert (
        misquoted([said, markdown("**70/120** = **58.3%**, **9e-17**. **1.** First, **2 of 3**\n## Next")])
        == []
    )
    wrong = "**0/120**, **58%**, **8.3%**, **58.3**, **71/120**"
    assert misquoted([said, markdown(wrong)]) == ["0/120", "58%", "8.3%", "58.3", "71/120"]
    assert misquoted([said, markdown("## Another section"), markdown("**70/120**")]) == ["70/120"]


@each_notebook
def test_outputs_are_of_one_run_from_top_to_bottom(notebook):
    code = code_cells(notebook)
    counts = [cell["execution_count"] for cell in code]
    assert counts == list(range(1, len(code) + 1)), "commit outputs of a whole run: make notebooks"
    assert not any("injected-parameters" in tags(cell) for cell in code)
    for cell in code:
        said = json.dumps(cell["outputs"])
        assert '"output_type": "error"' not in said
        assert not re.search(r"pypi|pythonhosted|pytorch\.org|index-url", said), "an output names a registry"
