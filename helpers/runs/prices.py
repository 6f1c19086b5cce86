"""What hosted Tinker bills: helpers/runs/prices.toml, or else the price list that Tinker publishes."""

import logging
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

from helpers.errors import CourseError
from helpers.files import read_toml

KINDS = ("train", "prefill", "sample")


def prices() -> dict[str, Any]:
    """helpers/runs/prices.toml: `source`, `date`, and for each model `train`, `prefill` and `sample`.

    Raises:
        CourseError: it is not TOML, or a price is not a number of dollars.
    """
    path = Path(__file__).with_name("prices.toml")
    table = read_toml(path)
    for model, row in table.items():
        if model in ("source", "date"):
            continue
        if not isinstance(row, dict):
            raise CourseError(
                f"{path}: {model!r} is no section of a model",
                f'write ["{model}"] and below it train, prefill and sample',
            )
        for kind, price in row.items():
            if kind not in KINDS or not _is_price(price):
                raise CourseError(
                    f"{path}: {kind} = {price!r} of {model}",
                    f"{', '.join(KINDS)} are dollars per million tokens, such as train = 0.5",
                )
    return table


def _is_price(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 10000


def published_prices(model: str) -> dict[str, float]:
    """Dollars per million tokens, from the price list that Tinker publishes for programs.

    Empty where the list can't be had or lacks the model.
    """
    rates = cost_estimation().fetch_model_pricing(model, url=cost_estimation().PRICING_URL)
    return {kind: getattr(rates, f"{kind}_usd_per_million") for kind in KINDS} if rates else {}


def cost_estimation() -> ModuleType:
    """The cookbook's module of prices. It logs what it could not fetch; the estimate says so by itself."""
    from tinker_cookbook.utils import cost_estimation as module

    module.logger.setLevel(logging.CRITICAL)
    return module


def cost(tokens: dict[str, int], sample_at_most: int, model: str) -> dict[str, Any]:
    """Dollars for the tokens, by prices.toml or else by the published price list.

    Args:
        tokens: by kind, `train`, `prefill` and `sample`, the last as an estimate.
        sample_at_most: tokens sampled if every answer is as long as it may be.

    Returns:
        `tokens`, `sample_at_most`, `prices`, `date`, `source`, and `dollars` and `dollars_at_most` unless
        `missing` names kinds that neither list has.
    """
    table = prices()
    where, day, row = "helpers/runs/prices.toml", str(table.get("date", "")), table.get(model) or {}
    if not row and (published := published_prices(model)):
        where, day, row = cost_estimation().PRICING_URL, f"{date.today()}", published
    missing = [kind for kind in KINDS if kind not in row and tokens[kind]]
    found = {
        "tokens": tokens,
        "sample_at_most": sample_at_most,
        "missing": missing,
        "prices": where,
        "date": day,
        "source": table.get("source", ""),
    }
    if not missing:
        at_most = tokens | {"sample": sample_at_most}
        for name, amounts in (("dollars", tokens), ("dollars_at_most", at_most)):
            found[name] = round(sum(amount * row.get(kind, 0) for kind, amount in amounts.items()) / 1e6, 4)
    return found
