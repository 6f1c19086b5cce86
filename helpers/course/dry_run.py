"""`course run --dry-run`: the plan of a run, as text or JSON. Nothing is started, and nothing is written."""

import json
import os
from typing import Any

from helpers.data.records import Source
from helpers.paths import runs_dir
from helpers.runs.estimate import MEASURED_ON, TOKENS_PER_SECOND, estimate
from helpers.runs.run import STAGES, Run
from helpers.runs.settings import stage_differences
from helpers.text import minutes, plural, table, two_digits

FEW_STEPS = 10  # fewer are pointed out


def print_plan(
    run: Run | None,
    name: str,
    stages: list[str],
    parameters: dict[str, Any],
    known: dict[str, dict[str, Any]],
    notes: list[str],
    as_json: bool = False,
) -> None:
    """Print what `course run` would do.

    Args:
        run: the run it would go on with; None for a new one.
        name: of the new run; empty for date and time.
        stages: what would run, in order.
        parameters: what the user and the run set, by name; checked before.
        known: each stage's parameters with their defaults.
        notes: what to say about the parameters.

    Raises:
        CourseError: the data or a number can't be used, as the run itself would find.
    """
    values = {
        stage: known[stage] | {name: value for name, value in parameters.items() if name in known[stage]}
        for stage in stages
    }
    plan = {
        "run": run.name if run else name or None,
        "new": run is None,
        "runs_dir": str(runs_dir()),
        "notes": notes,
        "stages": [
            {
                "stage": stage,
                "notebook": STAGES[stage][0],
                "parameters": stage_differences(values[stage], known[stage]),
            }
            for stage in stages
        ],
    } | estimate(values, run)
    if plan["backend"] == "hosted" and not os.environ.get("TINKER_API_KEY"):
        plan["notes"] = [
            *notes,
            "TINKER_API_KEY is not set: the run would stop in its first notebook that needs hosted Tinker",
        ]
    print(json.dumps(plan, indent=2, ensure_ascii=False) if as_json else _page(plan))


def _page(plan: dict[str, Any]) -> str:
    where = (
        f"a new run in {plan['runs_dir']}: {plan['run'] or 'named by date and time'}"
        if plan["new"]
        else f"run {plan['run']}"
    )
    rows = [["stage", "notebook", "parameters that differ from the default"]]
    for row in plan["stages"]:
        changed = ", ".join(
            f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in row["parameters"].items()
        )
        rows.append([row["stage"], row["notebook"], changed or "none"])
    lines = [f"dry run: nothing is started or written. It would be {where}", "", table(rows), ""]
    lines += _amounts(plan) + [_time_line(plan)] + _cost_lines(plan)
    lines += [f"note      {note}" for note in plan["notes"]]
    return "\n".join(lines)


def _amounts(plan: dict[str, Any]) -> list[str]:
    data, work = plan["data"], plan["work"]
    of = f"{data['records']:,} records: " if data["records"] is not None else ""
    lines = [
        f"data      {of}{data['train']:,} to train on, {data['validation']:,} to choose by, {data['test']:,} to test on"
    ]
    if left_out := {part: count for part, count in data.get("left_out", {}).items() if count}:
        lines.append(
            f"          left out: {', '.join(f'{count:,} by max_{part}' for part, count in left_out.items())} (0 takes all)"
        )
    lines += [
        f"          {line}" for source in data["sources"] for line in str(Source(**source)).splitlines()
    ]
    labels = f"; {len(data['labels'])} labels" if data["labels"] else ""
    lines.append(f"task      {data['task']}: an answer is right if {data['right_if']}{labels}")
    lines += [f"          note: {note}" for note in data["notes"]]
    by = (
        "estimated from characters"
        if data["tokens_counted_by"] == "characters"
        else f"counted by {data['tokens_counted_by']}"
    )
    if train := work.get("train"):
        lines.append(
            f"training  {plural(train['steps'], 'step')}; {train['tokens_an_epoch']:,} tokens an epoch, {train['train']:,} in all ({by})"
        )
        if train["steps"] < FEW_STEPS:
            lines.append(
                f"          note: {plural(train['steps'], 'step')} teach little: more passes (-p epochs=…) or smaller batches (-p batch_size=4) make more"
            )
    written, at_most = (sum(one[key] for one in work.values()) for key in ("sample", "written_at_most"))
    if written:
        lines.append(
            f"sampling  about {two_digits(written):,} tokens if answers are as long as the references, {at_most:,} at most"
        )
    return lines


def _time_line(plan: dict[str, Any]) -> str:
    if plan["seconds"] is None:
        return "time      unknown: speeds were measured for the local base model on the stub only"
    total = sum(plan["seconds"].values())
    parts = ", ".join(f"{stage} {minutes(spent)}" for stage, spent in plan["seconds"].items())
    speed = TOKENS_PER_SECOND
    return (
        f"time      about {minutes(total)} on the stub ({parts})\n"
        f"          an estimate, from {speed['training']} tokens/s in training and {speed['sampling']} in sampling on {MEASURED_ON}"
    )


def _cost_lines(plan: dict[str, Any]) -> list[str]:
    cost = plan["cost"]
    if cost is None:
        return [
            "cost      none: the stub works on this machine"
            if plan["backend"] == "stub"
            else "cost      unknown: ask who runs the server"
        ]
    tokens = cost["tokens"]
    lines = [
        f"cost      {tokens['train']:,} tokens to train on, {tokens['prefill']:,} to read (prefill), {two_digits(tokens['sample']):,} to sample "
        f"(at most {cost['sample_at_most']:,})"
    ]
    if not cost["missing"]:
        lines.append(
            f"          about ${cost['dollars']:.2f}, at most ${cost['dollars_at_most']:.2f}: an estimate, by the prices of "
            f"{cost['date'] or 'no date'} in {cost['prices']}; kept checkpoints are billed apart"
        )
        return lines
    lines.append(
        f"          in dollars: helpers/runs/prices.toml holds no price of {plan['model']} for {', '.join(cost['missing'])},"
    )
    lines.append("          and the published price list can't be reached, or lacks the model too.")
    lines.append(
        f"          Read them on {cost['source']} and write into that file, in dollars per million tokens:"
    )
    return [
        *lines,
        f'            ["{plan["model"]}"]',
        *(f"            {kind} = …" for kind in cost["missing"]),
    ]
