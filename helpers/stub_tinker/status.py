"""What the server is doing, for programs (JSON), browsers (one page that refreshes itself) and terminals (text)."""

import html
import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch

from helpers.errors import BackendError

TOKEN_FILE = "status_token"  # lets who may read the state folder see every client
COLUMNS = {
    "name": "client",
    "training_clients": "training",
    "samplers": "samplers",
    "queued": "queue",
    "tokens_trained": "tokens trained",
    "trained_per_second": "trained/s",
    "tokens_sampled": "tokens sampled",
    "sampled_per_second": "sampled/s",
    "memory_mib": "MiB",
}


def snapshot(service: Any, started: float, owner: str | None) -> dict:
    """Totals of the server, and a row for each client.

    Args:
        started: `time.monotonic()` at the start of the server.
        owner: whose clients to name; None for all. Those of others are counted in one row.
    """
    own, others = [], []
    for row in _rows(service):
        (own if row.pop("owner") == owner or owner is None else others).append(row)
    if others:
        summed = {key: sum(row[key] for row in others) for key in COLUMNS if key != "name"}
        own.append({"session": None, "name": f"{len(others)} of other keys", **summed})
    trained, sampled = service.total.rates()
    totals = {"trained_per_second": round(trained, 1), "sampled_per_second": round(sampled, 1)}
    return service.status() | totals | {"uptime_seconds": int(time.monotonic() - started), "clients": own}


def _rows(service: Any) -> list[dict]:
    usage = dict(service.usage)
    queued = service.engine.queued_by_session()
    rows = []
    for session_id, session in list(service.sessions.items()):
        clients = [c for c in list(service.clients.values()) if c.session == session_id]
        samplers = [s for s in list(service.samplers.values()) if s.session == session_id]
        used = usage.get(session_id)
        trained, sampled = used.rates() if used else (0.0, 0.0)
        rows.append(
            {
                "owner": session.owner,
                "session": session_id,
                "name": session.display_name or session_id[:8],
                "training_clients": len(clients),
                "samplers": len(samplers),
                "queued": queued[session_id],
                "requests": used.requests if used else 0,
                "tokens_trained": used.tokens_trained if used else 0,
                "trained_per_second": round(trained, 1),
                "tokens_sampled": used.tokens_sampled if used else 0,
                "sampled_per_second": round(sampled, 1),
                "memory_mib": round(
                    tensor_bytes([*(c.state for c in clients), *(s.adapter for s in samplers)]) / 2**20, 1
                ),
            }
        )
    return rows


def tensor_bytes(objects: list[Any]) -> int:
    """Bytes of all tensors that these objects hold, each storage once."""
    storages: dict[int, int] = {}
    seen: set[int] = set()
    left = list(objects)
    while left:
        value = left.pop()
        if (
            id(value) in seen
            or value is None
            or isinstance(value, str | bytes | int | float | torch.nn.Module)
        ):
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor) and value.is_mkldnn:  # oneDNN's own layout, which tells no storage
            storages[id(value)] = value.numel() * value.element_size()
        elif isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            left.append(value.grad if value.is_leaf else None)
        elif isinstance(value, dict):
            left.extend(list(value.values()))
        elif isinstance(value, list | tuple):
            left.extend(value)
        elif hasattr(value, "__dict__") and type(value).__module__.startswith("helpers.stub_tinker"):
            left.extend(list(vars(value).values()))
    return sum(storages.values())


def _cell(row: dict, key: str) -> str:
    value = row[key]
    return (
        f"{value:,.1f}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )


def _duration(seconds: int) -> str:
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s"


def _facts(status: dict) -> list[tuple[str, str]]:
    return [
        (
            "up",
            _duration(status["uptime_seconds"]) + (" (stopping)" if status["status"] == "stopping" else ""),
        ),
        ("computes on", f"{status['device']}, {status['precision']}"),
        ("memory", f"{status['memory_mib']:,} MiB"),
        (
            "clients",
            f"{status['sessions']} ({status['training_clients']} training clients, {status['samplers']} samplers)",
        ),
        ("queue", f"{status['queued']:,}"),
        (
            "trained",
            f"{status['tokens_trained']:,} tokens ({status['trained_per_second']:,.1f}/s in the last minute)",
        ),
        (
            "sampled",
            f"{status['tokens_sampled']:,} tokens ({status['sampled_per_second']:,.1f}/s in the last minute)",
        ),
        ("base models", ", ".join(status["base_models"])),
    ]


def text(status: dict, url: str) -> str:
    """For a terminal."""
    lines = [f"stub Tinker backend on {url}"] + [f"  {name:12} {value}" for name, value in _facts(status)]
    if status["clients"]:
        table = [list(COLUMNS.values())] + [
            [_printable(_cell(row, key)) for key in COLUMNS] for row in status["clients"]
        ]
        widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
        lines += [""] + [
            "  "
            + "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))
            )
            for row in table
        ]
    return "\n".join(lines)


def _printable(name: str) -> str:
    """Without control characters, which a client could send to a terminal, and short."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    return name if len(name) <= 40 else name[:39] + "…"


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="5"><title>stub Tinker backend</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 70rem; padding: 0 1rem }}
h1 {{ font-size: 1.3rem }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem }}
dt {{ opacity: .7 }} dd {{ margin: 0; overflow-wrap: anywhere }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }}
th, td {{ padding: .3rem .6rem; border-bottom: 1px solid color-mix(in srgb, currentColor 25%, transparent); text-align: right; vertical-align: bottom }}
td {{ white-space: nowrap }}
th:first-child, td:first-child {{ text-align: left; max-width: 18rem; overflow: hidden; text-overflow: ellipsis }}
@media (max-width: 40rem) {{ body {{ font-size: 14px; padding: 0 .5rem }} th, td {{ padding: .3rem }} td:first-child {{ max-width: 6rem }} }}
</style></head><body>
<h1>stub Tinker backend</h1>
<dl>{facts}</dl>
{table}
</body></html>
"""


def page(status: dict) -> str:
    """For a browser, phones included. Loads nothing from elsewhere."""
    facts = "".join(f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in _facts(status))
    head = "".join(f"<th>{name}</th>" for name in COLUMNS.values())
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_cell(row, key))}</td>" for key in COLUMNS) + "</tr>"
        for row in status["clients"]
    )
    table = (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        if rows
        else "<p>No client now.</p>"
    )
    return PAGE.format(facts=facts, table=table)


def fetch(url: str, key: str | None = None) -> dict:
    """The status of the server at `url`.

    Raises:
        BackendError: nobody answers there, or the key is refused.
    """
    request = urllib.request.Request(
        url, headers={"Accept": "application/json", **({"X-API-Key": key} if key else {})}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            status = json.load(answer)
        if status["service"] != "stub_tinker":
            raise ValueError("another service")
        return status
    except urllib.error.HTTPError as error:
        fix = (
            "give the key that the server was started with: --api-key or --api-key-file"
            if error.code == 401
            else ""
        )
        raise BackendError(f"{url} answered {error.code} {error.reason}", fix) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackendError(
            f"no stub Tinker backend answers at {url}: {error}", "start one: python -m helpers.stub_tinker"
        ) from error


def of_state_dir(folder: Path, key: str | None = None) -> str:
    """The status, as text, of the server that uses this state folder.

    Raises:
        BackendError: none does, or it does not answer.
    """
    try:
        url = json.loads((folder / "server.json").read_text(encoding="utf-8"))["url"]
    except (OSError, ValueError, KeyError) as error:
        raise BackendError(
            f"no stub Tinker backend runs with its state in {folder}",
            "name its folder with --state-dir, or its address with --url",
        ) from error
    token = folder / TOKEN_FILE
    try:
        key = key or token.read_text(encoding="utf-8")
    except OSError:  # another user's server: an open one needs no token
        key = None
    return text(fetch(url, key), url)
