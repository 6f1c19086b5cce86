"""Made-up data for tests of tasks: bookings in English to be read into JSON, and reviews in Chinese to be sorted."""

import csv
import itertools
import json
import random
from pathlib import Path

CITIES, DAYS = ["Rome", "Paris", "Oslo", "Berlin", "Madrid"], ["Monday", "Friday", "Sunday"]
ASKED = ["A table for {people} in {city} on {day}.", "On {day} we are in {city}, {people} of us.", "{people} people, {city}, this {day}."]

THINGS = ["手机", "鞋子", "书包", "耳机", "杯子", "雨伞"]
REVIEWS = {"好评": ["这个{}很好用，我很喜欢", "{}质量不错，值得买", "非常满意，{}很漂亮", "{}到得快，包装也好"],
           "差评": ["这个{}太差了，我要退货", "{}用两天就坏了", "非常失望，{}有异味", "{}到得慢，盒子也破了"]}


def bookings(path: Path, count: int = 64) -> Path:
    """JSON Lines with a text and an object: columns `mail` and `booking`."""
    draw = random.Random(1)
    every = draw.sample(list(itertools.product(ASKED, CITIES, DAYS, range(2, 8))), count)
    rows = [{"mail": asked.format(city=city, day=day, people=people), "booking": {"city": city, "day": day, "people": people}}
            for asked, city, day, people in every]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def reviews(path: Path) -> Path:
    """A CSV as Excel saves it, with a byte order mark and a semicolon: columns `编号`, `评价原文` and `情绪`; 48 rows of two labels."""
    rows = [(text.format(thing), label) for label, texts in REVIEWS.items() for text in texts for thing in THINGS]
    random.Random(1).shuffle(rows)
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=";").writerows([("编号", "评价原文", "情绪"), *((n, *row) for n, row in enumerate(rows, start=1))])
    return path
