"""Make support_chats.jsonl: 200 short conversations of customers with the help desks of made-up shops.

Each shop has its own rules, in the system turn. The last turn is a ticket. Its reason, action, order number
and item are told by different turns before it, and by nothing else.

python data/make_support_chats.py            # write the file; the same bytes each time
python data/make_support_chats.py --check    # compare the committed file with what this script makes
"""

import argparse
import itertools
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OUT = Path(__file__).parent / "support_chats.jsonl"
SEED = 1

# What a shop may do about it, by what went wrong
ACTIONS = {
    "damaged": ["refund", "exchange", "repair"],
    "wrong item": ["refund", "exchange", "voucher"],
    "late": ["refund", "resend", "voucher"],
    "changed mind": ["refund", "voucher", "decline"],
}

# What the shops of a trade sell
TRADES = {
    "Shoes": ["rain boots", "sandals", "slippers", "running shoes", "hiking boots", "ballet shoes"],
    "Kitchens": ["kettle", "teapot", "frying pan", "toaster", "cake tin", "bread knife"],
    "Lighting": ["desk lamp", "lantern", "bike light", "floor lamp", "torch", "string lights"],
    "Toys": ["kite", "puzzle", "teddy bear", "train set", "doll house", "building blocks"],
    "Garden": ["rake", "watering can", "garden gloves", "bird feeder", "hammock", "flower pots"],
    "Music": ["guitar", "drumsticks", "headphones", "flute", "record player", "music stand"],
    "Bikes": ["helmet", "bike pump", "bike lock", "saddle", "pedals", "bike bell"],
    "Books": ["atlas", "cookbook", "diary", "picture book", "dictionary", "road map"],
}
NAMES = [
    *("Marlow", "Harbour", "Finch", "Old Mill", "Juniper", "Northgate", "Bramble", "Silver Lane", "Oakley"),
    *("Tidewater", "Hazel", "Corner", "Larkspur", "Kingsway", "Pebble", "Rowan", "Station", "Meadow"),
    *("Copper", "Willow", "Lantern Hill", "Brook", "Castle", "Sunday", "Linden"),
]

PROBLEMS = {
    "damaged": [
        "My {item} came broken.",
        "My {item} got crushed on the way.",
        "The box was torn, and my {item} too.",
        "I unpacked my {item} and half of it was in pieces.",
        "Somebody must have dropped my {item}. It's no use like this.",
        "My {item} fell apart on the first day.",
    ],
    "wrong item": [
        "You sent me the wrong {item}.",
        "I ordered my {item} in blue and got red.",
        "I got somebody else's parcel instead of my {item}.",
        "My {item} came in the wrong size.",
        "The box that should hold my {item} had something else in it.",
        "You packed another model, not the {item} I ordered.",
    ],
    "late": [
        "I'm still waiting for my {item}.",
        "My {item} should have been here last week.",
        "The parcel with my {item} never came.",
        "I ordered my {item} a month ago and have heard nothing since.",
        "It's Friday, and my {item} was due on Monday.",
        "When will you deliver my {item}? You promised three days.",
    ],
    "changed mind": [
        "I've changed my mind about my {item}.",
        "I don't need my {item} any more.",
        "I don't like my {item} after all.",
        "My {item} was meant as a gift, but she has one already.",
        "I found my old {item}, so I'd like to send yours back.",
        "I bought my {item} in a hurry and want to return it all.",
    ],
}
DESKS = ["You are the help desk of {shop}.", "You answer for {shop}.", "You work at the help desk of {shop}."]
CHECK = "If customers aren't sure of the order number, read it back."
TICKET = "When you know it, write only: Ticket: REASON | ACTION | order NUMBER | ITEM"
HELLOS = ["Hello, I need help with an order.", "Good morning, can you help me?", "Hi, I have a problem."]
OFFERS = ["Of course. What happened?", "Gladly. What is it about?", "Yes, of course. What went wrong?"]
ASKS = ["I'm sorry. What's the order number?", "Let me see. Which order is it?", "What's your order number?"]
WHERES = ["Where do I find that?", "Which number do you mean?", "I have no idea. Where should I look?"]
PLACES = ["It's at the top of your receipt.", "It's in the mail we sent you, below the date."]
SURE = ["It's {order}.", "{order}", "Order {order}.", "The number is {order}.", "Here it is: {order}."]
UNSURE = ["I think it's {order}.", "Maybe {order}?", "It's hard to read. {order}?", "{order}, I guess."]
REPEATS = ["Order {order}, {item}: is that right?", "So it's order {order}, {item}?"]
YESES = ["Yes.", "That's right.", "Yes, exactly.", "Yes, thank you."]
SLIPS = ["No, sorry, it's {order}.", "Oh, I misread it: {order}.", "Not quite, it's {order}."]
# Whether customers say hello first, ask where the number is, and aren't sure of it
FLOWS = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 0)]


@dataclass(frozen=True)
class Case:
    """What a conversation is about."""

    shop: str
    item: str
    reason: str
    rules: dict[str, str]
    order: str
    misread: str  # another number, which the customer may give first

    @property
    def ticket(self) -> str:
        return f"Ticket: {self.reason} | {self.rules[self.reason]} | order {self.order} | {self.item}"


def cases(rng: random.Random) -> Iterator[Case]:
    """Each shop occurs once, so that its rules have to be read."""
    shops = list(itertools.product(NAMES, TRADES))
    rng.shuffle(shops)
    numbers = rng.sample(range(10_000, 100_000), 2 * len(shops))
    reasons = itertools.cycle(PROBLEMS)
    for (name, trade), order, misread in zip(shops, numbers[::2], numbers[1::2], strict=True):
        rules = {kind: rng.choice(actions) for kind, actions in ACTIONS.items()}
        item = rng.choice(TRADES[trade])
        yield Case(f"{name} {trade}", item, next(reasons), rules, str(order), str(misread))


def conversation(case: Case, rng: random.Random) -> list[dict[str, str]]:
    """Two to four exchanges after the system turn; the last answer is the ticket."""
    rules = [f"{reason} -> {action}" for reason, action in case.rules.items()]
    rng.shuffle(rules)
    hello, where, unsure = rng.choice(FLOWS)
    slip = unsure and rng.random() < 0.5
    turns = [HELLOS, OFFERS] if hello else []
    turns += [PROBLEMS[case.reason], ASKS]
    turns += [WHERES, PLACES] if where else []
    turns += [UNSURE, REPEATS, SLIPS if slip else YESES] if unsure else [SURE]
    first = case.misread if slip else case.order
    said = [
        rng.choice(texts).format(item=case.item, order=case.order if texts is SLIPS else first)
        for texts in turns
    ]
    desk = rng.choice(DESKS).format(shop=case.shop)
    system = f"{desk} Rules: {'; '.join(rules)}. {CHECK} {TICKET}"
    spoken = zip(itertools.cycle(["user", "assistant"]), [*said, case.ticket], strict=False)
    return [
        {"role": "system", "content": system},
        *({"role": role, "content": text} for role, text in spoken),
    ]


def support_chats() -> bytes:
    """JSON Lines with OpenAI's `messages`, and a `category`: what went wrong."""
    rng = random.Random(SEED)
    rows = [{"messages": conversation(case, rng), "category": case.reason} for case in cases(rng)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="check the committed file, write nothing")
    if parser.parse_args().check:
        same = OUT.read_bytes() == support_chats()
        print(f"{OUT.name} is {'' if same else 'not '}what the script makes")
        return 0 if same else 1
    OUT.write_bytes(support_chats())
    print(OUT.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
