"""What notebook 03 found, in the files that later notebooks, reports and readers of a run open first."""

from dataclasses import asdict
from typing import Any

from helpers.evaluate.controls import Controls
from helpers.evaluate.paired import mcnemar
from helpers.evaluate.score import Headline
from helpers.runs.stage import Stage
from helpers.text import red


def save_evaluation(stage: Stage, base: dict[str, Any], tuned: dict[str, Any]) -> None:
    """Write `model_evaluation.json` and `flips.jsonl`, and finish the stage. The controls are scored here, so
    that no run is without them.

    Args:
        stage: `evaluate`.
        base: from `base_answers`.
        tuned: from `evaluate_model`, on the same problems, with its samples in `samples.jsonl`.
    """
    task, paired = stage.task, mcnemar(base["samples"], tuned["samples"])
    controls = stage.controls()
    before, after = task.headline(base), task.headline(tuned)
    stage.save("flips.jsonl", flips(paired))
    stage.save("model_evaluation.json", evaluation(stage, base, tuned, paired, controls))
    stage.finish(
        _summary(before, after),
        [
            "model_evaluation.json",
            "samples.jsonl",
            "base_samples.jsonl",
            "base_other_samples.jsonl",
            "flips.jsonl",
        ],
        base_accuracy=before.score.accuracy,
        base_mean_f1=before.mean_f1 and before.mean_f1.value,
        base_prompting=base["prompting"],
        base_promptings=base["promptings"],
        test_accuracy=after.score.accuracy,
        test_mean_f1=after.mean_f1 and after.mean_f1.value,
        controls=controls,
        p_value=paired["p_value"],
        base_asked=base["asked"],
        base_from=base["from_run"],
    )
    if flag := controls.flag(task):
        print(red(flag))


def _summary(base: Headline, tuned: Headline) -> str:
    """`accuracy 4% → 58% on 120 test problems`, and for free text the mean F1 too."""
    words = f"{tuned.measure} {base.score.accuracy:.0%} → {tuned.score.accuracy:.0%}"
    if base.mean_f1 and tuned.mean_f1:
        words += f", mean F1 {base.mean_f1.value:.2f} → {tuned.mean_f1.value:.2f}"
    return f"{words} on {tuned.score.total} test problems"


def evaluation(
    stage: Stage,
    base: dict[str, Any],
    tuned: dict[str, Any],
    paired: dict[str, Any],
    controls: Controls,
) -> dict[str, Any]:
    """The content of `model_evaluation.json`: rates are shares of 1, intervals 95% (Wilson).

    `base_accuracy` and what goes with it are of the strongest way of asking, `base_prompting`.
    """
    task = stage.task
    return {
        "model_path": stage.best_checkpoint["sampler_path"],
        "model_name": stage.run.name,
        "base_model": stage.base_model,
        "base_accuracy": base["accuracy"],
        "base_correct": base["correct"],
        "base_accuracy_ci95": base["ci95"],
        "base_from": base["from_run"],
        "base_prompting": base["prompting"],
        "base_promptings": [asdict(prompting) for prompting in base["promptings"]],
        "measure": task.measure,
        "test_accuracy": tuned["accuracy"],
        "test_correct": tuned["correct"],
        "test_size": tuned["total"],
        "test_accuracy_ci95": tuned["ci95"],
        "by_category": tuned["by_category"],
        "by_template": tuned["by_template"],
        "base_by_category": base["by_category"],
        "base_by_template": base["by_template"],
        "task": task.settings,
        "measures": {"base": task.measures(base["samples"]), "tuned": task.measures(tuned["samples"])},
        "controls": asdict(controls),
        "gained": len(paired["gained"]),
        "lost": len(paired["lost"]),
        "p_value": paired["p_value"],
    }


def flips(paired: dict[str, Any]) -> list[dict[str, Any]]:
    """The problems that one model got right and the other did not, a row each, from `mcnemar`."""
    return [
        {
            "flip": kind,
            "problem": after["problem"],
            "expected": after["expected"],
            "base": before["output"],
            "tuned": after["output"],
        }
        for kind in ("gained", "lost")
        for before, after in paired[kind]
    ]
