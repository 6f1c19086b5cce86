"""The steps that are still to do, with a bar that shows the loss, the speed and the time left."""

import sys
from collections.abc import Iterator, Sequence

from helpers.clock import worked
from helpers.train.schedule import Step
from helpers.train.training_log import TrainingLog


class Progress:
    """Iterates over the steps of a plan that come after the log's last checkpoint, until the log says to stop
    early.

    What happens inside the loop counts as training; evaluations in it count as sampling.

    Args:
        plan: from `plan_steps`.
        log: where the loop records each step and each evaluation.
    """

    def __init__(self, plan: Sequence[Step], log: TrainingLog):
        from tqdm import tqdm

        self._plan, self._log = plan, log
        log.says(steps=len(plan))
        self._bar = tqdm(
            total=len(plan),
            initial=log.last_step,
            desc="Training",
            unit="step",
            file=sys.stdout,
            ncols=100,
            mininterval=1,
            position=0,
        )

    def __iter__(self) -> Iterator[Step]:
        with self._bar, worked("training"):
            for step in self._plan[self._log.last_step :]:
                if self._log.stop_early:
                    break
                self._log.start_step()
                yield step
                self._show()
        if self._log.stop_early and self._log.last_step < len(self._plan):
            print(
                f"no improvement in the last {self._log.patience} evaluations: stopped after step "
                f"{self._log.last_step} of {len(self._plan)}"
            )

    def _show(self) -> None:
        if row := self._log.latest:
            text = f"NLL {row['train_nll']:.3f}, {row['tokens_per_second']:.0f} tokens/s"
            self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()
