"""The `course` command: the notebooks in order through papermill, and what surrounds them."""

import argparse
import difflib
import os
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

from helpers.errors import CourseError, RunError
from helpers.runs import ROOT, STAGES, Run, new_run, open_run

NOTEBOOKS = ROOT / "notebooks"
OWN_ERRORS = ("CourseError", "DataError", "ModelError", "BackendError", "RunError")
INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0 done, 1 an error was reported, 2 wrong usage, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except CourseError as error:
        print(f"course: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ncourse: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="course", description="The Tinker course: from a JSON file of examples to a fine-tuned model in vLLM.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run the notebooks in order, into a run folder", description=(
        "Run the notebooks in order through papermill. Everything they make goes into runs/NAME, and runs/latest names the newest run."),
        epilog="example: course run -p epochs=1 -p max_test=60 --until evaluate")
    run.add_argument("--name", default="", help="name of the run folder (default: date and time)")
    run.add_argument("--profile", help="a set of parameters from helpers/profiles.toml (default: quick)")
    run.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="set a notebook parameter; may be given more than once")
    run.add_argument("--data", nargs="+", metavar="FILE", help="your own .json or .jsonl files")
    run.add_argument("--backend", help="auto, stub, hosted, or the URL of a Tinker-compatible server")
    run.add_argument("--from", dest="first", choices=STAGES, help="start at this stage of an existing run")
    run.add_argument("--until", dest="last", choices=STAGES, help="end after this stage")
    run.add_argument("--resume", action="store_true", help="go on with an existing run (--name, default: latest) where it stopped, with its parameters")
    run.set_defaults(command=run_course)

    check = commands.add_parser("check", help="say what works on this machine, and what to do about the rest")
    check.add_argument("--backend", help="auto, stub, hosted, or a URL")
    check.set_defaults(command=check_machine)

    stub = commands.add_parser("stub", help="the stub Tinker backend that notebooks start by themselves: say what it does, or stop it")
    stub.add_argument("action", choices=["status", "stop"])
    stub.set_defaults(command=stub_command)
    return parser


def check_machine(options: argparse.Namespace) -> int:
    from helpers.check import check_environment, print_report

    return 0 if print_report(check_environment(options.backend)) else 1


def stub_command(options: argparse.Namespace) -> int:
    from helpers.backend import running_stub, stop_stub, stub_state_dir

    if options.action == "stop":
        print("the stub is ending" if stop_stub() else "no stub is running")
        return 0
    server = running_stub()
    if server is None:
        print("no stub is running; the notebooks start it when they need it")
        return 0
    from helpers.stub_tinker.status import of_state_dir

    print(f"process {server['pid']}: {of_state_dir(stub_state_dir())}")
    return 0


# course run


def run_course(options: argparse.Namespace) -> int:
    """Run stages of a run, print a line for each and a table at the end."""
    chosen = chosen_parameters(options)
    known = notebook_parameters()
    check_parameters(chosen, known)
    run, stages = _choose_run(options)
    parameters = run.manifest.get("parameters", {}) | chosen  # an existing run keeps what it was started with
    run.update(parameters=parameters)
    print(f"run {run.name} → {_short(run.path)}", flush=True)
    started = time.monotonic()
    for number, stage in enumerate(stages, start=1):
        own = {name: value for name, value in parameters.items() if name in known[stage]}
        status = run_stage(run, stage, own, f"[{number}/{len(stages)}]")
        if status:
            print(f"\nWhat was done is kept. To go on from here:  course run --resume --name {run.name}", file=sys.stderr)
            return status
    print_summary(run, stages, time.monotonic() - started)
    if all(entry["status"] == "done" for entry in run.manifest["stages"].values()) and len(run.manifest["stages"]) == len(STAGES):
        from helpers.report import write_report

        print(f"a page to read or to send: {_short(write_report(run))}")
    return 0


def chosen_parameters(options: argparse.Namespace) -> dict[str, Any]:
    """Parameters of the profile, then of -p, then of the other options; each beats the ones before.

    Raises:
        CourseError: there is no such profile, or a -p is not NAME=VALUE.
    """
    profiles = tomllib.loads((ROOT / "helpers" / "profiles.toml").read_text(encoding="utf-8"))
    if options.profile and options.profile not in profiles:
        raise CourseError(f"there is no profile {options.profile!r}", f"profiles are {', '.join(profiles)}")
    default = {} if options.resume or options.first else profiles["quick"]
    parameters = dict(profiles[options.profile] if options.profile else default)
    for text in options.parameter:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise CourseError(f"-p {text!r} is not NAME=VALUE", "write for example -p epochs=1")
        parameters[name.strip()] = _value(value.strip())
    if options.data:
        files = [Path(file).absolute() for file in options.data]
        parameters["data_files"] = ",".join(map(str, files))
    if options.backend:
        parameters["backend_name"] = options.backend
    return parameters


def _value(text: str) -> Any:
    """A TOML value, or else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return {"True": True, "False": False}.get(text, text)


def notebook_parameters() -> dict[str, dict[str, Any]]:
    """Each stage's parameters with their defaults, from the cell tagged `parameters` of its notebook."""
    import ast

    import nbformat

    found = {}
    for stage, (notebook, _) in STAGES.items():
        cells = nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", as_version=4).cells
        source = next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
        found[stage] = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source).body if isinstance(node, ast.Assign)}
    return found


def check_parameters(parameters: dict[str, Any], known: dict[str, dict[str, Any]]) -> None:
    """Refuse what no notebook takes, before anything starts.

    Raises:
        CourseError: an unknown name (with the near ones), or a value of another type than the default's.
    """
    defaults = {name: value for stage in known.values() for name, value in stage.items()}
    for name, value in parameters.items():
        if name == "run_name" or name not in defaults:
            near = difflib.get_close_matches(name, [n for n in defaults if n != "run_name"])
            fix = f"did you mean {' or '.join(near)}?" if near else f"parameters are {', '.join(sorted(set(defaults) - {'run_name'}))}"
            raise CourseError(f"no notebook has a parameter {name!r}" if name != "run_name" else "run_name is set by --name", fix)
        wanted = type(defaults[name])
        fits = isinstance(value, wanted) or (wanted is float and isinstance(value, int))
        if not fits or (isinstance(value, bool) and wanted is not bool):
            raise CourseError(f"parameter {name} must be of type {wanted.__name__}, as its default {defaults[name]!r}; got {value!r}", "correct the value")


def _choose_run(options: argparse.Namespace) -> tuple[Run, list[str]]:
    """The run to work in, and its stages to do."""
    stages = list(STAGES)
    if options.resume or options.first:
        run = open_run(options.name or "latest")
        done = run.manifest["stages"]
        first = options.first or next((s for s in stages if done.get(s, {}).get("status") != "done"), None)
        if first is None:
            raise RunError(f"run {run.name} is complete", "leave out --resume to start another, or name a stage with --from")
    else:
        run, first = new_run(options.name), stages[0]
    last = options.last or stages[-1]
    chosen = stages[stages.index(first) : stages.index(last) + 1]
    if not chosen:
        raise RunError(f"stage {first} comes after {last}", "correct --from or --until")
    for needed in STAGES[chosen[0]][1]:
        run.stage(needed)
    return run, chosen


def run_stage(run: Run, stage: str, parameters: dict[str, Any], label: str) -> int:
    """Execute one notebook into run/notebooks. Returns 0, or the exit status after printing what went wrong."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    notebook = STAGES[stage][0]
    folder = run.file("notebooks")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"can't write {folder}: {error.strerror}", "choose a folder you may write to: COURSE_RUNS_DIR=/some/folder") from error
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # the kernel of this environment, not one of the same name in HOME
    line = ProgressLine(f"{label} {notebook}")
    try:
        papermill.execute_notebook(
            NOTEBOOKS / f"{notebook}.ipynb", folder / f"{notebook}.ipynb", parameters={"run_name": run.name, **parameters},
            cwd=NOTEBOOKS, progress_bar=False, stdout_file=line, kernel_name="python3",
            extra_arguments=["--IPKernelApp.log_level=50"])  # its own log says nothing to a user; cells report by themselves
    except PapermillExecutionError as error:
        line.end("FAILED")
        _explain(error, folder / f"{notebook}.ipynb")
        return 1
    except DeadKernelError:
        line.end("FAILED")
        print(f"course: the Python process of {notebook} ended in mid-work: killed, or out of memory\n→ close other programs, and run it again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        line.end("interrupted")
        return INTERRUPTED
    entry = run.manifest["stages"].get(stage, {})
    if entry.get("status") != "done":
        line.end("FAILED")
        print(f"{notebook} ran to its end without finishing its stage", file=sys.stderr)
        return 1
    line.end(entry["summary"])
    return 0


def _kernel_config() -> Any:
    """Talk to the kernel over a socket file of this user, not a port that others on the machine could read."""
    from traitlets.config import Config

    return Config({"KernelManager": {"transport": "ipc"}})


def _explain(error: Any, output: Path) -> None:
    """A user's mistake in its own words; anything else with its traceback."""
    if error.ename in OWN_ERRORS:
        print(f"{error.ename}: {error.evalue}", file=sys.stderr)
    else:
        print("\n".join(error.traceback[-12:]), file=sys.stderr)
    print(f"The notebook as far as it came: {_short(output)}", file=sys.stderr)


class ProgressLine:
    """One line a notebook: on a terminal it follows the notebook's own progress bars, in a log it is printed at the end.

    papermill writes the notebook's standard output to it.
    """

    def __init__(self, label: str):
        self.label, self._terminal, self._started = label, sys.stdout.isatty(), time.monotonic()
        self._shown = 0.0
        if self._terminal:
            self._draw("starting")
        else:
            print(f"{label} …", flush=True)

    def write(self, text: str) -> None:
        lines = [line for line in text.replace("\r", "\n").split("\n") if line.strip()]
        now = time.monotonic()
        if lines and self._terminal and now - self._shown > 0.2:
            self._shown = now
            self._draw(lines[-1].strip())
        elif lines and not self._terminal and now - max(self._shown, self._started) > 30 and "%|" in lines[-1]:
            self._shown = now
            print(f"    {lines[-1].strip()}", flush=True)

    def flush(self) -> None:
        sys.stdout.flush()

    def _draw(self, text: str) -> None:
        width = os.get_terminal_size().columns
        print("\r" + f"{self.label:26} {clock(time.monotonic() - self._started):>6}  {text}"[: width - 1].ljust(width - 1), end="", flush=True)

    def end(self, text: str) -> None:
        if self._terminal:
            self._draw(text)
            print()
        else:
            print(f"{self.label:26} {clock(time.monotonic() - self._started):>6}  {text}", flush=True)


def print_summary(run: Run, stages: list[str], seconds: float) -> None:
    """The table at the end: stage, time, key result, file; and what the time went to."""
    entries = {stage: run.manifest["stages"][stage] for stage in stages}
    rows = [("stage", "time", "key result", "file")]
    rows += [(stage, clock(entry["seconds"]), entry["summary"], entry["artefacts"][0]) for stage, entry in entries.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    print()
    for number, row in enumerate(rows):
        print("  ".join(cell.rjust(w) if i == 1 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip())
        if number == 0:
            print("  ".join("─" * w for w in widths))
    work: dict[str, float] = {}
    for entry in entries.values():
        for kind, spent in entry["work_seconds"].items():
            work[kind] = work.get(kind, 0.0) + spent
    rest = seconds - sum(work.values())
    spans = [f"{kind} {clock(spent)}" for kind, spent in work.items()] + [f"the rest {clock(rest)} (kernels, imports, model loading)"]
    print(f"\n{clock(seconds)} in all: {', '.join(spans)}")
    print(f"everything is in {_short(run.path)}; the executed notebooks are in its notebooks/ folder")


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
