"""`course run --dry-run`: the plan of a run, as text or JSON. Nothing is started, and nothing is written."""

import json
from typing import Any

from helpers.data.records import Source
from helpers.paths import runs_dir
from helpers.runs.estimate import MEASURED_ON, TOKENS_PER_SECOND, estimate
from helpers.runs.plan import RunPlan
from helpers.runs.preflight import no_key
from helpers.runs.stages import STAGES
from helpers.text import minutes, plural, printable, table, two_digits

FEW_STEPS = 10  # fewer are pointed out
NO_KEY = "TINKER_API_KEY is not set: the run would be refused, and the service was not asked for its models"


def print_plan(plan: RunPlan, as_json: bool = False) -> None:
    """Print what `course run` would do.

    Raises:
        CourseError: prices.toml can't be used.
    """
    page = {
        "run": plan.run.name if plan.run else plan.name or None,
        "new": plan.run is None,
        "runs_dir": str(runs_dir()),
        "notes": [*plan.notes, *([NO_KEY] if no_key(plan.backend) else [])],
        "stages": [
            {"stage": stage, "notebook": STAGES[stage].notebook, "settings": own.changed}
            for stage, own in plan.of_stages.items()
        ],
    } | estimate(plan.of_stages, plan.run, plan.counted)
    print(printable(json.dumps(page, indent=2, ensure_ascii=False) if as_json else _page(page)))


def _page(plan: dict[str, Any]) -> str:
    where = f"run {plan['run']}"
    if plan["new"]:
        where = f"a new run in {plan['runs_dir']}: {plan['run'] or 'named by date and time'}"
    rows = [["stage", "notebook", "settings that differ from the default"]]
    for row in plan["stages"]:
        changed = [
            f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in row["settings"].items()
        ]
        rows.append([row["stage"], row["notebook"], ", ".join(changed) or "none"])
    lines = [f"dry run: nothing is started or written. It would be {where}", "", table(rows), ""]
    lines += [*_data_lines(plan["data"]), *_work_lines(plan), *_time_lines(plan), *_cost_lines(plan)]
    lines += [f"note      {note}" for note in plan["notes"]]
    return "\n".join(lines)


def _data_lines(data: dict[str, Any]) -> list[str]:
    of = f"{data['records']:,} records: " if data["records"] is not None else ""
    lines = [
        f"data      {of}{data['train']:,} to train on, {data['validation']:,} to choose by, "
        f"{data['test']:,} to test on"
    ]
    left_out = [f"{count:,} by max_{part}" for part, count in data.get("left_out", {}).items() if count]
    if left_out:
        lines.append(f"          left out: {', '.join(left_out)} (0 takes all)")
    for source in data["sources"]:
        lines += [f"          {line}" for line in str(Source(**source)).splitlines()]
    labels = f"; {len(data['labels'])} labels" if data["labels"] else ""
    lines.append(f"task      {data['task']}: an answer is right if {data['right_if']}{labels}")
    return lines + [f"          note: {note}" for note in data["notes"]]


def _work_lines(plan: dict[str, Any]) -> list[str]:
    work, counted_by = plan["work"], plan["data"]["tokens_counted_by"]
    by = "estimated from characters" if counted_by == "characters" else f"counted by {counted_by}"
    lines = []
    if train := work.get("train"):
        steps = plural(train["steps"], "step")
        lines.append(
            f"training  {steps}; {train['tokens_an_epoch']:,} tokens an epoch, {train['train']:,} in "
            f"all ({by})"
        )
        if train["steps"] < FEW_STEPS:
            lines.append(
                f"          note: {steps} teach little: more passes (-p epochs=…) or smaller batches "
                "(-p batch_size=4) make more"
            )
    written, at_most = (sum(one[key] for one in work.values()) for key in ("sample", "written_at_most"))
    if written:
        lines.append(
            f"sampling  about {two_digits(written):,} tokens if answers are as long as the references, "
            f"{at_most:,} at most"
        )
    return lines


def _time_lines(plan: dict[str, Any]) -> list[str]:
    if plan["seconds"] is None:
        return ["time      unknown: speeds were measured for the local base model on the stub only"]
    total = sum(plan["seconds"].values())
    parts = ", ".join(f"{stage} {minutes(spent)}" for stage, spent in plan["seconds"].items())
    speed = TOKENS_PER_SECOND
    return [
        f"time      about {minutes(total)} on the stub ({parts})",
        f"          an estimate, from {speed['training']} tokens/s in training and {speed['sampling']} in "
        f"sampling on {MEASURED_ON}",
    ]


def _cost_lines(plan: dict[str, Any]) -> list[str]:
    cost = plan["cost"]
    if cost is None:
        if plan["backend"] == "stub":
            return ["cost      none: the stub works on this machine"]
        return ["cost      unknown: ask who runs the server"]
    tokens = cost["tokens"]
    first = (
        f"cost      {tokens['train']:,} tokens to train on, {tokens['prefill']:,} to read (prefill), "
        f"{two_digits(tokens['sample']):,} to sample (at most {cost['sample_at_most']:,})"
    )
    if not cost["missing"]:
        return [
            first,
            f"          about ${cost['dollars']:.2f}, at most ${cost['dollars_at_most']:.2f}: an estimate, "
            f"by the prices of {cost['date'] or 'no date'} in {cost['prices']}; kept checkpoints are billed "
            "apart",
        ]
    return [
        first,
        f"          in dollars: helpers/runs/prices.toml holds no price of {plan['model']} for "
        f"{', '.join(cost['missing'])},",
        "          and the published price list can't be reached, or lacks the model too.",
        f"          Read them on {cost['source']} and write into that file, in dollars per million tokens:",
        f'            ["{plan["model"]}"]',
        *(f"            {kind} = …" for kind in cost["missing"]),
    ]
