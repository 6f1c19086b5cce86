"""What the templates of word problems are made of: names, things, and how a template registers itself."""

import random
from collections.abc import Callable
from typing import NamedTuple

NAMES = [
    "Ana",
    "Ben",
    "Chloe",
    "David",
    "Emma",
    "Farid",
    "Grace",
    "Hugo",
    "Ines",
    "Jack",
    "Kira",
    "Leo",
    "Mia",
    "Noah",
    "Olga",
    "Paul",
    "Rosa",
    "Sam",
    "Tara",
    "Umar",
    "Vera",
    "Wei",
    "Yuki",
    "Zoe",
]
SMALL_THINGS = [
    "apples",
    "pears",
    "marbles",
    "stickers",
    "shells",
    "cards",
    "buttons",
    "beads",
    "nuts",
    "coins",
    "stamps",
    "plums",
]
GOODS = ["pens", "rulers", "notebooks", "cups", "candles", "balls", "masks", "scarves", "brushes", "lamps"]
CONTAINERS = ["boxes", "bags", "baskets", "jars", "trays", "packs"]
PLACES = ["the lake", "the school", "the market", "the museum", "the farm", "the beach"]
PRODUCTS = ["toys", "bottles", "chairs", "lamps", "bricks", "clocks"]

Steps = list[tuple[str, str]]  # (a few words, an expression such as "4 * 6")


class Problem(NamedTuple):
    """What a template returns."""

    instruction: str
    steps: Steps
    input: str = ""


class Template(NamedTuple):
    """A named way to make problems. `unseen` ones are kept for the test set."""

    name: str
    category: str
    unseen: bool
    draw: Callable[[random.Random], Problem]


TEMPLATES: list[Template] = []


def template(category: str, unseen: bool = False) -> Callable:
    """Register the function below as a template of this category."""

    def register(draw: Callable[[random.Random], Problem]) -> Callable:
        TEMPLATES.append(Template(draw.__name__, category, unseen, draw))
        return draw

    return register
