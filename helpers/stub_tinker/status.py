"""What a server is doing, as a page for browsers, which refreshes itself, and as text for terminals."""

import html
import json
import urllib.error
from pathlib import Path

from helpers import net
from helpers.errors import BackendError
from helpers.stub_folder import running_server

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


def _cell(row: dict, key: str) -> str:
    value = row[key]
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _duration(seconds: int) -> str:
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s"


def _facts(status: dict) -> list[tuple[str, str]]:
    def tokens(done: str) -> str:
        rate = status[f"{done}_per_second"]
        return f"{status[f'tokens_{done}']:,} tokens ({rate:,.1f}/s in the last minute)"

    stopping = " (stopping)" if status["status"] == "stopping" else ""
    held = f"{status['training_clients']} training clients, {status['samplers']} samplers"
    return [
        ("up", _duration(status["uptime_seconds"]) + stopping),
        ("computes on", f"{status['device']}, {status['precision']}"),
        ("memory", f"{status['memory_mib']:,} MiB"),
        ("clients", f"{status['sessions']} ({held})"),
        ("queue", f"{status['queued']:,}"),
        ("trained", tokens("trained")),
        ("sampled", tokens("sampled")),
        ("base models", ", ".join(status["base_models"])),
    ]


def text(status: dict, url: str) -> str:
    """For a terminal."""
    lines = [f"stub Tinker backend on {url}"] + [f"  {name:12} {value}" for name, value in _facts(status)]
    if status["clients"]:
        table = [list(COLUMNS.values())]
        table += [[_printable(_cell(row, key)) for key in COLUMNS] for row in status["clients"]]
        widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
        lines.append("")
        for name, *numbers in table:
            right = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
            lines.append("  " + "  ".join([name.ljust(widths[0]), *right]))
    return "\n".join(lines)


def _printable(name: str) -> str:
    """Without control characters, which a client could send to a terminal, and short."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    return name if len(name) <= 40 else name[:39] + "…"


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="5"><title>stub Tinker backend</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 70rem; padding: 0 1rem }}
h1 {{ font-size: 1.3rem }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem }}
dt {{ opacity: .7 }} dd {{ margin: 0; overflow-wrap: anywhere }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }}
th, td {{ padding: .3rem .6rem; border-bottom: 1px solid color-mix(in srgb, currentColor 25%, transparent) }}
th, td {{ text-align: right; vertical-align: bottom }}
td {{ white-space: nowrap }}
th:first-child, td:first-child {{ text-align: left }}
th:first-child, td:first-child {{ max-width: 18rem; overflow: hidden; text-overflow: ellipsis }}
@media (max-width: 40rem) {{
  body {{ font-size: 14px; padding: 0 .5rem }}
  th, td {{ padding: .3rem }}
  td:first-child {{ max-width: 6rem }}
}}
</style></head><body>
<h1>stub Tinker backend</h1>
<dl>{facts}</dl>
{table}
</body></html>
"""


def page(status: dict) -> str:
    """For a browser, phones included. Loads nothing from elsewhere."""
    facts = "".join(f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in _facts(status))
    if not status["clients"]:
        return PAGE.format(facts=facts, table="<p>No client now.</p>")
    head = "".join(f"<th>{name}</th>" for name in COLUMNS.values())
    cells = ([f"<td>{html.escape(_cell(row, key))}</td>" for key in COLUMNS] for row in status["clients"])
    rows = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return PAGE.format(facts=facts, table=f'<div class="wide">{table}</div>')


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
