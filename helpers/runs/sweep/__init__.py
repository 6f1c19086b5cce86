"""A run for each of many settings, with what they share done once.

    sweep = plan_sweep("ranks", grid({"rank": [8, 32], "learning_rate": [1e-3, 3e-4]}), {"epochs": 1})
    rows = run_sweep(sweep)                        # here, one run after the other

    with joblib.parallel_config(backend="dask"):   # or "ray", after ray.util.joblib.register_ray()
        rows = run_sweep(sweep)                    # on your own cluster

`plan` says what to run, `sharing` what the runs have in common, `estimate` how long it takes, `run` does it,
`progress` follows it, and `results` compares the runs.
"""

from helpers.runs.sweep.grid import grid
from helpers.runs.sweep.plan import open_sweep, plan_sweep
from helpers.runs.sweep.results import collect
from helpers.runs.sweep.run import run_sweep

__all__ = ["collect", "grid", "open_sweep", "plan_sweep", "run_sweep"]
