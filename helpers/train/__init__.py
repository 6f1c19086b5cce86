"""Training on a Tinker service: connect, turn examples into tokens, plan the steps, and keep what happened.

backend = connect("auto")                             # the stub, hosted Tinker, or a server by its URL
fmt = get_format("guide", backend.base_model())
datums = [build_datum(example, fmt) for example in train]
plan = plan_steps(len(datums), batch_size=8, epochs=1.0, learning_rate=1e-3, seed=42)
log = TrainingLog(folder, settings)
for step in Progress(plan, log):
    ...                                               # notebook 02 has the loop
"""

from helpers.train.backend import connect
from helpers.train.log import TrainingLog
from helpers.train.plan import plan_steps
from helpers.train.progress import Progress
from helpers.train.prompts import build_datum, get_format

__all__ = [
    "Progress",
    "TrainingLog",
    "build_datum",
    "connect",
    "get_format",
    "plan_steps",
]
