"""The `course` command: the notebooks in order through papermill, and what surrounds them."""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.errors import CourseError, RunError, UsageError
from helpers.paths import NOTEBOOKS, runs_dir
from helpers.runs.base_answers import check_base_run
from helpers.runs.info import readable_run
from helpers.runs.run import STAGES, Run, check_new_run, new_run
from helpers.runs.settings import check_parameters, chosen_parameters, notebook_parameters
from helpers.text import clock

OWN_ERRORS = ("CourseError", "DataError", "ModelError", "BackendError", "RunError")
INTERRUPTED = 130


EXIT_CODES = """exit status:
  0    done
  1    an error was reported, a check failed, or the answer to a question was no
  2    wrong usage: an unknown command or option, or options that don't go together
  130  interrupted (Ctrl-C); `course serve` and `course lab` end with 0, since that is how they are ended"""


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0 done, 1 an error was reported, 2 wrong usage, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:3] == [
        "completion",
        "words",
        "--",
    ]:  # asked by the script at each Tab; the words are not ours to parse
        from helpers.course.completion import words

        print("\n".join(words(_parser(), arguments[3:])))
        return 0
    arguments, passed_on = _cut(arguments)
    options = _parser().parse_args(arguments)
    options.passed_on = passed_on
    try:
        status = options.command(options)
        sys.stdout.flush()
        return status
    except CourseError as error:
        print(f"course: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("\ncourse: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `course list | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _cut(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What stands before and after the first `--` of `course lab`: the second part is for JupyterLab."""
    if arguments[:1] != ["lab"] or "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


def _parser() -> argparse.ArgumentParser:
    """The parser. A metavar says what an argument takes; helpers/course/completion.py offers by it."""
    parser = argparse.ArgumentParser(
        prog="course",
        description="The Tinker course: from a JSON file of examples to a fine-tuned model in vLLM.",
        epilog="`course COMMAND --help` explains a command, with examples.\n\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = _command(
        commands,
        "run",
        run_course,
        "run the notebooks in order, into a run folder",
        (
            "Run the notebooks in order through papermill. Everything they make goes into runs/NAME, and runs/latest names the newest run."
        ),
        (
            "course run -p epochs=1 -p max_test=60 --until evaluate",
            "course run --dry-run --profile full      # how much, how long, what it costs",
            "course run --data tickets.csv --columns instruction=text,output=label -p task=classification",
            "course run --resume                      # go on where the newest run stopped",
            "course run --like latest -p rank=16      # the same again, but for one setting",
        ),
    )
    run.add_argument(
        "--name", default="", metavar="RUN", help="name of the run folder (default: date and time)"
    )
    run.add_argument(
        "--profile",
        metavar="PROFILE|FILE",
        help="a set of parameters from helpers/runs/profiles.toml, or a .toml file of your own (default: quick)",
    )
    run.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set a notebook parameter; may be given more than once",
    )
    run.add_argument(
        "--data",
        nargs="+",
        metavar="FILE",
        help="your own .json, .jsonl, .csv or .tsv files, or data sets: hub:OWNER/NAME",
    )
    run.add_argument(
        "--columns",
        metavar="FIELD=COLUMN,...",
        help="which column of the data is what: instruction=text,output=label",
    )
    run.add_argument(
        "--backend", metavar="BACKEND", help="auto, stub, hosted, or the URL of a Tinker-compatible server"
    )
    run.add_argument("--from", dest="first", choices=STAGES, help="start at this stage of an existing run")
    run.add_argument("--until", dest="last", choices=STAGES, help="end after this stage")
    run.add_argument(
        "--resume",
        action="store_true",
        help="go on with an existing run (--name, default: latest) where it stopped, with its parameters",
    )
    run.add_argument(
        "--like",
        metavar="RUN",
        help="a new run with the parameters of this one; says what changed since: packages, data files",
    )
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would run, how long it takes and what it costs; start and write nothing",
    )
    run.add_argument("--json", action="store_true", help="with --dry-run: as JSON")

    sweep = _command(
        commands,
        "sweep",
        sweep_command,
        "run many settings, a run each, and compare them",
        (
            "Run every combination of --grid, or every setting of a file, and compare them on the validation data. Each is a run like any\n"
            "other: runs/NAME-01, runs/NAME-02, …. What they share is done once: the split, and the answers of the base model. A run that\n"
            "fails does not stop the others. Table and plot go into runs/NAME, and at the end runs/latest names the best by validation."
        ),
        (
            "course sweep --name ranks --grid rank=8,32 --grid learning_rate=1e-3,3e-4 --dry-run",
            "course sweep --name ranks --grid rank=8,32 --grid learning_rate=1e-3,3e-4 -p epochs=2",
            "course sweep --name ranks --resume           # the failed and missing ones",
            "course sweep --name seeds --grid seed=1,2,3  # how much is luck?",
            "course sweep --name mine --settings settings.csv --until train",
            "course show ranks                            # the table again",
        ),
    )
    sweep.add_argument("--name", required=True, metavar="SWEEP", help="name of the sweep")
    sweep.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="NAME=VALUE,VALUE",
        help="values of a notebook parameter; may be given more than once, for all combinations",
    )
    sweep.add_argument(
        "--settings",
        metavar="FILE",
        help="the settings, a run each: a .json list of objects, or a .csv table with a head",
    )
    sweep.add_argument(
        "--profile",
        metavar="PROFILE|FILE",
        help="a set of parameters from helpers/runs/profiles.toml, or a .toml file of your own (default: quick)",
    )
    sweep.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set a parameter for all runs; may be given more than once",
    )
    sweep.add_argument(
        "--data",
        nargs="+",
        metavar="FILE",
        help="your own .json, .jsonl, .csv or .tsv files, or data sets: hub:OWNER/NAME",
    )
    sweep.add_argument(
        "--columns",
        metavar="FIELD=COLUMN,...",
        help="which column of the data is what: instruction=text,output=label",
    )
    sweep.add_argument(
        "--backend", metavar="BACKEND", help="auto, stub, hosted, or the URL of a Tinker-compatible server"
    )
    sweep.add_argument(
        "--until", dest="last", choices=STAGES, help="end after this stage (default: evaluate)"
    )
    sweep.add_argument(
        "--jobs", type=int, metavar="N", help="runs at a time (default: 1). On one stub they share its cores"
    )
    sweep.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="hand the runs to the workers of this Dask scheduler, such as tcp://host:8786",
    )
    sweep.add_argument(
        "--resume",
        action="store_true",
        help="go on with a sweep: do what failed or is missing, with its settings",
    )
    sweep.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would run, how long and at what cost; start and write nothing",
    )
    sweep.add_argument(
        "--json",
        action="store_true",
        help="the results, or the plan, as JSON; progress goes to the error output",
    )
    sweep.set_defaults(first=None, like=None)

    listing = _command(
        commands,
        "list",
        list_command,
        "the runs, newest first",
        (
            "One line a run: when it was made, accuracy of base and tuned model on the test set, size on disk, stages done."
        ),
        ("course list", "course list --json | python -m json.tool"),
    )
    listing.add_argument("--json", action="store_true", help="as JSON")

    show = _command(
        commands,
        "show",
        show_command,
        "one run: parameters, stages, scores, files, versions",
        (
            "Everything that a run's manifest says, and how it differs from the notebooks' defaults of today. Of a sweep: its table."
        ),
        ("course show", "course show my-run --json"),
    )
    show.add_argument(
        "run",
        nargs="?",
        default="latest",
        metavar="RUN|SWEEP",
        help="its name, or that of a sweep (default: latest)",
    )
    show.add_argument("--json", action="store_true", help="as JSON")

    report = _command(
        commands,
        "report",
        report_command,
        "one page of HTML for a run, or one that compares several",
        (
            "Write a page that needs no network and no other file, to read or to send. Of one run: settings, data, curves, scores,\n"
            "answers to read, parity, times, versions. Of several: what differs, scores side by side, and the paired test on the same\n"
            "problems, with the run named first as the one to compare with. The name of a sweep stands for its runs. A run need not be\n"
            "complete: the page says what is missing, stale or damaged in it."
        ),
        (
            "course report                          # the newest run, into its report.html",
            "course report first second third       # side by side, into comparison.html in the runs folder",
            "course report my-sweep                 # its runs side by side, into its report.html",
            "course report my-run --output to_send.html --open",
        ),
    )
    report.add_argument(
        "runs", nargs="*", metavar="RUN|SWEEP", help="names of runs or sweeps (default: latest)"
    )
    report.add_argument("--output", type=Path, metavar="FILE", help="where to write it; ends in .html")
    report.add_argument("--open", action="store_true", help="show it in a browser")
    report.add_argument(
        "--json", action="store_true", help="say as JSON where it is, with scores, and what is missing"
    )

    clean = _command(
        commands,
        "clean",
        clean_command,
        "delete runs, after asking",
        (
            "Show what would go, with sizes, and ask. Only run folders in the runs folder are deleted, and links are never followed. A run that is\n"
            "under way is refused. If the newest run goes, runs/latest names the one before it. Checkpoints on the Tinker server stay.\n"
            "The name of a sweep stands for all of its runs, its table and its plot."
        ),
        (
            "course clean my-run other-run",
            "course clean --older-than 30           # all in which nothing changed for 30 days",
            "course clean my-run --yes              # without asking",
        ),
    )
    clean.add_argument("runs", nargs="*", metavar="RUN|SWEEP", help="names of runs or sweeps")
    clean.add_argument(
        "--older-than",
        type=float,
        metavar="DAYS",
        help="only runs in which nothing changed for so many days; without names, of all runs",
    )
    clean.add_argument("--yes", action="store_true", help="don't ask; needed where there is no terminal")

    check = _command(
        commands,
        "check",
        check_machine,
        "say what works on this machine, and what to do about the rest",
        ("One line a thing that the course needs: [OK], [NOTE] or [FAIL], and the fix."),
        ("course check", "course check --backend hosted"),
    )
    check.add_argument("--backend", metavar="BACKEND", help="auto, stub, hosted, or a URL")

    stub = _command(
        commands,
        "stub",
        stub_command,
        "the stub Tinker backend that notebooks start by themselves: say what it does, or stop it",
        ("The stub starts when a notebook needs it, and ends when it was unused for a while."),
        ("course stub status", "course stub stop      # free its memory now"),
    )
    stub.add_argument("action", choices=["status", "stop"])

    serve = _command(
        commands,
        "serve",
        serve_command,
        "one stub Tinker backend for a class, with a key for each learner",
        (
            "Writes a table with a key for each learner, says what they have to type and how many this machine carries, and serves until\n"
            "Ctrl-C. Keys that are there are kept: run it again for the next lesson, or with more names for those who came late."
        ),
        (
            "course serve --learners 12                       # try it here; only this machine can reach it",
            "course serve --learners names.txt --host 0.0.0.0 # a name a line; open to the network, over plain HTTP",
            "course serve --host 0.0.0.0                      # the next lesson, with the same keys",
        ),
    )
    serve.add_argument(
        "--learners",
        metavar="N|FILE",
        help="how many, or a file with a name a line; those without a key get one",
    )
    serve.add_argument(
        "--keys",
        type=Path,
        metavar="FILE",
        help="the table of keys (default: class/learners.csv in the course's cache folder)",
    )
    serve.add_argument(
        "--new-keys",
        action="store_true",
        help="replace all keys; nobody can reach what belongs to the old ones",
    )
    serve.add_argument(
        "--show-keys", action="store_true", help="print the keys too; else they are in the table only"
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    serve.add_argument("--port", type=int, default=8765, help="port to listen on (default: %(default)s)")
    serve.add_argument(
        "--address",
        default="",
        metavar="NAME",
        help="what learners type for this machine (default: found out)",
    )
    serve.add_argument(
        "--state-dir",
        type=Path,
        metavar="FOLDER",
        help="for checkpoints (default: class/stub in the course's cache folder)",
    )
    serve.add_argument(
        "--base-model",
        action="append",
        default=[],
        metavar="FOLDER",
        help="another base model than the course's; may be given more than once",
    )

    lab = _command(
        commands,
        "lab",
        lab_command,
        "open JupyterLab at a notebook of the course",
        (
            "Starts JupyterLab with this environment's Python and opens it in a browser. Ctrl-C ends it. Words after -- are JupyterLab's own\n"
            "options: course lab -- --ip 0.0.0.0"
        ),
        ("course lab", "course lab 02_train --no-browser          # prints the address to open"),
    )
    lab.add_argument(
        "notebook",
        nargs="?",
        default="00_start_here",
        metavar="NOTEBOOK",
        help="its name, or a path (default: 00_start_here)",
    )
    lab.add_argument("--port", type=int, help="port to listen on (default: 8888, or the next that is free)")
    lab.add_argument("--no-browser", action="store_true", help="start no browser; print the address")

    completion = _command(
        commands,
        "completion",
        completion_command,
        "print a script that completes commands with the Tab key",
        ("Completes commands, options, profiles, runs and parameters."),
        (
            'eval "$(course completion bash)"                            # in this shell',
            "course completion bash >> ~/.bashrc                         # in every new one",
            "course completion zsh > ~/.zfunc/_course                    # zsh, with ~/.zfunc in fpath",
        ),
    )
    completion.add_argument("shell", choices=["bash", "zsh"])
    return parser


def _command(
    commands: Any,
    name: str,
    function: Callable[[argparse.Namespace], int],
    help: str,
    description: str,
    examples: tuple[str, ...],
) -> argparse.ArgumentParser:
    """A subcommand, whose help ends with examples."""
    epilog = "\n  ".join(["example:" if len(examples) == 1 else "examples:", *examples])
    parser = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=function)
    return parser


def sweep_command(options: argparse.Namespace) -> int:
    from helpers.course.sweep import sweep

    return sweep(options)


def list_command(options: argparse.Namespace) -> int:
    from helpers.course.tables import list_runs

    list_runs(options.json)
    return 0


def show_command(options: argparse.Namespace) -> int:
    from helpers.course.tables import show_run
    from helpers.runs.info import is_sweep

    if is_sweep(runs_dir() / options.run):
        from helpers.course.sweep import print_results

        print_results(options.run, options.json)
    else:
        show_run(options.run, options.json)
    return 0


def report_command(options: argparse.Namespace) -> int:
    from helpers.runs.report.page import report_runs

    return report_runs(options.runs, options.output, options.open, options.json)


def clean_command(options: argparse.Namespace) -> int:
    from helpers.course.clean import clean_runs

    return clean_runs(options.runs, options.older_than, options.yes)


def serve_command(options: argparse.Namespace) -> int:
    from helpers.course.serve import serve_class

    return serve_class(options)


def lab_command(options: argparse.Namespace) -> int:
    from helpers.course.lab import start_lab

    return start_lab(options.notebook, options.port, options.no_browser, options.passed_on)


def completion_command(options: argparse.Namespace) -> int:
    from helpers.course.completion import SCRIPTS

    print(SCRIPTS[options.shell], end="")
    return 0


def check_machine(options: argparse.Namespace) -> int:
    from helpers.course.check import check_environment, print_report

    return 0 if print_report(check_environment(options.backend)) else 1


def stub_command(options: argparse.Namespace) -> int:
    from helpers.train.backend import running_stub, stop_stub, stub_state_dir

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
    """Run stages of a run, print a line for each and a table at the end; or, with --dry-run, say what that would be."""
    if options.json and not options.dry_run:
        raise UsageError(
            "--json goes with --dry-run", "add --dry-run, or see a finished run: course show --json"
        )
    if options.like and (options.resume or options.first):
        raise UsageError(
            "--like starts a new run, --resume and --from go on with one", "leave one of them out"
        )
    known = notebook_parameters()
    chosen, notes = chosen_parameters(options), []
    check_parameters(chosen, known)
    if options.like:
        from helpers.runs.like import parameters_like

        like = readable_run(options.like)
        chosen, notes = parameters_like(like.manifest, known, chosen)
        check_parameters(chosen, known)
    run, stages = _choose_run(options)
    if run:
        _check_used(chosen, run, stages, known)
    parameters = (
        run.manifest.get("parameters", {}) if run else {}
    ) | chosen  # an existing run keeps what it was started with
    if "evaluate" in stages:
        check_base_run(parameters, known)
    if options.dry_run:
        from helpers.course.dry_run import print_plan

        print_plan(run, options.name, stages, parameters, known, notes, options.json)
        return 0
    for note in notes:
        print(f"note: {note}", flush=True)
    run = run or new_run(options.name)
    with run.in_use():
        run.update(parameters=parameters, **({"like": like.name} if options.like else {}))
        status = run_stages(run, stages, parameters, known)
    if status == 0:  # after the lock is let go: the page says whether the run is under way
        from helpers.runs.report.page import write_report

        print(f"a page to read or to send: {_short(write_report(run))}")
    return status


def _check_used(
    chosen: dict[str, Any], run: Run, stages: list[str], known: dict[str, dict[str, Any]]
) -> None:
    """Refuse a setting that only stages take which are done and would not run again: the run would carry it and not have used it."""
    for name, value in chosen.items():
        takers = [stage for stage in STAGES if name in known[stage]]
        entries = [run.manifest["stages"].get(stage, {}) for stage in takers]
        to_come = any(
            stage in stages or entry.get("status") != "done" for stage, entry in zip(takers, entries)
        )
        if not to_come and any(entry.get("parameters", {}).get(name) != value for entry in entries):
            raise UsageError(
                f"{name}={value} belongs to {STAGES[takers[0]][0]}, which would not run again in run {run.name}",
                f"add --from {takers[0]}, or start another run: course run --like {run.name} -p {name}=…",
            )


def run_stages(
    run: Run, stages: list[str], parameters: dict[str, Any], known: dict[str, dict[str, Any]]
) -> int:
    """Execute the notebooks of these stages, one after the other. Returns the exit status."""
    print(f"run {run.name} → {_short(run.path)}", flush=True)
    started = time.monotonic()
    for number, stage in enumerate(stages, start=1):
        own = {name: value for name, value in parameters.items() if name in known[stage]}
        status = run_stage(run, stage, own, f"[{number}/{len(stages)}]")
        if status:
            print(
                f"\nWhat was done is kept. To go on from here:  course run --resume --name {run.name}",
                file=sys.stderr,
            )
            return status
    print_summary(run, stages, time.monotonic() - started)
    return 0


def _choose_run(options: argparse.Namespace) -> tuple[Run | None, list[str]]:
    """The run to go on with, None for a new one, and the stages to do. Makes nothing."""
    stages = list(STAGES)
    if options.resume or options.first:
        run = Run(readable_run(options.name or "latest").path)
        done = run.manifest["stages"]
        first = options.first or next((s for s in stages if done.get(s, {}).get("status") != "done"), None)
        if first is None:
            raise RunError(
                f"run {run.name} is complete",
                "leave out --resume to start another, or name a stage with --from",
            )
    else:
        check_new_run(options.name)
        run, first = None, stages[0]
    last = options.last or stages[-1]
    chosen = stages[stages.index(first) : stages.index(last) + 1]
    if not chosen:
        raise UsageError(
            f"stage {first} comes after {last}", "--until names the same stage as --from, or a later one"
        )
    for needed in STAGES[chosen[0]][1] if run else ():
        run.stage(needed)
    return run, chosen


def run_stage(run: Run, stage: str, parameters: dict[str, Any], label: str) -> int:
    """Execute one notebook into run/notebooks. Returns 0, or the exit status after printing what went wrong."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    notebook = STAGES[stage][0]
    folder = run.file("notebooks")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(
            f"can't write {folder}: {error.strerror}",
            "choose a folder you may write to: COURSE_RUNS_DIR=/some/folder",
        ) from error
    os.environ.setdefault(
        "JUPYTER_PREFER_ENV_PATH", "1"
    )  # the kernel of this environment, not one of the same name in HOME
    _say_a_dead_kernel_once()
    line = ProgressLine(f"{label} {notebook}")
    try:
        papermill.execute_notebook(
            NOTEBOOKS / f"{notebook}.ipynb",
            folder / f"{notebook}.ipynb",
            parameters={"run_name": run.name, **parameters},
            cwd=NOTEBOOKS,
            progress_bar=False,
            stdout_file=line,
            kernel_name="python3",
            extra_arguments=[
                "--IPKernelApp.log_level=50"
            ],  # its own log says nothing to a user; cells report by themselves
            config=Config({"KernelManager": {"transport_encryption": "auto"}}),
        )  # other users of this machine can't listen
    except PapermillExecutionError as error:
        line.end("FAILED")
        _explain(error, folder / f"{notebook}.ipynb")
        return 1
    except DeadKernelError:
        line.end("FAILED")
        print(
            f"course: the Python process of {notebook} ended in mid-work: killed, or out of memory\n→ close other programs, and run it again",
            file=sys.stderr,
        )
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


def _say_a_dead_kernel_once() -> None:
    """After Ctrl-C nbclient stops its kernel while a task of its own still watches it. That task then fails with nobody
    waiting for it, and asyncio would print a traceback. Where somebody does wait, `run_stage` says what happened."""
    import logging

    from jupyter_core.utils import ensure_event_loop
    from nbclient.exceptions import DeadKernelError

    def handle(loop: Any, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), DeadKernelError):
            loop.default_exception_handler(context)

    ensure_event_loop().set_exception_handler(handle)
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # its errors are raised, too


def _explain(error: Any, output: Path) -> None:
    """A user's mistake in its own words; anything else with its traceback."""
    if (
        error.ename == "AssertionError" and error.evalue
    ):  # a check of the notebook itself, whose words say what it found
        print(error.evalue, file=sys.stderr)
    elif error.ename in OWN_ERRORS:
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
        elif (
            lines and not self._terminal and now - max(self._shown, self._started) > 30 and "%|" in lines[-1]
        ):
            self._shown = now
            print(f"    {lines[-1].strip()}", flush=True)

    def flush(self) -> None:
        sys.stdout.flush()

    def _draw(self, text: str) -> None:
        width = os.get_terminal_size().columns
        print(
            "\r"
            + f"{self.label:26} {clock(time.monotonic() - self._started):>6}  {text}"[: width - 1].ljust(
                width - 1
            ),
            end="",
            flush=True,
        )

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
    rows += [
        (stage, clock(entry["seconds"]), entry["summary"], entry["artefacts"][0])
        for stage, entry in entries.items()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    print()
    for number, row in enumerate(rows):
        print(
            "  ".join(
                cell.rjust(w) if i == 1 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths))
            ).rstrip()
        )
        if number == 0:
            print("  ".join("─" * w for w in widths))
    work: dict[str, float] = {}
    for entry in entries.values():
        for kind, spent in entry["work_seconds"].items():
            work[kind] = work.get(kind, 0.0) + spent
    within = sum(entry["seconds"] for entry in entries.values())
    spans = [f"{kind} {clock(spent)}" for kind, spent in work.items()]
    print(f"\n{clock(seconds)} in all: {', '.join(spans)}")
    rest = seconds - sum(work.values())
    print(
        f"the rest {clock(rest)}, {rest / seconds:.0%}: within the stages {clock(max(0, within - sum(work.values())))} (imports, model loading, figures), "
        f"around them {clock(max(0, seconds - within))} (kernel starts, first cells, exercises)"
    )
    print(f"everything is in {_short(run.path)}; the executed notebooks are in its notebooks/ folder")


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
