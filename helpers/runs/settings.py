"""Parameters of a run: what the notebooks take, what a user chose, and where a run differs from the defaults."""

from helpers.paths import NOTEBOOKS
import argparse
import ast
import difflib
import json
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.data.columns import parse_columns
from helpers.errors import CourseError
from helpers.data.hub import HUB
from helpers.paths import ROOT
from helpers.runs.run import STAGES
from helpers.evaluate.tasks import TASKS

OTHER_RUNS = (
    "run_name",
    "base_run",
)  # parameters that name a run: a run like another one does not take them over
PATHS = ("base_model", "benchmark_file")
KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
PRECISIONS = ("float32", "bfloat16", "float16")


# Parameters that take one of a few words; the Tab key offers them, too.
CHOICES: dict[str, tuple[str, ...]] = {
    "task": tuple(TASKS),
    "best_metric": ("accuracy", "loss"),
    **dict.fromkeys(("dtype", "sampler_precision"), PRECISIONS),
    "executor": ("", "ray", "mp", "uni", "external_launcher"),
}


def _one_of(values: tuple[str, ...]) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in values, f"it must be {', '.join(map(repr, values[:-1]))} or {values[-1]!r}"


# What a value must be beside its type: which parameters, the test, and the words for it. What else there is, is text of any kind.
SHARE = lambda value: 0 < value < 1, "it must be a share over 0 and under 1"
ABOVE_ZERO = lambda value: 0 < value < math.inf, "it must be above zero"
NOT_BELOW_ZERO = lambda value: 0 <= value < math.inf, "it must be 0 or more"
ONE_OR_MORE = lambda value: value >= 1, "it must be 1 or more"
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **{name: _one_of(values) for name, values in CHOICES.items()},
    "text_threshold": (lambda value: 0 < value <= 1, "it must be over 0 and at most 1"),
    "seed": (lambda value: 0 <= value < 2**32, "it must be a whole number from 0 to 4294967295"),
    **dict.fromkeys(("test_size", "validation_size"), SHARE),
    **dict.fromkeys(("epochs", "learning_rate"), ABOVE_ZERO),
    **dict.fromkeys(
        (
            "max_train",
            "max_validation",
            "max_test",
            "eval_every_epochs",
            "patience",
            "temperature",
            "test_limit",
            "throughput_tokens",
            "serve_prompts",
        ),
        NOT_BELOW_ZERO,
    ),
    **dict.fromkeys(
        (
            "rank",
            "batch_size",
            "eval_every",
            "max_tokens",
            "max_in_flight",
            "subset",
            "sampled_problems",
            "samples_each",
            "parity_prompts",
            "tensor_parallel_size",
            "kv_cache_gib",
        ),
        ONE_OR_MORE,
    ),
    **dict.fromkeys(
        ("max_length", "max_model_len"), (lambda value: value >= 2, "it must be 2 tokens or more")
    ),
    "backend_name": (
        lambda value: value in ("auto", "stub", "hosted") or value.startswith(("http://", "https://")),
        "it must be 'auto', 'stub', 'hosted', or the URL of a Tinker-compatible server",
    ),
    "gpu_memory_utilization": (lambda value: 0 < value <= 1, "it must be a share over 0 and at most 1"),
    "batch_sizes": (
        lambda value: all(part.strip().isdecimal() and int(part) for part in value.split(",")),
        "it must be whole numbers above zero, separated by commas, such as '1,4,16'",
    ),
}


def profiles() -> dict[str, dict[str, Any]]:
    """The named sets of parameters in helpers/runs/profiles.toml.

    Raises:
        CourseError: the file can't be read.
    """
    return read_toml(Path(__file__).with_name("profiles.toml"))


def profile(name: str) -> dict[str, Any]:
    """The parameters of a named profile, or of a TOML file of the user's with a line `name = value` for each.

    Raises:
        CourseError: there is no such profile or file, or it can't be read.
    """
    sets = profiles()
    if name in sets:
        return sets[name]
    if not name.endswith(".toml"):
        raise CourseError(
            f"there is no profile {name!r}",
            f"profiles are {', '.join(sets)}, and files of your own that end in .toml",
        )
    parameters = read_toml(
        Path(name), "it must be there, with a line such as  epochs = 2.0  for each parameter"
    )
    if tables := [key for key, value in parameters.items() if isinstance(value, dict)]:
        raise CourseError(
            f"{name}: [{tables[0]}] is a table",
            "a profile of your own is one list of lines, name = value, without a head",
        )
    return parameters


def read_toml(
    path: Path, fix: str = "mend it there, or get it back: git checkout helpers/"
) -> dict[str, Any]:
    """A TOML file that users edit.

    Raises:
        CourseError: it is missing, or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CourseError(f"{path} can't be read: {error}", fix) from error


def chosen_parameters(options: argparse.Namespace) -> dict[str, Any]:
    """Parameters of the profile, then of -p, then of the other options; each beats the ones before.

    Raises:
        CourseError: there is no such profile, its file can't be read, or a -p is not NAME=VALUE.
    """
    default = {} if options.resume or options.first or options.like else profiles()["quick"]
    parameters = dict(profile(options.profile) if options.profile else default)
    for text in options.parameter:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise CourseError(f"-p {text!r} is not NAME=VALUE", "write for example -p epochs=1")
        parameters[name.strip()] = parse_value(value.strip())
    if options.data:
        parameters["data_files"] = ",".join(_place(file) for file in options.data)
    for name in PATHS:  # notebooks run in a folder of their own
        if isinstance(value := parameters.get(name), str) and value and Path(value).exists():
            parameters[name] = str(Path(value).absolute())
    if options.columns:
        parameters["columns"] = options.columns
    if options.backend:
        parameters["backend_name"] = options.backend
    return parameters


def _place(file: str) -> str:
    """A data file's absolute path, or the name of a data set."""
    if "," in file and not file.startswith(HUB):
        raise CourseError(
            f"{file!r} has a comma in its path, and commas part the names of data files", "rename it"
        )
    if file.startswith(HUB):
        folder = Path(file.removeprefix(HUB).partition("#")[0])
        return (
            file
            if folder.is_absolute() or not folder.is_dir()
            else file.replace(str(folder), str(folder.absolute()), 1)
        )
    return str(Path(file).absolute())


def parse_value(text: str) -> Any:
    """A TOML value, or else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return {"True": True, "False": False}.get(text, text)


def notebook_parameters() -> dict[str, dict[str, Any]]:
    """Each stage's parameters with their defaults, from the cell tagged `parameters` of its notebook.

    The notebooks are read as JSON: importing nbformat takes a second, too long for a Tab key.
    """
    found = {}
    for stage, (notebook, _) in STAGES.items():
        cells = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
        source = next(
            "".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])
        )
        found[stage] = {
            node.targets[0].id: ast.literal_eval(node.value)
            for node in ast.parse(source).body
            if isinstance(node, ast.Assign)
        }
    return found


def check_parameters(parameters: dict[str, Any], known: dict[str, dict[str, Any]]) -> None:
    """Refuse what no notebook takes, before anything starts.

    Raises:
        CourseError: an unknown name (with the near ones), a value of another type than the default's, one that RULES don't allow, or a
            model folder or file that is not there.
    """
    defaults = {name: value for stage in known.values() for name, value in stage.items()}
    for name, value in parameters.items():
        if name == "run_name" or name not in defaults:
            near = difflib.get_close_matches(name, [n for n in defaults if n != "run_name"])
            fix = (
                f"did you mean {' or '.join(near)}?"
                if near
                else f"parameters are {', '.join(sorted(set(defaults) - {'run_name'}))}"
            )
            raise CourseError(
                f"no notebook has a parameter {name!r}"
                if name != "run_name"
                else "run_name is set by --name",
                fix,
            )
        wanted = type(defaults[name])
        fits = isinstance(value, wanted) or (wanted is float and isinstance(value, int))
        if not fits or (isinstance(value, bool) and wanted is not bool):
            raise CourseError(
                f"parameter {name} must be {KINDS[wanted]}, and it is {value!r}",
                f"write for example -p {name}={_written(defaults[name])}",
            )
        allowed, words = RULES.get(name, (lambda _: True, ""))
        if not allowed(value):
            raise CourseError(
                f"parameter {name}={value!r} is impossible: {words}",
                f"the default is {_written(defaults[name])}",
            )
    parse_columns(parameters.get("columns", ""))
    if model := parameters.get("base_model"):
        from helpers.train.models import resolve_base_model

        resolve_base_model(model)
    if (file := parameters.get("benchmark_file")) and not Path(file).is_file():
        raise CourseError(f"benchmark_file={file!r} is not there", "name GSM8K's test.jsonl, or leave it out")


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) or not value else value


def stage_differences(parameters: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Those of `parameters` that a stage takes with another value than its default.

    Args:
        parameters: by name; names that the stage does not take are left out.
        defaults: the stage's, from `notebook_parameters`.
    """
    return {
        name: value
        for name, value in parameters.items()
        if name in defaults and name != "run_name" and value != defaults[name]
    }


def run_parameters(
    manifest: dict[str, Any], known: dict[str, dict[str, Any]]
) -> tuple[dict[str, Any], list[str]]:
    """The parameters that give a run like this one with the notebooks of today.

    `course run` keeps what the user chose. What a stage recorded counts as well, where it differs from today's default: the
    default may have been another one then, and a notebook that was run by hand records nothing else.

    Args:
        manifest: the run's.
        known: from `notebook_parameters`.

    Returns:
        Parameters by name, and notes on what can't be taken over as it was.
    """
    chosen = {name: value for name, value in manifest.get("parameters", {}).items() if name not in OTHER_RUNS}
    parameters = {
        name: value for name, value in chosen.items() if any(name in defaults for defaults in known.values())
    }
    notes = [
        f"parameter {name}={chosen[name]!r} is left out: no notebook has it today"
        for name in chosen
        if name not in parameters
    ]
    recorded: dict[str, dict[str, Any]] = {}
    for stage, entry in manifest["stages"].items():
        for name, value in entry.get("parameters", {}).items():
            if name in known.get(stage, {}) and name not in OTHER_RUNS:
                recorded.setdefault(name, {})[stage] = value
    for name, values in recorded.items():
        if name in parameters:
            continue
        other = [value for stage, value in values.items() if value != known[stage][name]]
        if other:
            parameters[name] = other[0]
            if any(value != other[0] for value in values.values()):
                notes.append(
                    f"stages had different values of {name} ({', '.join(f'{s} {v!r}' for s, v in values.items())}): all get {other[0]!r}"
                )
    return parameters, notes


def stage_values(
    parameters: dict[str, Any], known: dict[str, dict[str, Any]], until: str
) -> dict[str, dict[str, Any]]:
    """What each notebook up to the stage `until` gets: its defaults, and those of `parameters` that it takes."""
    stages = list(STAGES)[: list(STAGES).index(until) + 1]
    return {
        stage: known[stage] | {name: value for name, value in parameters.items() if name in known[stage]}
        for stage in stages
    }
