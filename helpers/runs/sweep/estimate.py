"""How long a sweep takes and what it costs, with what its runs share counted once."""

from functools import cache
from typing import Any

from helpers.runs.estimate import Counted, count_parts, estimate
from helpers.runs.preflight import check_data, check_run
from helpers.runs.settings import written
from helpers.runs.sweep.plan import Sweep, named
from helpers.runs.sweep.sharing import base_key, leaders, split_key
from helpers.text import clock, plural, table
from helpers.train.backend import served_models


def estimate_sweep(sweep: Sweep) -> dict[str, Any]:
    """How much work a sweep is.

    Returns:
        `runs` (a dictionary a run: `run`, `settings`, `seconds`, `split_from`, `base_from`), `seconds` and
        `seconds_apart` (of all, and of the same runs without sharing; None if no speed is known), `splits`
        and `base_asked` (how often each is done), `first` (the estimate of the first run, as `estimate`
        gives it), `cost` (hosted: tokens and dollars of all runs) and `notes`.

    Raises:
        CourseError: the data or a number can't be used; says which setting.
    """
    splits = leaders(sweep.settings, lambda name: split_key(sweep, name))
    bases = leaders(sweep.settings, lambda name: base_key(sweep, name))
    counts: list[tuple[Any, Counted]] = []
    ask = cache(served_models)
    runs, shared, apart = [], [], []
    for name in sweep.settings:
        stages = sweep.stage_settings(name)
        with named(sweep, name):
            counted = _counted(stages, counts)
            check_data(stages, counted, check_run(stages, sweep.settings[name].get("base_model", ""), ask))
            apart.append(estimate(stages, None, counted))
            if bases[name] not in (None, name):
                stages["evaluate"] = stages["evaluate"].model_copy(update={"base_run": bases[name]})
            if splits[name] != name:
                del stages["split"]
            shared.append(estimate(stages, None, counted))
        row = {"run": name, "settings": sweep.setting(name), "seconds": _sum(shared[-1]["seconds"])}
        for key, group in (("split_from", splits), ("base_from", bases)):
            row[key] = group[name] if group[name] != name else None
        runs.append(row)
    return {
        "sweep": sweep.name,
        "runs_dir": str(sweep.folder.parent),
        "until": sweep.until,
        "runs": runs,
        "splits": len(set(splits.values())),
        "base_asked": len(set(bases.values()) - {None}),
        "seconds": _total([_sum(one["seconds"]) for one in shared]),
        "seconds_apart": _total([_sum(one["seconds"]) for one in apart]),
        "first": apart[0],
        "cost": _total_cost([one["cost"] for one in shared]),
        "notes": sweep.notes,
    }


def _counted(stages: dict[str, Any], counts: list[tuple[Any, Counted]]) -> Counted:
    """The data of a run, counted once for all runs with the same split."""
    key = stages["split"], stages["train"].train_on if "train" in stages else None
    found = next((counted for other, counted in counts if other == key), None)
    if found is None:
        found = count_parts(stages, None)
        counts.append((key, found))
    return found


def _sum(seconds: dict[str, int] | None) -> int | None:
    return None if seconds is None else sum(seconds.values())


def _total(seconds: list[int | None]) -> int | None:
    known = [value for value in seconds if value is not None]
    return sum(known) if len(known) == len(seconds) else None


def _total_cost(costs: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Tokens and dollars of all runs; None if any runs where nothing is known of costs."""
    known = [cost for cost in costs if cost is not None]
    if len(known) < len(costs):
        return None
    total: dict[str, Any] = {
        "tokens": {kind: sum(cost["tokens"][kind] for cost in known) for kind in known[0]["tokens"]},
        "missing": sorted({kind for cost in known for kind in cost["missing"]}),
    }
    if not total["missing"]:
        total |= {"prices": known[0]["prices"], "date": known[0]["date"]} | {
            name: round(sum(cost[name] for cost in known), 2) for name in ("dollars", "dollars_at_most")
        }
    return total


# To read


def plan_text(plan: dict[str, Any]) -> str:
    """What a sweep would be: the runs, what they share, time and cost.

    Args:
        plan: from `estimate_sweep`.
    """
    swept = list(plan["runs"][0]["settings"])
    rows = [["run", *swept, "about"]]
    for row in plan["runs"]:
        rows.append([row["run"], *(written(row["settings"][name]) for name in swept), clock(row["seconds"])])
    data, count = plan["first"]["data"], len(plan["runs"])
    first = " (first run)" if plan["splits"] > 1 else ""
    shared = f"shared    {plural(plan['splits'], 'split')} for {plural(count, 'run')}"
    if plan["base_asked"]:
        shared += f"; the base model is asked {plural(plan['base_asked'], 'time')}"
    lines = [
        f"sweep {plan['sweep']}: {plural(count, 'run')} until {plan['until']}, in {plan['runs_dir']}",
        "",
        table(rows, right={len(rows[0]) - 1}),
        "",
        f"data      {data['train']:,} to train on, {data['validation']:,} to choose by, {data['test']:,} to "
        f"test on{first}",
        shared,
    ]
    notes = [f"note      {note}" for note in plan["notes"]]
    return "\n".join([*lines, time_line(plan), cost_line(plan), *notes])


def time_line(plan: dict[str, Any], done: list[str] | tuple[str, ...] = ()) -> str:
    """About how long it takes.

    Args:
        plan: from `estimate_sweep`.
        done: names of runs that are done already.
    """
    if plan["seconds"] is None:
        return "time      unknown: speeds were measured for the local base model on the stub only"
    left = sum(row["seconds"] for row in plan["runs"] if row["run"] not in done)
    saved = plan["seconds_apart"] - plan["seconds"]
    without = f", {clock(saved)} less than without sharing" if saved and not done else ""
    return (
        f"time      about {clock(left)} (min:s) on the stub with two free cores, one run after the other"
        f"{without}; an estimate"
    )


def cost_line(plan: dict[str, Any]) -> str:
    """What hosted Tinker bills for it."""
    cost = plan["cost"]
    if cost is None:
        if plan["first"]["backend"] == "stub":
            return "cost      none: the stub works on this machine"
        return "cost      unknown: ask who runs the server"
    tokens = ", ".join(f"{amount:,} {kind}" for kind, amount in cost["tokens"].items())
    if cost["missing"]:
        return (
            f"cost      tokens: {tokens}; in dollars unknown: helpers/runs/prices.toml lacks the price of "
            f"{', '.join(cost['missing'])}"
        )
    return (
        f"cost      tokens: {tokens}; about ${cost['dollars']:.2f}, at most ${cost['dollars_at_most']:.2f}: "
        f"an estimate, by the prices of {cost['date'] or 'no date'} in {cost['prices']}"
    )
