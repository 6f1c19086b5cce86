"""The templates of word problems: 31 functions that draw names, things and numbers, in six categories.

Each returns the question, the given facts (often none) and the steps. Four of them are kept for the test set.
"""

import random

from word_problem_words import CONTAINERS, GOODS, NAMES, PLACES, PRODUCTS, SMALL_THINGS, Problem, template

# shopping


@template("shopping")
def two_kinds(r: random.Random) -> Problem:
    name, (x, y) = r.choice(NAMES), r.sample(GOODS, 2)
    a, p, b, q = r.randint(2, 6), r.randint(2, 9), r.randint(2, 6), r.randint(2, 9)
    text = r.choice(
        [
            f"{name} buys {a} {x} at {p} dollars each and {b} {y} at {q} dollars each. How many dollars is that in all?",
            f"In a shop, {x} cost {p} dollars each and {y} cost {q} dollars each. How many dollars do {a} {x} and {b} {y} "
            "cost?",
        ]
    )
    first, second = (f"{a} * {p}", f"{b} * {q}")
    return Problem(text, [(x, first), (y, second), ("total", f"{a * p} + {b * q}")])


@template("shopping")
def change(r: random.Random) -> Problem:
    name, x = r.choice(NAMES), r.choice(GOODS)
    n, p, paid = r.randint(2, 9), r.randint(2, 9), r.choice([20, 50, 100])
    text = r.choice(
        [
            f"{name} buys {n} {x} at {p} dollars each and pays with {paid} dollars. How many dollars come back?",
            f"One of the {x} costs {p} dollars. {name} takes {n} of them and pays with {paid} dollars. How much is the "
            "change in dollars?",
        ]
    )
    return Problem(text, [("cost", f"{n} * {p}"), ("change", f"{paid} - {n * p}")])


@template("shopping")
def coupon(r: random.Random) -> Problem:
    name, x = r.choice(NAMES), r.choice(GOODS)
    n, p, off = r.randint(3, 9), r.randint(2, 9), r.randint(2, 9)
    text = r.choice(
        [
            f"{name} orders {n} {x} for {p} dollars each. A coupon takes {off} dollars off the bill. How many dollars are "
            "left to pay?",
            f"The price of {x} is {p} dollars each. {name} buys {n} and gets {off} dollars off. What is the bill in "
            "dollars?",
        ]
    )
    return Problem(text, [("price", f"{n} * {p}"), ("bill", f"{n * p} - {off}")])


@template("shopping")
def price_list(r: random.Random) -> Problem:
    name, (x, y, z) = (
        r.choice(NAMES),
        r.sample(["bread", "cheese", "honey", "juice", "rice", "soup", "tea"], 3),
    )
    p, q, s = r.sample(range(2, 10), 3)
    n = r.randint(2, 9)
    text = r.choice(
        [
            f"{name} takes {n} packs of {x} and 1 pack of {y}. How many dollars is that?",
            f"How many dollars do {n} packs of {x} and 1 pack of {y} cost?",
        ]
    )
    facts = [f"{x} {p}", f"{y} {q}", f"{z} {s}"]
    r.shuffle(facts)
    return Problem(
        text, [(x, f"{n} * {p}"), ("total", f"{n * p} + {q}")], f"Dollars a pack: {', '.join(facts)}."
    )


@template("shopping", unseen=True)
def saving_up(r: random.Random) -> Problem:
    name, x = r.choice(NAMES), r.choice(["a bike", "a tent", "a camera", "a guitar"])
    have, e, w = r.randint(5, 30), r.randint(3, 9), r.randint(2, 9)
    text = (
        f"{name} is saving for {x}. There are {have} dollars in the money box, and each week {e} dollars go in. "
        f"How many dollars are in it after {w} weeks?"
    )
    return Problem(text, [("saved", f"{w} * {e}"), ("total", f"{have} + {w * e}")])


# travel


@template("travel")
def on_and_off(r: random.Random) -> Problem:
    vehicle = r.choice(["bus", "tram", "train", "ferry"])
    a, off, on = r.randint(15, 40), r.randint(2, 12), r.randint(2, 15)
    text = r.choice(
        [
            f"A {vehicle} carries {a} people. At a stop {off} get off and {on} get on. How many people are on the "
            f"{vehicle} now?",
            f"There are {a} people on a {vehicle}. Then {off} people leave and {on} new people come in. How many are on "
            "it now?",
        ]
    )
    return Problem(text, [("after leaving", f"{a} - {off}"), ("now", f"{a - off} + {on}")])


@template("travel")
def two_parts(r: random.Random) -> Problem:
    name, place = r.choice(NAMES), r.choice(PLACES)
    v, h, d = r.randint(3, 12), r.randint(2, 6), r.randint(2, 20)
    text = r.choice(
        [
            f"{name} rides {v} km an hour for {h} hours and then {d} km more to reach {place}. How many km is the way?",
            f"On the way to {place}, {name} travels {h} hours at {v} km an hour, then walks another {d} km. How many km is "
            "that in all?",
        ]
    )
    return Problem(text, [("first part", f"{h} * {v}"), ("total", f"{h * v} + {d}")])


@template("travel")
def still_to_go(r: random.Random) -> Problem:
    name, place = r.choice(NAMES), r.choice(PLACES)
    v, h = r.randint(3, 10), r.randint(2, 6)
    left = r.randint(3, 30)
    text = r.choice(
        [
            f"It is {v * h + left} km to {place}. {name} goes {v} km an hour for {h} hours. How many km are left?",
            f"{name} wants to reach {place}, {v * h + left} km away, and has gone {h} hours at {v} km an hour. How many km "
            "remain?",
        ]
    )
    return Problem(text, [("gone", f"{h} * {v}"), ("left", f"{v * h + left} - {h * v}")])


@template("travel")
def there_and_back(r: random.Random) -> Problem:
    name, place = r.choice(NAMES), r.choice(PLACES)
    d, back, n = r.randint(2, 12), r.randint(2, 12), r.randint(2, 5)
    text = r.choice(
        [
            f"The way to {place} is {d} km and the way back is {back} km. {name} goes there and back {n} times. How many "
            "km is that?",
            f"{name} walks {d} km to {place} and takes another road of {back} km home. How many km is that for {n} such "
            "walks?",
        ]
    )
    return Problem(text, [("one trip", f"{d} + {back}"), ("all trips", f"{n} * {d + back}")])


@template("travel", unseen=True)
def empty_seats(r: random.Random) -> Problem:
    c, s, taken = r.randint(3, 9), r.randint(4, 9), r.randint(3, 11)
    text = f"A small train has {c} cars with {s} seats in each car. {taken} seats are taken. How many seats are empty?"
    return Problem(text, [("seats", f"{c} * {s}"), ("empty", f"{c * s} - {taken}")])


# sharing


@template("sharing")
def keep_some_share_rest(r: random.Random) -> Problem:
    name, x = r.choice(NAMES), r.choice(SMALL_THINGS)
    k, each, kept = r.randint(2, 9), r.randint(2, 9), r.randint(2, 9)
    text = r.choice(
        [
            f"{name} has {k * each + kept} {x}, keeps {kept} and shares the rest equally among {k} friends. How many {x} "
            "does each friend get?",
            f"From {k * each + kept} {x}, {name} puts {kept} away. The others go to {k} children in equal parts. How many "
            f"{x} does each child get?",
        ]
    )
    return Problem(text, [("to share", f"{k * each + kept} - {kept}"), ("each", f"{k * each} / {k}")])


@template("sharing")
def put_together(r: random.Random) -> Problem:
    (one, two), x = r.sample(NAMES, 2), r.choice(SMALL_THINGS)
    k, each = r.randint(2, 8), r.randint(3, 9)
    a = r.randint(2, k * each - 2)
    b = k * each - a
    text = r.choice(
        [
            f"{one} brings {a} {x} and {two} brings {b}. They put them together and share them equally among {k} people. "
            f"How many {x} does each person get?",
            f"{one} and {two} have {a} and {b} {x}. All of them are divided into {k} equal parts. How many {x} are in one "
            "part?",
        ]
    )
    return Problem(text, [("together", f"{a} + {b}"), ("each", f"{k * each} / {k}")])


@template("sharing")
def equal_parts(r: random.Random) -> Problem:
    name, x, c = r.choice(NAMES), r.choice(SMALL_THINGS), r.choice(CONTAINERS)
    k, each = r.randint(2, 9), r.randint(2, 10)
    text = r.choice(
        [
            f"{name} puts {k * each} {x} into {k} {c}, the same number in each. How many {x} are in each one?",
            f"There are {k * each} {x} for {k} {c}, and each gets the same number. How many {x} does each one hold?",
        ]
    )
    return Problem(text, [("each", f"{k * each} / {k}")])


@template("sharing")
def packs_for_friends(r: random.Random) -> Problem:
    name, x, c = r.choice(NAMES), r.choice(SMALL_THINGS), r.choice(CONTAINERS)
    packs, n, k = r.choice(
        [
            (p, n, k)
            for p in range(2, 9)
            for n in range(2, 13)
            for k in range(2, 9)
            if p * n % k == 0 and k not in (p, n) and p * n <= 72 and p * n > k
        ]
    )
    text = r.choice(
        [
            f"{name} opens {packs} {c} with {n} {x} in each and shares all of them equally among {k} friends. How many {x} "
            "does each friend get?",
            f"{packs} {c} hold {n} {x} each. {k} friends share all the {x} equally. How many {x} does one friend get?",
        ]
    )
    return Problem(text, [(x, f"{packs} * {n}"), ("each", f"{packs * n} / {k}")])


@template("sharing", unseen=True)
def handed_out(r: random.Random) -> Problem:
    name, x = r.choice(NAMES), r.choice(SMALL_THINGS)
    k, n, left = r.randint(3, 9), r.randint(2, 8), r.randint(2, 15)
    text = (
        f"{name} has {k * n + left} {x} and hands {n} {x} to each of {k} children. How many {x} does {name} still "
        "have?"
    )
    return Problem(text, [("handed out", f"{k} * {n}"), ("left", f"{k * n + left} - {k * n}")])


# time


@template("time")
def pages_left(r: random.Random) -> Problem:
    name = r.choice(NAMES)
    d, n, left = r.randint(3, 12), r.randint(2, 7), r.randint(4, 40)
    text = r.choice(
        [
            f"A book has {d * n + left} pages. {name} reads {d} pages a day for {n} days. How many pages are left?",
            f"{name} reads {d} pages every day. How many pages of a book of {d * n + left} pages are left after {n} days?",
        ]
    )
    return Problem(text, [("read", f"{n} * {d}"), ("left", f"{d * n + left} - {n * d}")])


@template("time")
def practice(r: random.Random) -> Problem:
    name, what = r.choice(NAMES), r.choice(["the piano", "the drums", "chess", "French", "juggling"])
    m, n, extra = r.choice([5, 10, 15, 20]), r.randint(2, 6), r.choice(range(5, 31, 5))
    text = r.choice(
        [
            f"{name} practises {what} for {m} minutes on each of {n} days and {extra} minutes on Sunday. How many minutes "
            "is that in all?",
            f"On {n} days {name} spends {m} minutes a day on {what}, and on Sunday {extra} minutes. How many minutes is "
            "that in all?",
        ]
    )
    return Problem(text, [("days", f"{n} * {m}"), ("total", f"{n * m} + {extra}")])


@template("time")
def timetable(r: random.Random) -> Problem:
    name, (x, y, z) = r.choice(NAMES), r.sample(["maths", "art", "music", "history", "sport", "biology"], 3)
    a, b, c = (r.choice(range(10, 46, 5)) for _ in range(3))
    text = r.choice(
        [
            f"{name} has the three lessons below. How many minutes do they take together?",
            f"How many minutes do all three lessons of {name} take?",
        ]
    )
    return Problem(
        text,
        [("first two", f"{a} + {b}"), ("all", f"{a + b} + {c}")],
        f"{x} {a} minutes, {y} {b} minutes, {z} {c} minutes.",
    )


@template("time")
def ages(r: random.Random) -> Problem:
    one, two = r.sample(NAMES, 2)
    a, older, n = r.randint(4, 30), r.randint(2, 12), r.randint(2, 12)
    text = r.choice(
        [
            f"{one} is {a} years old. {two} is {older} years older. How old will {two} be in {n} years?",
            f"{two} is {older} years older than {one}, who is {a}. What age will {two} have {n} years from now?",
        ]
    )
    return Problem(text, [(f"{two} now", f"{a} + {older}"), ("later", f"{a + older} + {n}")])


@template("time")
def weeks_and_days(r: random.Random) -> Problem:
    name, what = (
        r.choice(NAMES),
        r.choice(["trip", "course", "job", "visit", "holiday", "project", "camp", "show"]),
    )
    w, d, off = r.randint(2, 9), r.randint(2, 6), r.randint(2, 9)
    text = r.choice(
        [
            f"The {what} of {name} takes {w} weeks and {d} days. {off} of these days are free. How many days are not free?",
            f"{name} plans a {what} of {w} weeks and {d} days, with {off} days of rest. How many days are left without the "
            "days of rest?",
        ]
    )
    return Problem(
        text, [("weeks", f"{w} * 7"), ("days", f"{w * 7} + {d}"), ("left", f"{w * 7 + d} - {off}")]
    )


# rates


@template("rates")
def broken_ones(r: random.Random) -> Problem:
    x = r.choice(PRODUCTS)
    n, m, b = r.randint(3, 10), r.randint(3, 9), r.randint(2, 8)
    text = r.choice(
        [
            f"A machine makes {n} {x} a minute. In {m} minutes, {b} of its {x} come out broken. How many good {x} are "
            "there?",
            f"A workshop makes {n} {x} an hour for {m} hours, and {b} of them are broken. How many {x} are good?",
        ]
    )
    return Problem(text, [("made", f"{m} * {n}"), ("good", f"{m * n} - {b}")])


@template("rates")
def two_machines(r: random.Random) -> Problem:
    x = r.choice(PRODUCTS)
    a, b, h = r.randint(2, 8), r.randint(2, 8), r.randint(2, 8)
    text = r.choice(
        [
            f"One machine makes {a} {x} an hour and another makes {b}. How many {x} do both make in {h} hours?",
            f"Two machines work for {h} hours. The first makes {a} {x} an hour, the second {b}. How many {x} is that?",
        ]
    )
    return Problem(text, [("an hour", f"{a} + {b}"), ("all", f"{h} * {a + b}")])


@template("rates")
def wage(r: random.Random) -> Problem:
    name, job = r.choice(NAMES), r.choice(["washing cars", "walking dogs", "painting", "gardening"])
    h, w, bonus, spent = r.randint(2, 8), r.randint(4, 9), r.randint(2, 9), r.randint(2, 9)
    text = r.choice(
        [
            f"{name} works {h} hours for {w} dollars an hour and gets a bonus of {bonus} dollars, then spends {spent} "
            "dollars. How many dollars are left?",
            f"For {job}, {name} gets {w} dollars an hour. After {h} hours there is a tip of {bonus} dollars, and lunch "
            f"costs {spent} dollars. How many dollars are left?",
        ]
    )
    return Problem(
        text,
        [("pay", f"{h} * {w}"), ("with extra", f"{h * w} + {bonus}"), ("left", f"{h * w + bonus} - {spent}")],
    )


@template("rates")
def one_then_many(r: random.Random) -> Problem:
    x, c = r.choice(SMALL_THINGS), r.choice(CONTAINERS)
    each, (n, m) = r.randint(2, 9), r.sample(range(2, 10), 2)
    text = r.choice(
        [
            f"{n} {c} hold {n * each} {x}. How many {x} do {m} {c} of the same kind hold?",
            f"There are {n * each} {x} in {n} equal {c}. How many {x} are in {m} such {c}?",
        ]
    )
    return Problem(text, [("in one", f"{n * each} / {n}"), ("all", f"{m} * {each}")])


@template("rates")
def steady_rate(r: random.Random) -> Problem:
    name, verb = r.choice(NAMES), r.choice(["plants trees", "folds shirts", "signs letters", "washes plates"])
    act, x = verb.split()
    n, h = r.randint(2, 12), r.randint(2, 9)
    text = r.choice(
        [
            f"{name} {act} {n} {x} an hour. How many {x} is that in {h} hours?",
            f"In one hour {name} {act} {n} {x}. How many {x} is that after {h} hours?",
        ]
    )
    return Problem(text, [("all", f"{h} * {n}")])


@template("rates", unseen=True)
def filling_a_tank(r: random.Random) -> Problem:
    what = r.choice(["tank", "pool", "barrel", "pond"])
    rate, m, more = r.randint(3, 9), r.randint(3, 9), r.randint(3, 30)
    text = (
        f"A {what} holds {rate * m + more} litres. Water runs in at {rate} litres a minute for {m} minutes. How "
        "many litres are missing until it is full?"
    )
    return Problem(text, [("filled", f"{m} * {rate}"), ("missing", f"{rate * m + more} - {m * rate}")])


# comparison


@template("comparison")
def times_as_many(r: random.Random) -> Problem:
    (one, two), x = r.sample(NAMES, 2), r.choice(SMALL_THINGS)
    a, k = r.randint(2, 15), r.randint(2, 6)
    text = r.choice(
        [
            f"{one} has {a} {x}. {two} has {k} times as many. How many {x} do they have together?",
            f"{two} has {k} times as many {x} as {one}, who has {a}. How many {x} do the two have in all?",
        ]
    )
    return Problem(text, [(two, f"{k} * {a}"), ("together", f"{a} + {k * a}")])


@template("comparison")
def some_more(r: random.Random) -> Problem:
    (one, two), x = r.sample(NAMES, 2), r.choice(SMALL_THINGS)
    a, d = r.randint(5, 40), r.randint(2, 15)
    text = r.choice(
        [
            f"{one} has {a} {x}. {two} has {d} more than {one}. How many {x} do they have together?",
            f"{two} has {d} more {x} than {one}, who has {a}. How many {x} do the two have in all?",
        ]
    )
    return Problem(text, [(two, f"{a} + {d}"), ("together", f"{a} + {a + d}")])


@template("comparison")
def how_many_more(r: random.Random) -> Problem:
    (one, two), x, c = r.sample(NAMES, 2), r.choice(SMALL_THINGS), r.choice(CONTAINERS)
    n, m = r.randint(3, 9), r.randint(3, 9)
    b = r.randint(2, n * m - 2)
    text = r.choice(
        [
            f"{one} has {n} {c} with {m} {x} in each. {two} has {b} {x}. How many more {x} does {one} have than {two}?",
            f"{two} has {b} {x}, and {one} has {n} {c} of {m} {x}. How many {x} more is that for {one} than for {two}?",
        ]
    )
    return Problem(text, [(one, f"{n} * {m}"), ("more", f"{n * m} - {b}")])


@template("comparison")
def scores(r: random.Random) -> Problem:
    one, two, three = r.sample(NAMES, 3)
    game = r.choice(["the quiz", "the card game", "the dart game", "the match"])
    high, low, other = r.randint(12, 30), r.randint(2, 11), r.randint(2, 30)
    text = r.choice(
        [
            f"How many more points than {two} did {one} get in {game}?",
            f"The points of {game} are below. By how many points did {one} beat {two}?",
        ]
    )
    facts = [f"{one} {high}", f"{two} {low}", f"{three} {other}"]
    r.shuffle(facts)
    return Problem(text, [("more", f"{high} - {low}")], f"Points: {', '.join(facts)}.")


@template("comparison")
def three_people(r: random.Random) -> Problem:
    (one, two, three), x = r.sample(NAMES, 3), r.choice(SMALL_THINGS)
    a, k = r.randint(3, 9), r.randint(2, 5)
    d = r.randint(2, k * a - 2)
    text = r.choice(
        [
            f"{one} has {a} {x}. {two} has {k} times as many, and {three} has {d} fewer than {two}. How many {x} do {two} "
            f"and {three} have together?",
            f"{two} finds {k} times as many {x} as {one}, who finds {a}. {three} finds {d} fewer than {two}. How many {x} "
            f"do {two} and {three} find together?",
        ]
    )
    return Problem(
        text, [(two, f"{k} * {a}"), (three, f"{k * a} - {d}"), ("together", f"{k * a} + {k * a - d}")]
    )
