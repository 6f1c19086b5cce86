"""Make reviews.csv and bookings.jsonl: small data sets of two other tasks, in forms that people's own data
have.

python data/make_reviews_and_bookings.py            # write both; the same bytes each time
python data/make_reviews_and_bookings.py --check    # compare the committed files with what this script makes
"""

import argparse
import csv
import io
import itertools
import json
import random
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
SEED = 1

CITIES, DAYS = ["Rome", "Paris", "Oslo", "Berlin", "Madrid"], ["Monday", "Friday", "Sunday"]
ASKED = [
    "A table for {people} in {city} on {day}.",
    "On {day} we are in {city}, {people} of us.",
    "{people} people, {city}, this {day}.",
]

THINGS = ["手机", "鞋子", "书包", "耳机", "杯子", "雨伞"]
REVIEWS = {
    "好评": ["这个{}很好用，我很喜欢", "{}质量不错，值得买", "非常满意，{}很漂亮", "{}到得快，包装也好"],
    "差评": ["这个{}太差了，我要退货", "{}用两天就坏了", "非常失望，{}有异味", "{}到得慢，盒子也破了"],
}


def bookings(count: int = 64) -> bytes:
    """JSON Lines with a text and an object: columns `mail` and `booking`."""
    every = random.Random(SEED).sample(list(itertools.product(ASKED, CITIES, DAYS, range(2, 8))), count)
    rows = [
        {
            "mail": asked.format(city=city, day=day, people=people),
            "booking": {"city": city, "day": day, "people": people},
        }
        for asked, city, day, people in every
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def reviews() -> bytes:
    """A CSV as Excel saves it, with a byte order mark and semicolons: `编号`, `评价原文` and `情绪`."""
    rows = [
        (text.format(thing), label) for label, texts in REVIEWS.items() for text in texts for thing in THINGS
    ]
    random.Random(SEED).shuffle(rows)
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=";").writerows(
        [("编号", "评价原文", "情绪"), *((n, *row) for n, row in enumerate(rows, start=1))]
    )
    return file.getvalue().encode("utf-8-sig")


FILES = {"reviews.csv": reviews, "bookings.jsonl": bookings}


def check(folder: Path = FOLDER) -> list[str]:
    """What is wrong with the files; empty when they are what this script makes."""
    return [
        f"{name} is not what make_reviews_and_bookings.py makes"
        for name, make in FILES.items()
        if (folder / name).read_bytes() != make()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="check the committed files, write nothing")
    if parser.parse_args().check:
        found = check()
        print("\n".join(found) or f"{' and '.join(FILES)} are what the script makes")
        return 1 if found else 0
    for name, make in FILES.items():
        (FOLDER / name).write_bytes(make())
        print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
