"""What a server is doing, as a page for browsers, which refreshes itself, and as text for terminals."""

import json
import urllib.error
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from helpers import net
from helpers.errors import BackendError
from helpers.stub_folder import running_server
from helpers.stub_tinker.words import RULES, STATES, shown, span
from helpers.text import plural, table

if TYPE_CHECKING:
    from jinja2 import Template

TOKEN_FILE = "status_token"  # lets who may read the state folder see every client
NOTHING = "–"
LEARNER = {
    "name": "learner",
    "state": "state",
    "where": "notebook",
    "step": "step",
    "loss": "loss",
    "score": "validation",
    "why": "",
}
COLUMNS = {  # of the table of sessions
    "name": "session",
    "training_clients": "training",
    "samplers": "samplers",
    "queued": "queue",
    "tokens_trained": "tokens trained",
    "trained_per_second": "trained/s",
    "tokens_sampled": "tokens sampled",
    "sampled_per_second": "sampled/s",
    "memory_mib": "MiB",
}


def _cell(row: dict, key: str) -> str:
    value = row[key]
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else shown(str(value))


def _facts(status: dict) -> list[tuple[str, str]]:
    def tokens(done: str) -> str:
        rate = status[f"{done}_per_second"]
        return f"{status[f'tokens_{done}']:,} tokens ({rate:,.1f}/s in the last minute)"

    stopping = " (stopping)" if status["status"] == "stopping" else ""
    held = f"{status['training_clients']} training clients, {status['samplers']} samplers"
    return [
        ("up", span(status["uptime_seconds"]) + stopping),
        ("computes on", f"{status['device']}, {status['precision']}"),
        ("memory", f"{status['memory_mib']:,} MiB"),
        ("sessions", f"{status['sessions']} ({held})"),
        ("queue", f"{status['queued']:,}"),
        ("trained", tokens("trained")),
        ("sampled", tokens("sampled")),
        ("base models", ", ".join(status["base_models"])),
    ]


def _notes(status: dict) -> list[str]:
    """Sentences about all learners together."""
    notes = []
    if told := status["class"]:
        notes.append(_capacity(told))
    if refused := status["refused_keys"]:
        requests = plural(refused["count"], "request")
        notes.append(
            f"{requests} came with a missing or wrong key, the last {span(refused['seconds_ago'])} ago from "
            f"{shown(refused['from'])}."
        )
    return notes


def _capacity(told: dict) -> str:
    class_ = f"{told['learners']} learners at once"
    if told["minutes"] is None:
        return (
            f"How long {class_} take for {told['notebook']} is said here once the server has worked a little."
        )
    speeds = f"{told['trained_per_second']:,} tokens/s trained, {told['sampled_per_second']:,} sampled"
    return (
        f"{class_} take about {max(1, round(told['minutes']))} min for {told['notebook']} on "
        f"{plural(told['cores'], 'core')}, at the speed seen here so far: {speeds}."
    )


def _learner(row: dict) -> dict[str, str]:
    """A learner's row as text, by the names of `LEARNER`."""
    step, steps = row["step"], row["steps"]
    where = [row["notebook"]] + [f"({row['stage']})"] * (row["stage"] not in row["notebook"])
    scored = row["correct"] is not None and row["total"]
    return {
        "name": row["name"],
        "state": row["state"],
        "where": " ".join(where) or NOTHING,
        "step": f"{step:,} of {steps:,}" if steps else f"{step:,}" if step else NOTHING,
        "loss": NOTHING if row["loss"] is None else f"{row['loss']:.3f}",
        "score": f"{row['correct']}/{row['total']}" if scored else NOTHING,
        "why": row["why"],
    }


def text(status: dict, url: str) -> str:
    """For a terminal."""
    lines = [f"stub Tinker backend on {url}"] + [f"  {name:12} {value}" for name, value in _facts(status)]
    lines += [f"  {note}" for note in _notes(status)]
    if status["learners"]:
        rows = [list(_learner(row).values()) for row in status["learners"]]
        lines += ["", table([list(LEARNER.values()), *rows], right={3, 4, 5})]
    if status["clients"]:
        rows = [[_cell(row, key) for key in COLUMNS] for row in status["clients"]]
        lines += ["", table([list(COLUMNS.values()), *rows], right=set(range(1, len(COLUMNS))))]
    return "\n".join(lines)


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("helpers.stub_tinker"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("status.html.jinja")


def page(status: dict) -> str:
    """For a browser, phones included. Loads nothing from elsewhere, and all text of clients is escaped."""
    return _template().render(
        title="Class" if status["class"] else "Stub Tinker backend",
        counts=[(s, n) for s in STATES if (n := sum(row["state"] == s for row in status["learners"]))],
        notes=_notes(status),
        facts=_facts(status),
        learners=[(_learner(row), row) for row in status["learners"]],
        sessions=[[_cell(row, key) for key in COLUMNS] for row in status["clients"]],
        session_head=list(COLUMNS.values()),
        rules=RULES,
        nothing=NOTHING,
    )


def fetch(url: str, key: str | None = None) -> dict:
    """The status of the server at `url`.

    Raises:
        BackendError: nobody answers there, or the key is refused.
    """
    headers = {"Accept": "application/json", **({"X-API-Key": key} if key else {})}
    try:
        status = json.loads(net.get(url, 10, headers))
        if status["service"] != "stub_tinker":
            raise ValueError("another service")
        return status
    except urllib.error.HTTPError as error:
        fix = "give the key that the server was started with: --api-key or --api-key-file"
        raise BackendError(
            f"{url} answered {error.code} {error.reason}", fix if error.code == 401 else ""
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackendError(
            f"no stub Tinker backend answers at {url}: {error}", "start one: python -m helpers.stub_tinker"
        ) from error


def of_state_dir(folder: Path) -> str:
    """The status, as text and with every client in it, of the server that uses this state folder.

    Raises:
        BackendError: none does, or it does not answer.
    """
    server = running_server(folder)
    if server is None:
        raise BackendError(
            f"no stub Tinker backend of yours runs with its state in {folder}",
            "name its folder with --state-dir, or its address with --url and a key with --api-key",
        )
    return text(fetch(server["url"], (folder / TOKEN_FILE).read_text(encoding="utf-8")), server["url"])
