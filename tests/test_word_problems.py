"""The committed data: word problems, reviews, bookings and support chats, and the scripts that make them."""

import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter

import pytest

from helpers.data import find_duplicates, load_json_files
from helpers.paths import ROOT

DATA = ROOT / "data"
UNSEEN = {"saving_up", "empty_seats", "handed_out", "filling_a_tank"}


@pytest.fixture(scope="module")
def maker():
    sys.path.insert(0, str(DATA))
    spec = importlib.util.spec_from_file_location("make_word_problems", DATA / "make_word_problems.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def problems():
    return load_json_files(DATA / "word_problems.json")


def test_the_script_makes_the_committed_bytes(maker, tmp_path, monkeypatch):
    monkeypatch.setattr(maker, "OUT", tmp_path / "again.json")
    monkeypatch.setattr(sys, "argv", ["make_word_problems.py"])
    assert maker.main() == 0
    assert (tmp_path / "again.json").read_bytes() == (DATA / "word_problems.json").read_bytes()


def test_check_passes_on_the_committed_file():
    done = subprocess.run(
        [sys.executable, DATA / "make_word_problems.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all steps hold" in done.stdout


@pytest.mark.parametrize("script", ["make_reviews_and_bookings.py", "make_support_chats.py"])
def test_the_other_scripts_make_the_committed_bytes(script):
    done = subprocess.run([sys.executable, DATA / script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "edit, complaint",
    [
        (lambda r: r["steps"][0].update(value="999"), "is not 999"),
        (lambda r: r.update(answer="998"), "the last step is not the answer"),
        (lambda r: r.update(output=r["output"] + "!"), "the output is not its steps"),
        (lambda r: r["steps"][0].update(expression="1001 + 1"), "a number that is not given"),
    ],
)
def test_check_finds_a_damaged_record(maker, problems, edit, complaint, tmp_path):
    damaged = json.loads(json.dumps(problems))
    edit(damaged[5])
    path = tmp_path / "word_problems.json"
    path.write_text(json.dumps(damaged), encoding="utf-8")
    found = maker.check(path)
    assert any(complaint in line and "record 5" in line for line in found), found
    assert any("is not what make_word_problems.py makes" in line for line in found)


@pytest.mark.parametrize("expression, value", [("4 * 6", 24), ("30 / 5", 6), ("(2 + 3) * 4 - 1", 19)])
def test_evaluate(maker, expression, value):
    assert maker.evaluate(expression) == value


@pytest.mark.parametrize("expression", ["7 / 2", "1 / 0", "__import__('os')", "2 ** 9", "1.5 + 1", "x + 1"])
def test_evaluate_refuses(maker, expression):
    with pytest.raises(ValueError):
        maker.evaluate(expression)


def test_every_step_holds_by_an_independent_reading_of_the_output(problems):
    for record in problems:
        *lines, last = record["output"].split("\n")
        assert 1 <= len(lines) <= 3
        for number, line in enumerate(lines, start=1):
            step = re.fullmatch(rf"Step {number}: [A-Za-z ]+: (\d+) ([-+*/]) (\d+) = (\d+)", line)
            a, sign, b, result = step.groups()
            a, b, result = int(a), int(b), int(result)
            assert {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[sign] == result > 0, record
        assert last == f"Final answer: {result}" and record["answer"] == str(result)


def test_size_templates_and_categories(problems, maker):
    assert len(problems) >= 1000
    assert len({(r["instruction"], r["input"]) for r in problems}) == len(problems)
    templates = {(r["template"], r["category"]) for r in problems}
    assert len(templates) == len(maker.TEMPLATES) >= 20
    assert len({r["category"] for r in problems}) >= 5
    assert {r["template"] for r in problems if r["unseen"]} == UNSEEN
    assert any(r["input"] for r in problems) and any(not r["input"] for r in problems)


def test_text_reads_well(problems):
    for record in problems:
        text = f"{record['instruction']} {record['input']}".strip()
        assert "  " not in text and text[-1] in ".?" and "\n" not in text
        assert not re.search(r"\b1 (?!pack of)\w+s\b", text), text
        assert "\n\n" not in record["output"] and "Instruction:" not in record["output"]


def test_no_problem_is_another_one_renamed(problems):
    seen = Counter(
        (r["template"], tuple(sorted(re.findall(r"\d+", r["instruction"] + r["input"])))) for r in problems
    )
    assert max(seen.values()) == 1
    assert find_duplicates(problems) == []


def test_the_data_card_tells_the_counts(problems):
    card = (DATA / "README.md").read_text(encoding="utf-8")
    counts = Counter((r["category"], r["template"], r["unseen"]) for r in problems)
    for (category, template, unseen), count in counts.items():
        assert f"| {category} | `{template}` | {count} | {'yes' if unseen else ''} |" in card
    assert f"{len(problems):,} problems" in card
