"""How long many short records take to load and to split, and the memory that they need.

    .venv/bin/python tests/bench_data.py 1000000

Makes a `.jsonl` file of records of about 14 words, and then does what notebook 01 does: load, split, search
the parts for leaks, save. Prints a line for each, with the highest resident memory until then.
"""

import argparse
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.data import load_data, split_data
from helpers.data.conversation import conversation_record

WORDS = [a + b + c for a in "bdfgklmnprstvz" for b in "aeiou" for c in ("l", "n", "r", "st", "nd", "m")]


def write_records(path: Path, count: int, turns: int) -> None:
    """Records of a class; with several turns, conversations below one system message."""
    rng = random.Random(0)

    def said() -> str:
        return f"{' '.join(rng.choices(WORDS, k=12))} {rng.randrange(1000)}?"

    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            record: dict[str, Any] = {"instruction": said(), "output": f"class {number % 7}"}
            if turns > 1:
                talk = [
                    ("user", said()) if place % 2 == 0 else ("assistant", said())
                    for place in range(2 * turns)
                ]
                messages: list[Any] = [{"role": role, "content": text} for role, text in talk]
                record = conversation_record([{"role": "system", "content": "Answer briefly."}, *messages])
            file.write(json.dumps(record) + "\n")


def timed(name: str, action: Callable[[], Any]) -> Any:
    started = time.perf_counter()
    result = action()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name:6} {time.perf_counter() - started:6.1f} s   {peak:.2f} GiB", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, help="records")
    parser.add_argument("--turns", type=int, default=1, help="exchanges in each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "records.jsonl")
        write_records(path, options.count, options.turns)
        data = timed("load", lambda: load_data(str(path)))
        split = timed("split", lambda: split_data(data.records))
        timed("leaks", split.count_leaks)
        timed("save", lambda: split.save(Path(folder, "split")))


if __name__ == "__main__":
    main()
