"""Made-up runs for tests: a folder with manifest and files as the notebooks leave them, in milliseconds.

    run = make_run("mine", done=("split", "train"), rank=8)
    run = make_run("mine", right="yyn")             # of three test problems the tuned model gets two right
    finish_stage(run, "merge", results={"correct": 1})

The base model, asked in its chat template, gets the last test problem right and no other.
"""

import json
from datetime import datetime
from typing import Any

from helpers.evaluate.score import Score
from helpers.runs.manifest import BackendUsed
from helpers.runs.run import Run, data_fingerprints, new_run
from helpers.runs.settings import check_settings, settings_of
from helpers.runs.stages import STAGES

RIGHT = "yyyyynnnnn"
ASKED = "chat template"
MADE = datetime.fromisoformat("2026-11-20T10:00:00+00:00")
MERGED = {  # a model as far as tests look into it; the tensors are those of no model
    "config.json": {"model_type": "llama"},
    "tokenizer.json": {"model": {}},
    "generation_config.json": {},
}


def make_run(
    name: str = "taught",
    done: tuple[str, ...] = tuple(STAGES),
    right: str = RIGHT,
    text: str = "",
    created: datetime = MADE,
    manifest: dict[str, Any] | None = None,
    **settings: Any,
) -> Run:
    """A run whose stages in `done` are finished.

    Args:
        right: a letter for each test problem, y where the tuned and the merged model are right.
        text: stands in problems, answers and the category.
        manifest: other entries of the manifest, such as `packages` or `sweep`.
        settings: what the user chose.
    """
    run = new_run(name)
    chosen = check_settings(settings)
    backend = BackendUsed(kind="stub", url=None)
    own = {"created": created, "settings": chosen, "base_model": "/models/Small-1B", "backend": backend}
    run.update(**own | (manifest or {}))
    for stage in done:
        finish_stage(run, stage, right, text, **chosen)
    return run


def make_text_run(name: str = "texts", alike: int = 8) -> Run:
    """A run of free text with mean F1s; `alike` of the ten mismatched answers share half of their words."""
    run, found = make_run(name), controls(10, alike=alike)
    path = run.file("evaluate/model_evaluation.json")
    measures = {"base": {"mean_f1": 0.25}, "tuned": {"mean_f1": 0.5}}
    changed = {"task": {"name": "text"}, "measures": measures, "controls": found}
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    manifest = json.loads(run.manifest_path.read_text())
    stages = manifest["stages"]
    stages["split"]["results"]["task"] = {"name": "text"}
    stages["evaluate"]["results"] |= {"base_mean_f1": 0.25, "test_mean_f1": 0.5, "controls": found}
    stages["merge"]["results"]["mean_f1"] = stages["vllm"]["results"]["mean_f1"] = 0.5
    run.manifest_path.write_text(json.dumps(manifest))
    return run


def begin_stage(run: Run, stage: str, **settings: Any) -> None:
    """A stage under way, as `open_stage` leaves it. It takes those of the settings that are its own."""
    own = settings_of(stage, settings)
    with run.edit() as manifest:
        manifest.failure = None
        manifest.seed = own.seed if stage == "split" else manifest.seed
        data = data_fingerprints(own.data_files) if stage == "split" else []
        manifest.stages.begin(stage, own, data)
    run.file(stage).mkdir(exist_ok=True)


def finish_stage(
    run: Run,
    stage: str,
    right: str = RIGHT,
    text: str = "",
    results: dict[str, Any] | None = None,
    summary: str = "",
    **settings: Any,
) -> None:
    """Begin and finish a stage, with its files.

    Args:
        results: fields that differ from the made-up ones.
    """
    begin_stage(run, stage, **settings)
    files = files_of(stage, right, text)
    for name, value in files.items():
        path = run.file(f"{stage}/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = name.endswith(".jsonl")
        path.write_text(
            "".join(json.dumps(row) + "\n" for row in value) if lines else json.dumps(value, indent=2)
        )
    with run.edit() as manifest:
        manifest.stages.finish(
            stage,
            seconds=9.0,
            summary=summary or f"{stage} is done",
            artefacts=[f"{stage}/{name}" for name in files],
            results=results_of(run, stage, right) | (results or {}),
        )


def results_of(run: Run, stage: str, right: str = RIGHT) -> dict[str, Any]:
    """What the manifest keeps of a stage."""
    count, wins = len(right), right.count("y")
    scored = {"correct": wins, "total": count, "accuracy": wins / count, "parity_passed": True}
    return {
        "split": lambda: {
            "task": {"name": "math"},
            "sources": [],
            "leaks": 0,
            "records": 70 + count,
            "sizes": {"train": 64, "validation": 6, "test": count},
            "seed": 42,
            "stratified_by": None,
            "unseen_templates": [],
            "duplicates": {"exact_groups": 0, "near_groups": 0, "records": 0},
            "left_out": {"train": 0, "validation": 0, "test": 0},
            "notes": [],
        },
        "train": lambda: {
            "first_nll": 1.5,
            "last_nll": 0.1875,
            "steps": 8,
            "tokens_an_epoch": 4000,
            "best_step": 8,
        },
        "evaluate": lambda: {
            "base_accuracy": 1 / count,
            "base_mean_f1": None,
            "base_prompting": ASKED,
            "base_promptings": promptings(count),
            "test_accuracy": wins / count,
            "test_mean_f1": None,
            "controls": controls(count),
            "p_value": 0.21875,
            "base_asked": _base_asked(run),
            "base_from": None,
        },
        "export": lambda: {
            "checkpoint": "tinker://r/sampler_weights/best",
            "archive": {
                "checkpoint": "tinker://r/sampler_weights/best",
                "source": "tinker://r/weights/best",
                "archive": "model-checkpoint.tar.gz",
                "bytes": 812,
                "sha256": "ab" * 32,
                "files": {"adapter_config.json": {"bytes": 400, "sha256": "cd" * 32}},
            },
            "rank": 8,
            "alpha": 32.0,
            "parameters": 2_442_240,
        },
        "merge": lambda: {"max_abs_logprob_diff": 2e-5} | scored,
        "vllm": lambda: {"max_abs_logprob_diff": 2e-5, "tokens_per_second": 123.0} | scored,
    }[stage]()


def promptings(count: int) -> list[dict[str, Any]]:
    """How the base model did in each way of asking."""
    return [
        {"name": ASKED, "total": count, "correct": 1, "cut_off": 1},
        {"name": "chat template, 8 examples", "total": count, "left_out": "there is no room"},
        {"name": "format of training", "total": count, "correct": 0},
    ]


def controls(count: int, passed: int = 0, alike: int | None = None) -> dict[str, Any]:
    """The controls, `passed` of the mismatched answers being graded as right, and `alike` having an F1 of a
    half or more; the latter is of free text only.
    """
    mean_f1 = None if alike is None else 0.25
    return {
        "mismatched": {"correct": passed, "total": count, "mean_f1": mean_f1, "alike": alike},
        "majority": {"correct": 1, "total": count, "mean_f1": mean_f1, "alike": alike},
        "majority_answer": "4",
    }


def _base_asked(run: Run) -> dict[str, Any]:
    own = run.manifest.stages.evaluate.settings
    return {
        "base_model": "/models/Small-1B",
        "backend": "stub",
        "test_set": "ef" * 32,
        "examples": "fe" * 32,
        "prompt_format": "guide",
        "max_tokens": own.max_tokens,
        "temperature": own.temperature,
        "seed": own.seed if own.temperature else None,
    }


def files_of(stage: str, right: str = RIGHT, text: str = "") -> dict[str, Any]:
    """The files of a stage by name, the one a reader wants first at the head: JSON, or rows of a .jsonl."""
    return {
        "split": _split_files,
        "train": _train_files,
        "evaluate": _evaluate_files,
        "export": lambda right, text: {"model_weights/adapter_config.json": {"r": 8}},
        "merge": _merge_files,
        "vllm": _vllm_files,
    }[stage](right, text)


def _records(count: int, text: str) -> list[dict[str, Any]]:
    return [
        {
            "instruction": f"problem {i} {text}".strip(),
            "input": "",
            "output": f"Final answer: {i}",
            "answer": str(i),
        }
        for i in range(count)
    ]


def _split_files(right: str, text: str) -> dict[str, Any]:
    return {
        "train.json": _records(64, text),
        "validation.json": _records(6, text),
        "test_set.json": _records(len(right), text),
    }


def _train_files(right: str, text: str) -> dict[str, Any]:
    looks = [
        {
            "step": step,
            "epoch": step / 8,
            "loss": 2.0 / (step + 1),
            "accuracy": (step // 4) / 6,
            "correct": step // 4,
            "total": 6,
            "state_path": f"tinker://r/weights/{step}",
            "sampler_path": f"tinker://r/sampler_weights/{step}",
        }
        for step in (0, 4, 8)
    ]
    steps = [
        {"step": i, "epoch": i / 8, "train_nll": 1.5 / i, "tokens_per_second": 100.0 + i, "seconds": 1.0}
        for i in range(1, 9)
    ]
    return {"best_checkpoint.json": looks[-1], "metrics.jsonl": steps, "checkpoints.jsonl": looks}


def _evaluate_files(right: str, text: str) -> dict[str, Any]:
    count, wins = len(right), right.count("y")
    tuned = [
        {
            "index": i,
            "problem": f"problem {i} {text}",
            "output": f"tuned {text}",
            "expected": f"{i} {text}",
            "score": letter == "y",
        }
        for i, letter in enumerate(right)
    ]
    base = [row | {"output": f"base {text}", "score": i == count - 1} for i, row in enumerate(tuned)]
    flips = [
        {
            "flip": "gained" if after["score"] else "lost",
            "problem": after["problem"],
            "expected": after["expected"],
            "base": before["output"],
            "tuned": after["output"],
        }
        for before, after in zip(base, tuned, strict=True)
        if before["score"] != after["score"]
    ]
    kind = text[:60] or "sums"
    evaluation = {
        "model_path": "tinker://r/sampler_weights/best",
        "model_name": "Small-1B",
        "base_model": "/models/Small-1B",
        "base_accuracy": 1 / count,
        "base_correct": 1,
        "base_accuracy_ci95": list(Score(1, count).ci95),
        "base_from": None,
        "base_prompting": ASKED,
        "base_promptings": promptings(count),
        "measure": "accuracy",
        "test_accuracy": wins / count,
        "test_correct": wins,
        "test_size": count,
        "test_accuracy_ci95": list(Score(wins, count).ci95),
        "by_category": {kind: Score(wins, count).fields()},
        "base_by_category": {kind: Score(1, count).fields()},
        "by_template": {},
        "base_by_template": {},
        "task": {"name": "math"},
        "measures": {"base": {}, "tuned": {}},
        "controls": controls(count),
        "gained": sum(flip["flip"] == "gained" for flip in flips),
        "lost": sum(flip["flip"] == "lost" for flip in flips),
        "p_value": 0.21875,
    }
    return {
        "model_evaluation.json": evaluation,
        "samples.jsonl": tuned,
        "base_samples.jsonl": base,
        "base_other_samples.jsonl": [],
        "flips.jsonl": flips,
    }


PARITY = {
    "reference": "Tinker sampler",
    "other": "merged",
    "max_abs_logprob_diff": 2e-5,
    "mean_abs_logprob_diff": 1e-7,
    "token_agreement": 1.0,
    "prompts": 4,
    "tokens": 160,
    "tolerance": 5e-4,
    "mean_tolerance": 1e-5,
    "logit_noise": 1e-4,
    "passed": True,
}


def _merge_files(right: str, text: str) -> dict[str, Any]:
    control = PARITY | {"other": "base model", "max_abs_logprob_diff": 12.5, "passed": False}
    model = {f"merged_model/{name}": value for name, value in MERGED.items()}
    return {"parity.json": PARITY | {"negative_control": control}} | model


def _vllm_files(right: str, text: str) -> dict[str, Any]:
    speed = [{"at_once": 1, "tokens_per_second": 39.0}, {"at_once": 4, "tokens_per_second": 123.0}]
    return {
        "evaluation.json": {"throughput": speed, "others": {}, "dtype": "float32"},
        "parity.json": PARITY | {"other": "vLLM"},
    }
