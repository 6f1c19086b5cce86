"""`open_stage`: what a notebook does first, so that its other cells can stick to their subject.

stage = open_stage("train", run_name, globals())    # checks and records every setting
stage.settings.rank, stage.run.file("split/train.json"), stage.file("metrics.jsonl")
stage.finish("validation 0/60 → 46/60", artefacts=["metrics.jsonl"], steps=113, …)
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from helpers.clock import work_done
from helpers.data.split import load_part
from helpers.errors import CourseError, RunError
from helpers.evaluate.controls import Controls, score_controls
from helpers.evaluate.score import Score
from helpers.evaluate.tasks import Task
from helpers.files import read_json, write_json, write_jsonl
from helpers.runs.failures import report_failures
from helpers.runs.manifest import BackendUsed
from helpers.runs.result_files import EVALUATION
from helpers.runs.run import Run, data_fingerprints, new_run, open_run
from helpers.runs.settings import SETTINGS, TrainSettings, settings_of
from helpers.runs.stages import STAGES
from helpers.train.backend import check_key
from helpers.train.lineup import recommended
from helpers.train.whereabouts import enter_stage
from helpers.weights import Scores


def open_stage(name: str, run_name: str, parameters: dict[str, Any]) -> "Stage":
    """Begin a stage of a run: check its settings and what it needs, make its folder, record all of it.

    Stages that were built on an earlier try of this one become `stale`: their files came from what is about
    to be replaced. If the notebook fails from here on, the manifest says why.

    Args:
        name: the stage's, a key of `STAGES`.
        run_name: the run's name, `latest`, or, for the first stage, `new`.
        parameters: the notebook's `globals()`, which holds the settings under their own names.

    Raises:
        CourseError: a setting is missing or not allowed.
        RunError: there is no such run, a stage before this one is missing or stale, or the folder can't be
            written.
        BackendError: in the first stage: the key that notebook 02 will use is missing or wrong.
    """
    names = list(SETTINGS[name].model_fields)
    if missing := [field for field in names if field not in parameters]:
        raise CourseError(
            f"the notebook does not set {', '.join(missing)}",
            "run its parameters cell first, unchanged from the course",
        )
    run = new_run() if run_name == "new" else open_run(run_name)
    report_failures(run.path, name)
    settings = settings_of(name, {field: parameters[field] for field in names})
    for needed in STAGES[name].needs:
        run.stage(needed)
    stage, first = Stage(run, name, settings), not STAGES[name].needs
    enter_stage(STAGES[name].notebook, name)
    with run.edit() as manifest:
        manifest.failure = None
        manifest.seed = settings.seed if first else manifest.seed
        manifest.stages.begin(name, settings, data_fingerprints(settings.data_files) if first else [])
    print(stage)
    if first and (trial := check_key()):
        print(trial)
    return stage


class Stage:
    """A stage that is under way: its run, its settings, its folder, and how it ends."""

    def __init__(self, run: Run, name: str, settings: Any):
        self.run, self.name, self.settings = run, name, settings
        self.path = run.path / name
        self._started, self._work_before = time.monotonic(), work_done()
        try:
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(
                f"can't write {self.path}: {error.strerror}", "choose a folder you may write to"
            ) from error

    def __str__(self) -> str:
        """The settings, with non-default values marked."""
        changed = self.settings.changed
        rows = [
            f"  {name:23} {value!r}{'  (not the default)' if name in changed else ''}"
            for name, value in self.settings
        ]
        return "\n".join([f"{STAGES[self.name].notebook}: settings", *rows])

    def file(self, name: str) -> Path:
        """A file in the stage's folder."""
        return self.path / name

    def save(self, name: str, value: Any) -> Path:
        """Write JSON into the stage's folder; a list as one object per line if the name ends in `.jsonl`."""
        return (write_jsonl if name.endswith(".jsonl") else write_json)(self.file(name), value)

    def examples(self, part: str) -> list[dict[str, Any]]:
        """The records of a part of the split: `train`, `validation` or `test`.

        Raises:
            RunError: the file is missing or damaged.
        """
        return load_part(self.run.file(f"split/{'test_set' if part == 'test' else part}.json"))

    @property
    def task(self) -> Task:
        """What makes an answer right, as notebook 01 was told."""
        return self.run.stage("split").results.task

    @property
    def trained(self) -> TrainSettings:
        """The settings of notebook 02, such as the prompt format that the model was trained on."""
        return self.run.stage("train").settings

    @property
    def base_model(self) -> str:
        """The model that was trained: a folder, or a name on the hub."""
        return self.run.manifest.base_model or ""

    @property
    def best_checkpoint(self) -> dict[str, Any]:
        """The one notebook 02 chose: `step`, `state_path`, `sampler_path`, `correct`, `total`, `loss`."""
        return read_json(self.run.file("train/best_checkpoint.json"))

    def trained_scores(self, most: int) -> Scores:
        """The logprobs that the trained model gave the reference answers in notebook 05, of the first `most`.

        Raises:
            RunError: `merge/logprobs.json` is missing or damaged.
        """
        logprobs = read_json(self.run.file("merge/logprobs.json"))["Tinker sampler"]
        return Scores("Tinker sampler", logprobs[:most])

    def earlier_scores(self) -> str:
        """What notebooks 03 and 05 measured on the test set, one line each, for those that are done."""
        stages, lines = self.run.manifest.stages, []
        if stages.is_done("evaluate"):
            found = EVALUATION.read(self.run.path)
            lines.append(f"sampler: {found.headlines['tuned']}")
            lines.append(f"base:    {found.headlines['base']} ({found.base_prompting})")
        if stages.is_done("merge") and self.name != "merge":
            merged = self.run.stage("merge").results
            score = Score(merged.correct, merged.total)
            lines.append(f"merged:  {self.task.headline_of(score, merged.mean_f1)}, in transformers")
        return "\n".join(lines)

    def controls(self) -> Controls:
        """What the task's grader makes of answers that no model gave, on this run's test set."""
        return score_controls(self.task, self.examples("test"), self.examples("train"))

    def uses(self, backend: Any, base_model: str) -> None:
        """Record the service that trains, and the base model. On hosted Tinker, print which settings differ
        from what the cookbook recommends for the model.
        """
        self.run.update(base_model=base_model, backend=BackendUsed(kind=backend.kind, url=backend.url))
        for name, value in recommended(base_model).items() if backend.kind == "hosted" else ():
            if (own := getattr(self.settings, name)) != value:
                print(f"note: {name} is {own}; the cookbook recommends {value} for {base_model}")

    def finish(
        self,
        summary: str,
        artefacts: Iterable[str] = (),
        score: dict[str, Any] | None = None,
        parity: dict[str, Any] | None = None,
        **results: Any,
    ) -> None:
        """Mark the stage done, and print the summary.

        Args:
            summary: the key result in a few words, shown in the table at the end of `course run`.
            artefacts: files or folders in the stage's folder that the manifest should list, the most useful
                first.
            score: from `score_outputs`, for results that have `correct`, `total`, `accuracy` and `mean_f1`.
            parity: from `compare_logprobs`, for results that have `parity_passed` and `max_abs_logprob_diff`.
            results: the other fields of the stage's results in helpers.runs.manifest.

        Raises:
            RunError: an artefact is not there.
        """
        missing = [name for name in artefacts if not self.file(name).exists()]
        if missing:
            raise RunError(
                f"stage '{self.name}' did not write {', '.join(missing)}",
                "run its notebook again from the top",
            )
        if score:
            results |= {name: score[name] for name in ("correct", "total", "accuracy")}
            results |= {"mean_f1": self.task.measures(score["samples"]).get("mean_f1")}
        if parity:
            results |= {"parity_passed": parity["passed"]}
            results |= {"max_abs_logprob_diff": parity["max_abs_logprob_diff"]}
        work = {kind: spent - self._work_before.get(kind, 0.0) for kind, spent in work_done().items()}
        with self.run.edit() as manifest:
            manifest.stages.finish(
                self.name,
                seconds=round(time.monotonic() - self._started, 1),
                work_seconds={kind: round(spent, 1) for kind, spent in work.items() if spent > 0.05},
                summary=summary,
                results=results,
                artefacts=[f"{self.name}/{name}" for name in artefacts],
            )
        print(summary)
