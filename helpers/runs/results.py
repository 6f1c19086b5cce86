"""What notebook 03 found, in the files that later notebooks, reports and readers of a run open first."""

from typing import Any

from helpers.evaluate.paired import mcnemar
from helpers.runs.stage import Stage


def save_evaluation(stage: Stage, base: dict[str, Any], tuned: dict[str, Any]) -> None:
    """Write `model_evaluation.json` and `flips.jsonl`, and finish the stage.

    Args:
        stage: `evaluate`.
        base: from `base_answers`.
        tuned: from `evaluate_model`, on the same problems, with its samples in `samples.jsonl`.
    """
    paired = mcnemar(base["samples"], tuned["samples"])
    stage.save("flips.jsonl", flips(paired))
    stage.save("model_evaluation.json", evaluation(stage, base, tuned, paired))
    stage.finish(
        f"{base['accuracy']:.0%} → {tuned['accuracy']:.0%} on {tuned['total']} test problems",
        ["model_evaluation.json", "samples.jsonl", "base_samples.jsonl", "flips.jsonl"],
        base_accuracy=base["accuracy"],
        test_accuracy=tuned["accuracy"],
        p_value=paired["p_value"],
        base_asked=base["asked"],
        base_from=base["from_run"],
    )


def evaluation(
    stage: Stage, base: dict[str, Any], tuned: dict[str, Any], paired: dict[str, Any]
) -> dict[str, Any]:
    """The content of `model_evaluation.json`: rates are shares of 1, intervals 95% (Wilson)."""
    task = stage.task
    return {
        "model_path": stage.best_checkpoint["sampler_path"],
        "model_name": stage.run.name,
        "base_model": stage.base_model,
        "base_accuracy": base["accuracy"],
        "base_correct": base["correct"],
        "base_accuracy_ci95": base["ci95"],
        "base_from": base["from_run"],
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
