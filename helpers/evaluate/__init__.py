"""How good is a model, how sure is that, and what changed: graders, scores, comparisons, benchmarks.

    task, records = choose_task("math", records)
    base = evaluate_model(base_client, test_set, tokenizer, renderer=renderer, grader=task.grader)
    tuned = evaluate_model(tuned_client, test_set, tokenizer, renderer=renderer, grader=task.grader)
    print(tuned["score"])                                 # 70/120 = 58.3%, 95% interval 49.4% to 66.8%
    mcnemar(base["samples"], tuned["samples"])["p_value"]
    print(win_rate(ranks_of_base, ranks_of_tuned))        # win rate 76.8%, 95% interval 68.1% to 83.6% (…)

Graders live in helpers/evaluate/grading, each with what it takes for right.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from helpers.evaluate.benchmarks import run_inspect_eval
from helpers.evaluate.controls import score_controls
from helpers.evaluate.evaluation import evaluate_model, score_outputs
from helpers.evaluate.grading import (
    check_answer,
    check_completeness,
    check_final_answer,
    check_reasoning_steps,
    final_answer,
)
from helpers.evaluate.judge import ProofJudge
from helpers.evaluate.math_reasoning import evaluate_math_reasoning
from helpers.evaluate.paired import before_after_table, mcnemar, win_rate
from helpers.evaluate.promptings import base_formats
from helpers.evaluate.score import Score, wilson_interval
from helpers.evaluate.tasks import choose_task

if TYPE_CHECKING:
    from helpers.evaluate.completions import evaluate_completions
    from helpers.evaluate.inspect_tasks import own_data

__all__ = [
    "ProofJudge",
    "Score",
    "base_formats",
    "before_after_table",
    "check_answer",
    "check_completeness",
    "check_final_answer",
    "check_reasoning_steps",
    "choose_task",
    "evaluate_completions",
    "evaluate_math_reasoning",
    "evaluate_model",
    "final_answer",
    "mcnemar",
    "own_data",
    "run_inspect_eval",
    "score_controls",
    "score_outputs",
    "wilson_interval",
    "win_rate",
]

# These subclass what the cookbook and Inspect define, and importing either takes seconds.
_LATER = {"evaluate_completions": "completions", "own_data": "inspect_tasks"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
