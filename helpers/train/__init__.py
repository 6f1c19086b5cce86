"""Training on a Tinker service: connect, turn examples into tokens, plan the steps, and keep what happened.

backend = connect("auto")                             # the stub, hosted Tinker, or a server by its URL
renderer = get_renderer("guide", backend.base_model())
datums = [build_datum(example, renderer) for example in train]
plan = plan_steps(len(datums), batch_size=8, epochs=1.0, learning_rate=1e-3, seed=42)
log = TrainingLog(folder, settings)
for step in Progress(plan, log):
    ...                                               # notebook 02 has the loop
"""

from helpers.train.backend import connect
from helpers.train.progress import Progress
from helpers.train.renderers import answer_text, answer_tokens, build_datum, get_renderer, prompt_tokens
from helpers.train.schedule import plan_steps
from helpers.train.training_log import TrainingLog

__all__ = [
    "Progress",
    "TrainingLog",
    "answer_text",
    "answer_tokens",
    "build_datum",
    "connect",
    "get_renderer",
    "plan_steps",
    "prompt_tokens",
]
