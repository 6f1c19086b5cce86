"""A merged model's card: `README.md` for the Hugging Face hub, from what the run recorded and nothing else.

    write_model_card(run)

The text is in `templates/model_card.md.jinja`; here is where its values come from.
"""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers import local_model
from helpers.data.hub import HUB
from helpers.errors import RunError
from helpers.evaluate.score import Headline, Score
from helpers.evaluate.tasks import Task
from helpers.files import read_json, write_text
from helpers.runs.manifest import Manifest, Stages
from helpers.runs.result_files import EVALUATION, MERGE_PARITY, VLLM_PARITY, Evaluation, Parity
from helpers.runs.run import Run
from helpers.text import percent
from helpers.train.chat_template import refuses_questions
from helpers.train.guide import GUIDE_STOP, guide_prompt
from helpers.weights.served_format import TEMPLATE

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

TEMPLATES = Path(__file__).parent / "templates"
SERVICES = {"stub": "the Tinker course's stub backend", "hosted": "hosted Tinker"}
SETTINGS = ["rank", "epochs", "batch_size", "learning_rate", "max_length", "seed", "best_metric", "patience"]
PARTS = {"train": "train.json", "validation": "validation.json", "test": "test_set.json"}
# Of these, nothing is said if what was merged is a checkpoint from elsewhere.
HOW_IT_WAS_TRAINED = ("split", "train", "evaluate")


def write_model_card(run: Run) -> Path:
    """Write `README.md`, a Hugging Face model card, into the run's merged model, over one that is there.

    All in it is read from the run: stages that are not done are left out.

    Returns:
        The card's path.

    Raises:
        RunError: the merge stage is not done, its folder is gone or can't be written, or a result file of a
            stage that is done is missing or damaged.
    """
    import jinja2
    from huggingface_hub import ModelCard

    folder = merged_folder(run)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: str(value).replace(
            "<", "&lt;"
        ),  # the hub renders HTML that stands in Markdown
    )
    environment.filters["cell"] = lambda value: str(value).replace("|", "\\|").replace("\n", " ")
    card = ModelCard(environment.get_template("model_card.md.jinja").render(card_values(run)))
    return write_text(folder / "README.md", str(card).rstrip() + "\n")


def merged_folder(run: Run) -> Path:
    """The folder of a run's merged model.

    Raises:
        RunError: the merge stage is not done, or the folder is gone.
    """
    run.stage("merge")
    folder = run.file("merge/merged_model")
    if not folder.is_dir():
        raise RunError(
            f"run {run.name} has no folder merge/merged_model", "run notebooks/05_merge.ipynb again"
        )
    return folder


def card_values(run: Run) -> dict[str, Any]:
    """What the template fills in, by name."""
    manifest = run.manifest
    stages = _stages_to_tell(run, manifest)
    evaluation = EVALUATION.read(run.path) if stages.evaluate else None
    task = manifest.task
    base = base_model_of(manifest.base_model or "")
    places = _data_files(stages)
    return {
        "front_matter": _front_matter(run.name, base, stages, task, places).to_yaml(),
        "name": run.name,
        "base": base,
        "where": SERVICES.get(manifest.backend.kind if manifest.backend else "", "a Tinker server"),
        "stages": stages,
        "task": task if stages.split else None,
        "evaluation": evaluation,
        "score_head": ["", "right", task.measure, "95% interval"]
        + (["mean F1 (95% interval)"] if task.name == "text" else []),
        "scores": [_score_row(name, own, task) for name, own in _scores(stages, task, evaluation)],
        "asked": [[row.name, row.told(task)] for row in evaluation.base_promptings] if evaluation else [],
        "stop": [f"`{text!r}`" for text in GUIDE_STOP],
        "stop_strings": ", ".join(map(json.dumps, GUIDE_STOP)),
        "guide_prompt": guide_prompt({"instruction": "…", "input": "…"}),
        "by_template": _has_template(merged_folder(run)),
        "sources": [f"`{place}`" for place in places],
        "hub_data": any(_of_hub(place) for place in places),
        "parts": _parts(run),
        "training": _training(stages, manifest),
        "parities": _parities(run, stages),
        "packages": manifest.packages,
    }


# ---- what is told, and what is not


def _has_template(folder: Path) -> bool:
    """Whether the model's folder has a chat template that writes the prompts of training."""
    template = folder / TEMPLATE
    return template.is_file() and not refuses_questions(template.read_text(encoding="utf-8"))


def _stages_to_tell(run: Run, manifest: Manifest) -> Stages:
    """The stages that are done, without those that did not make this model."""
    left_out = {name for name, entry in manifest.stages.items() if entry.status != "done"}
    if not _made_by_this_run(run, manifest.stages):
        left_out |= set(HOW_IT_WAS_TRAINED)
    return manifest.stages.model_copy(update=dict.fromkeys(left_out))


def _made_by_this_run(run: Run, stages: Stages) -> bool:
    """Whether what was merged is the checkpoint that this run trained and scored, not one typed by hand."""
    typed = stages.export.settings.checkpoint_path if stages.export else ""
    if not typed:
        return True
    best = run.file("train/best_checkpoint.json")
    found = read_json(best) if best.is_file() else {}
    # The parity check compares the merged model with the best checkpoint.
    same = stages.merge and stages.merge.results and stages.merge.results.parity_passed
    return typed in (found.get("state_path"), found.get("sampler_path")) or bool(same)


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """What a card says of the base model.

    Attributes:
        id: its name on the hub; empty if unknown.
        licence: empty if unknown.
        name: for people.
        note: what a reader should know of it; may be empty.
    """

    id: str
    licence: str
    name: str
    note: str = ""


def base_model_of(recorded: str) -> BaseModel:
    """The base model that a run recorded, a hub name or a local folder."""
    if match := re.fullmatch(r"(\w[\w.-]*/[\w.-]+)(:.+)?", recorded):  # Tinker's names may end in :variant
        return BaseModel(id=match[1], licence="", name=recorded)
    readme = Path(recorded) / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    if text == local_model.README:
        return BaseModel(
            id=f"HuggingFaceTB/{local_model.LOCAL_MODEL}",
            licence="apache-2.0",
            name=local_model.LOCAL_MODEL,
            note="The base model came from a 4-bit file, dequantised, which costs a little quality against "
            "its original weights.",
        )
    note = "The base model was a local folder; its name on the hub is not known."
    return BaseModel(id="", licence=_licence(text), name=Path(recorded).name, note=note)


def _licence(card: str) -> str:
    """What the head of a model card names as licence; empty if it names none, or can't be read."""
    from huggingface_hub import ModelCard

    if not card.startswith("---"):
        return ""
    try:
        return str(ModelCard(card, ignore_metadata_errors=True).data.to_dict().get("license") or "")
    except Exception:  # someone's file, with anything in it
        return ""


# ---- the head


def _front_matter(
    name: str, base: BaseModel, stages: Stages, task: Task, places: list[str]
) -> "ModelCardData":
    from huggingface_hub import ModelCardData

    return ModelCardData(
        model_name=name,
        base_model=base.id or None,
        license=base.licence or "unknown",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["tinker", "tinker-cookbook", "lora", "merged"],
        eval_results=_eval_results(stages, task, places),
    )


def _eval_results(stages: Stages, task: Task, places: list[str]) -> "list[EvalResult]":
    """This model's scores, as the hub lists them."""
    from huggingface_hub import EvalResult

    on_hub = [place.removeprefix(HUB) for place in places if _of_hub(place)]
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=re.split("[:@#]", on_hub[0])[0] if len(on_hub) == 1 else "custom",
            dataset_name=f"held-out part of {', '.join(places) or 'the data of its run'}",
            metric_type=task.measure.replace(" ", "_"),  # the hub's names: accuracy, exact_match
            metric_value=round(own.score.accuracy, 4),
            metric_name=f"{task.measure}, {own.score.correct} of {own.score.total}, {engine}",
        )
        for engine, own in _own_scores(stages, task)
    ]


# ---- the tables


def _own_scores(stages: Stages, task: Task) -> list[tuple[str, Headline]]:
    """What the merged model scored, by engine."""
    entries = {"transformers": stages.merge, "vLLM": stages.vllm}
    return [
        (engine, task.headline_of(Score(entry.results.correct, entry.results.total), entry.results.mean_f1))
        for engine, entry in entries.items()
        if entry and entry.results
    ]


def _scores(stages: Stages, task: Task, evaluation: Evaluation | None) -> list[tuple[str, Headline]]:
    rows = []
    if evaluation:
        base, tuned = evaluation.headlines["base"], evaluation.headlines["tuned"]
        rows = [
            (f"base model, asked in: {evaluation.base_prompting}", base),
            ("tuned model, Tinker sampler", tuned),
        ]
        rows += [
            (f"… {kind} templates", task.headline_of(row.score, None))
            for kind, row in evaluation.by_template.items()
        ]
    return rows + [(f"this model, {engine}", own) for engine, own in _own_scores(stages, task)]


def _score_row(name: str, headline: Headline, task: Task) -> list[str]:
    score, (low, high) = headline.score, headline.score.ci95
    cells = [name, f"{score.correct}/{score.total}", percent(score.accuracy)]
    cells.append(f"{percent(low)} to {percent(high)}")
    return [*cells, *_mean_f1(headline)] if task.name == "text" else cells


def _mean_f1(headline: Headline) -> list[str]:
    if not (mean := headline.mean_f1):
        return ["–"]
    low, high = mean.ci95
    return [f"{mean.value:.2f} ({low:.2f} to {high:.2f})"]


def _of_hub(place: str) -> bool:
    """Whether a data file is one of the hub; `hub:/…` is a folder of this machine."""
    return place.startswith(HUB) and not place.startswith(f"{HUB}/")


def _data_files(stages: Stages) -> list[str]:
    """The data files' names; of files on this machine, without their folders."""
    named = stages.split.settings.data_files.split(",") if stages.split else []
    places = [place.strip() for place in named if place.strip()]
    return [place if _of_hub(place) else Path(place).name for place in places]


def _parts(run: Run) -> list[list[Any]]:
    """Name, count of records and SHA-256 of each part of the split."""
    rows = []
    for part, name in PARTS.items():
        path = run.file(f"split/{name}")
        if path.is_file():
            rows.append([part, len(read_json(path)), hashlib.sha256(path.read_bytes()).hexdigest()])
    return rows


def _training(stages: Stages, manifest: Manifest) -> list[list[Any]]:
    if not stages.train or not stages.train.results:
        return []
    settings, results = stages.train.settings, stages.train.results
    rows = [[name.replace("_", " "), getattr(settings, name)] for name in SETTINGS]
    rows += [
        ["optimizer steps planned", results.steps],
        ["step of the checkpoint taken, the best on validation data", results.best_step],
        ["loss at the first step, nats a token", results.first_nll],
        ["loss at the last step, nats a token", results.last_nll],
    ]
    if stages.export and stages.export.results:
        rows.append(["sha256 of the adapter's archive", stages.export.results.archive.sha256])
    return [*rows, ["run made", manifest.created.date().isoformat()]]


def _parities(run: Run, stages: Stages) -> list[list[Any]]:
    found: list[tuple[str, Parity]] = []
    if stages.merge:
        found.append(("this model with the trained one, as Tinker samples it", MERGE_PARITY.read(run.path)))
    if stages.vllm:
        found.append(("this model in vLLM with it in transformers", VLLM_PARITY.read(run.path)))
    return [
        [
            name,
            f"{parity.max_abs_logprob_diff:.1e}",
            f"{parity.tolerance:.1e}",
            parity.prompts,
            "yes" if parity.passed else "**no**",
        ]
        for name, parity in found
    ]
