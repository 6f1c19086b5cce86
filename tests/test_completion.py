"""Help that teaches, and the Tab key as bash asks for it, by argcomplete."""

import argparse
import io
import os
import re
import shlex
import subprocess
import sys
from typing import Any

import argcomplete
import pytest
from commands import COURSE, course
from runs_for_tests import make_run

from helpers.course.main import COMMANDS, main, make_parser
from helpers.paths import ROOT

pytestmark = pytest.mark.usefixtures("folder")


def test_help_teaches(capsys):
    status, out, _ = course(capsys, "--help")
    assert status == 0 and "exit status:" in out and "130" in out
    names = [command.__name__.rpartition(".")[2].replace("_", "-") for command in COMMANDS]
    assert [name for name in names if not re.search(rf"^ +{name}\b", out, re.M)] == []
    for name in names:
        out = course(capsys, name, "--help")[1]
        examples = re.findall(r"^  .*course .*$", out.partition("example")[2], re.M)
        assert examples, name
        for example in examples:
            line = example.replace('eval "$(', "").replace(')"', "").split("|")[0].split(">")[0].split("#")[0]
            make_parser().parse_args(shlex.split(line)[1:])


def asked(line: str) -> dict[str, str]:
    """What bash puts into the environment for a press of the Tab key at the end of `course LINE`."""
    text = f"course {line}"
    return {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:",
        "COMP_LINE": text,
        "COMP_POINT": str(len(text.encode())),
    }


def words_in(answer: str) -> list[str]:
    return sorted(word.strip() for word in answer.split("\n") if word.strip())


def offered_by_bash(line: str) -> str:
    """What the real command answers."""
    # Descriptor 8 is where argcomplete answers.
    script = f'exec {" ".join(COURSE)} 8>"$ANSWER" 9>&2 >/dev/null </dev/null'
    read, write = os.pipe()
    os.set_inheritable(write, True)
    environment = os.environ | asked(line) | {"ANSWER": f"/dev/fd/{write}"}
    subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment, pass_fds=[write], timeout=60)
    os.close(write)
    with os.fdopen(read) as answer:
        return answer.read()


class Finder(argcomplete.CompletionFinder):
    """argcomplete in this process, whose descriptors 8 and 9 are something else."""

    answer: io.StringIO

    def _init_debug_stream(self) -> None:
        argcomplete.io.debug_stream = sys.stderr

    def autocomplete(self, parser: argparse.ArgumentParser, **options: Any) -> None:
        self(parser, exit_method=sys.exit, output_stream=self.answer, **options)


@pytest.fixture
def finder(monkeypatch) -> Finder:
    finder = Finder()
    finder.answer = io.StringIO()
    monkeypatch.setattr(argcomplete, "autocomplete", finder.autocomplete)
    return finder


@pytest.fixture
def three(folder) -> None:
    """A run and a sweep in the runs folder, and the link to the newest run."""
    make_run("mine", done=())
    (folder / "sweep").mkdir()
    (folder / "sweep" / "sweep.json").write_text("{}")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("c", ["clean", "check", "check-template", "completion"]),
        ("run --re", ["--resume"]),
        ("run --profile ", ["quick", "small", "full", "hosted"]),
        ("run --from e", ["evaluate", "export"]),
        ("run -p max_t", ["max_test=", "max_tokens=", "max_train="]),
        ("run -p task=", ["math", "classification", "extraction", "calls", "text"]),
        ("run -p task=ex", ["extraction"]),
        ("run -p epochs=", []),
        ("sweep --grid dtype=f", ["float32", "float16"]),
        ("run --backend st", ["stub"]),
        ("run --resume --name m", ["mine"]),
        ("show ", ["latest", "mine", "sweep"]),
        ("sweep --name ", ["sweep"]),
        ("stub st", ["status", "stop"]),
        ("lab 03", ["03_evaluate"]),
    ],
)
@pytest.mark.usefixtures("three")
def test_the_tab_key(line, expected, finder, monkeypatch):
    for name, value in asked(line).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0 and words_in(finder.answer.getvalue()) == sorted(expected)


@pytest.mark.usefixtures("three")
def test_the_tab_key_in_bash():
    assert words_in(offered_by_bash("clean mine ")) == ["latest", "mine", "sweep"]


def test_the_tab_key_loads_nothing_that_takes_long(folder):
    """It is pressed often: what takes seconds to import is imported where it is used."""
    code = (
        "import sys\nfrom helpers.course.completers import settings, profiles\n"
        "from helpers.course.main import make_parser\n"
        "make_parser(), list(settings('task=')), list(profiles())\n"
        "slow = {'torch', 'papermill', 'transformers', 'matplotlib', 'datasets', 'tinker'}\n"
        "print(sorted(slow & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_scripts(capsys):
    assert (
        "complete -o nospace -o default -o bashdefault -F _python_argcomplete course"
        in (course(capsys, "completion", "bash")[1])
    )
    assert course(capsys, "completion", "zsh")[1].startswith("#compdef course\n")
