"""The run folder: what a run did, with what, and what it made.

stage = open_stage("train", run_name, globals())     # checks and records the notebook's settings
train = stage.examples("train")
stage.save("metrics.jsonl", rows)
stage.finish("validation 0/60 → 46/60", ["metrics.jsonl"], steps=113, …)

run = open_run("latest")                             # any run, to look at
run.manifest.stages.train.settings.rank
"""

from helpers.runs.base_answers import base_answers
from helpers.runs.card import write_model_card
from helpers.runs.lesson_scores import save_scores
from helpers.runs.publish import publish_to_hub
from helpers.runs.results import save_evaluation
from helpers.runs.run import open_run
from helpers.runs.stage import open_stage

__all__ = [
    "base_answers",
    "open_run",
    "open_stage",
    "publish_to_hub",
    "save_evaluation",
    "save_scores",
    "write_model_card",
]
