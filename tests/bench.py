"""`make bench`: the stub Tinker backend through the real SDK, beside what else one would run on the same
machine.

    make bench                                  every part, 20 to 27 minutes on two quiet cores
    make bench ARGS="--quick"                   small sizes, to see that it works; its numbers mean nothing
    make bench ARGS="--only sampling wire"      some parts; the others keep the numbers they have
    make bench ARGS="--only --readme"           measure nothing; write the table into the READMEs

Contestants take turns (ABAB) on the same work, and medians are reported. Numbers go to benchmarks.json, part
by part, with the machine they were taken on; those of quick runs to benchmarks-quick.json. Ends with status 1
where a bound does not hold.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime

os.environ.setdefault("TQDM_DISABLE", "1")

from bench_growth import evaluation, growth, wire
from bench_loop import loop
from bench_profile import profile
from bench_speed import sampling, training
from bench_tools import MARKS, MINUTES, Bench, machine, say, serve_vllm

import helpers  # noqa: F401  (sets how idle threads wait, before torch is loaded)
from helpers.files import read_json, write_json, write_text
from helpers.paths import ROOT

PARTS = {
    "training": training,
    "sampling": sampling,
    "profile": profile,
    "wire": wire,
    "growth": growth,
    "evaluation": evaluation,
    "loop": loop,
}
READMES = {ROOT / "helpers" / "stub_tinker" / "README.md": tuple(PARTS)}


def markdown(results: dict, names: tuple[str, ...] = tuple(PARTS)) -> str:
    """Where and how it was measured, and a table, aligned for a terminal too."""
    m, parts = results["machine"], [results["parts"][name] for name in names if name in results["parts"]]
    rows = [["what", "stub", "beside it", "ratio"], *(row for part in parts for row in part["rows"])]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    days = " and ".join(sorted({part["date"][:10] for part in parts}))
    where = m["gpu"] or f"{m['cpu']}, {m['cores']} cores ({', '.join(m['features'])})"
    head = (
        f"From `make bench` of {days} on {where}, torch {m['torch']}, {m['threads']} threads. Both sides of "
        "a row took turns on the same work; medians. Ratios with × are speeds: above 1 the stub is faster."
    )
    return "\n".join([head, "", *lines])


def write_readmes(results: dict) -> None:
    for path, names in READMES.items():
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if [text.count(mark) for mark in MARKS] != [1, 1]:
            say(f"{path.relative_to(ROOT)}: no marks {' … '.join(MARKS)}, left as it is")
            continue
        before, after = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
        write_text(path, f"{before}{MARKS[0]}\n{markdown(results, names)}\n{MARKS[1]}{after}")
        say(f"{path.relative_to(ROOT)}: table written")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument(
        "--only",
        nargs="*",
        choices=list(PARTS),
        metavar="PART",
        help=f"some of {', '.join(PARTS)}; none: only print",
    )
    parser.add_argument(
        "--readme", action="store_true", help=f"write the table between {' and '.join(MARKS)} in the READMEs"
    )
    parser.add_argument("--vllm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.vllm:
        serve_vllm(options.vllm)
        return 0
    if options.quick and options.readme:
        parser.error("numbers of --quick mean nothing: they don't go into a README")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end with this process
    path, here = ROOT / f"benchmarks{'-quick' * options.quick}.json", machine()
    results = read_json(path) if path.exists() else {"machine": here, "parts": {}}
    chosen = list(PARTS) if options.only is None else options.only
    if chosen and results["machine"] != here:
        results = {
            "machine": here,
            "parts": {},
        }  # numbers of another machine or other packages don't stand beside these
    bench = Bench(options.quick) if chosen else None
    for number, name in enumerate(chosen, 1):
        left = (
            ""
            if options.quick
            else f", about {sum(MINUTES[later] for later in chosen[number - 1 :]):.0f} minutes left"
        )
        say(f"part {number} of {len(chosen)}, {name}{left}")
        load, start = os.getloadavg()[0], time.perf_counter()
        part = PARTS[name](bench)
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()
        date = datetime.now(UTC).isoformat(timespec="seconds")
        results["parts"][name] = {
            "date": date,
            "commit": commit,
            "seconds": round(time.perf_counter() - start),
            "load_before": round(load, 2),
            **part,
        }
        write_json(path, results)
    print(f"\n{markdown(results)}\n\nAll numbers are in {path.name}.\n", flush=True)
    if options.readme:
        write_readmes(results)
    broken = [f"{name}: {what}" for name, part in results["parts"].items() for what in part["broken"]]
    print("".join(f"out of bounds: {what}\n" for what in broken), end="")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
