"""`course completion bash|zsh`: what the Tab key offers.

The printed script asks `course completion words -- WORD...` at each Tab, a tenth of a second. So it always knows the options of today's parser, the
profiles, the runs that are there now, and the notebooks' parameters.
"""

import argparse
import contextlib
from collections.abc import Iterable

from helpers.errors import CourseError

BASH = """\
# bash completion of `course`. For this shell:  eval "$(course completion bash)"
_course() {
    local IFS=$'\\n'
    COMPREPLY=($("$1" completion words -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -o default -F _course course
"""

ZSH = """\
#compdef course
# zsh completion of `course`. For this shell, after compinit:  eval "$(course completion zsh)"
_course() {
    local -a found assigned plain
    found=(${(f)"$("${words[1]}" completion words -- "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    assigned=(${(M)found:#*=})
    plain=(${found:#*=})
    (( $#assigned )) && compadd -S '' -a assigned
    (( $#plain )) && compadd -a plain
    (( $#found )) || _files
}
if [[ ${funcstack[1]} == _course ]]; then _course "$@"; else compdef _course course; fi
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH}


def _profiles() -> Iterable[str]:
    from helpers.runs.settings import profiles

    return profiles()


def _runs() -> Iterable[str]:
    from helpers.paths import runs_dir

    return [
        "latest",
        *sorted(
            path.parent.name
            for path in runs_dir().glob("[!.]*/manifest.json")
            if path.parent.name != "latest"
        ),
    ]


def _sweeps() -> Iterable[str]:
    from helpers.paths import runs_dir
    from helpers.runs.run import SWEEP_FILE

    return sorted(path.parent.name for path in runs_dir().glob(f"[!.]*/{SWEEP_FILE}"))


def _runs_and_sweeps() -> Iterable[str]:
    return [*_runs(), *_sweeps()]


def _parameters() -> Iterable[str]:
    from helpers.runs.settings import notebook_parameters

    return sorted(
        {f"{name}=" for names in notebook_parameters().values() for name in names if name != "run_name"}
    )


def _backends() -> Iterable[str]:
    return ["auto", "stub", "hosted"]


def _notebooks() -> Iterable[str]:
    from helpers.paths import NOTEBOOKS

    return sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


# What the value of an argument is called in its help: what to offer for it. Files are left to the shell.
OFFERS = {
    "PROFILE|FILE": _profiles,
    "RUN": _runs,
    "SWEEP": _sweeps,
    "RUN|SWEEP": _runs_and_sweeps,
    "NAME=VALUE": _parameters,
    "NAME=VALUE,VALUE": _parameters,
    "BACKEND": _backends,
    "NOTEBOOK": _notebooks,
}


def words(parser: argparse.ArgumentParser, typed: list[str]) -> list[str]:
    """What can stand in the place of the last word.

    Args:
        parser: of the whole command.
        typed: the words after `course` so far; the last one, perhaps empty, is to be completed.
    """
    typed = typed or [""]
    cut = "=" in typed[-2:]  # bash cuts `--name=value` into three words, and completes the last of them
    *before, current = _whole(typed)
    waiting: argparse.Action | None = None  # the option whose value comes next
    for word in before:
        name, assigned, _ = word.partition("=")
        option = parser._option_string_actions.get(name)
        if option is not None:
            waiting = option if option.nargs != 0 and not assigned else None
        elif waiting is not None:
            waiting = waiting if waiting.nargs in ("+", "*") else None
        elif (inner := _subparsers(parser)) and word in inner.choices:
            parser = inner.choices[word]
    start, assigned, value = current.partition("=")
    if current.startswith("-") and assigned:
        option = parser._option_string_actions.get(start)
        offered, current = _values(option) if option is not None else [], value
    elif current.startswith("-"):
        offered, start = list(parser._option_string_actions), ""
    elif waiting is not None and assigned and str(waiting.metavar).startswith("NAME=VALUE"):
        offered, current = _words_for(start), value
    elif waiting is not None:
        offered, start = _values(waiting), ""
    else:
        offered, start = (
            [value for action in parser._get_positional_actions() for value in _values(action)],
            "",
        )
    return [word if cut or not start else f"{start}={word}" for word in offered if word.startswith(current)]


def _whole(typed: list[str]) -> list[str]:
    """The words as they were typed: `["-p", "task", "=", "te"]` is `["-p", "task=te"]`."""
    found: list[str] = []
    for word in typed:
        if found and (word == "=" or found[-1].endswith("=")):
            found[-1] += word
        else:
            found.append(word)
    return found


def _words_for(parameter: str) -> list[str]:
    from helpers.runs.settings import CHOICES

    return [word for word in CHOICES.get(parameter, ()) if word]


def _subparsers(parser: argparse.ArgumentParser) -> argparse.Action | None:
    return next(
        (action for action in parser._actions if isinstance(action, argparse._SubParsersAction)), None
    )


def _values(action: argparse.Action) -> list[str]:
    if action.choices is not None:
        return list(action.choices)
    with contextlib.suppress(CourseError, OSError):  # a Tab key has nowhere to show an error
        return list(OFFERS.get(str(action.metavar), list)())
    return []
