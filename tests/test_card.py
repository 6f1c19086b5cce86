"""Model cards say what the run recorded and nothing else."""

import hashlib
import json
import os
from typing import Any

import pytest
from huggingface_hub import ModelCard
from tiny_models import make_merged_folder

from helpers import local_model
from helpers.errors import RunError
from helpers.evaluate.score import wilson_interval
from helpers.files import write_json
from helpers.runs import publish_to_hub, write_model_card
from helpers.runs.manifest import BackendUsed
from helpers.runs.run import Run, new_run
from helpers.runs.settings import settings_of
from helpers.runs.stages import STAGES

BEST = {"state_path": "tinker://r/weights/best", "sampler_path": "tinker://r/sampler_weights/best"}
PARITY = {"max_abs_logprob_diff": 1.2e-5, "tolerance": 3.4e-5, "prompts": 32, "passed": True}
EXAMPLE = {"instruction": "2 + 3?", "input": "", "output": "Final answer: 5"}
EVALUATION = {
    "base_correct": 6,
    "test_correct": 90,
    "test_size": 120,
    "by_template": {"seen": {"correct": 80, "total": 100}, "unseen": {"correct": 10, "total": 20}},
    "gained": 85,
    "lost": 1,
    "p_value": 2.2e-20,
}
SETTINGS = {
    "data_files": "/home/me/private/word_problems.json",
    "temperature": 0.0,
    "rank": 32,
    "learning_rate": 1e-3,
    "prompt_format": "guide",
}
RESULTS: dict[str, dict[str, Any]] = {
    "split": {
        "task": {"name": "math"},
        "sources": [],
        "leaks": 0,
        "records": 1248,
        "sizes": {"train": 3, "validation": 1, "test": 2},
        "seed": 42,
        "stratified_by": None,
        "unseen_templates": [],
        "duplicates": {"exact_groups": 0, "near_groups": 0, "records": 0},
        "left_out": {},
        "notes": [],
    },
    "train": {"steps": 113, "best_step": 84, "first_nll": 1.61, "last_nll": 0.08, "tokens_an_epoch": 9000},
    "evaluate": {
        "base_accuracy": 0.05,
        "test_accuracy": 0.75,
        "p_value": 2.2e-20,
        "base_from": None,
        "base_asked": {
            "base_model": "b",
            "backend": "stub",
            "test_set": "0" * 64,
            "prompt_format": "guide",
            "max_tokens": 96,
            "temperature": 0.0,
            "seed": None,
        },
    },
    "export": {
        "checkpoint": "tinker://r/external_weights/final",
        "archive": {
            "checkpoint": "tinker://r/external_weights/final",
            "source": "tinker://r/external_weights/final",
            "archive": "model-checkpoint.tar.gz",
            "bytes": 1,
            "sha256": "ab" * 32,
            "files": {},
        },
        "rank": 32,
        "alpha": 32.0,
        "parameters": 9_768_960,
    },
    "merge": {
        "correct": 89,
        "total": 120,
        "accuracy": 89 / 120,
        "parity_passed": True,
        "max_abs_logprob_diff": 1.2e-5,
    },
    "vllm": {
        "correct": 91,
        "total": 120,
        "accuracy": 91 / 120,
        "parity_passed": True,
        "max_abs_logprob_diff": 7.7e-6,
        "tokens_per_second": 600.0,
    },
}


def make_run(base: str = "Qwen/Qwen3-8B", parity: bool = True, upto: str = "vllm", **settings: Any) -> Run:
    """A run as the notebooks leave it, with every stage up to one of them."""
    run = new_run()
    with run.edit() as manifest:
        manifest.base_model, manifest.seed = base, 42
        manifest.backend = BackendUsed(kind="hosted", url="https://secret.example/team")
        for name in list(STAGES)[: list(STAGES).index(upto) + 1]:
            verdict = {"parity_passed": parity} if name == "merge" else {}
            manifest.stages.begin(name, settings_of(name, {**SETTINGS, **settings}), [])
            manifest.stages.finish(name, results=RESULTS[name] | verdict)
    for name, count in {"train": 3, "validation": 1, "test_set": 2}.items():
        write_json(run.file(f"split/{name}.json"), [EXAMPLE] * count)
    write_json(run.file("train/best_checkpoint.json"), BEST)
    write_json(run.file("evaluate/model_evaluation.json"), EVALUATION)
    write_json(run.file("merge/parity.json"), {**PARITY, "passed": parity})
    write_json(run.file("vllm/parity.json"), {**PARITY, "max_abs_logprob_diff": 7.7e-6})
    if run.manifest.stages.is_done("merge"):
        make_merged_folder(run.file("merge/merged_model"))
    return run


@pytest.fixture(autouse=True)
def runs_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_RUNS_DIR", str(tmp_path / "runs"))


def test_the_card_says_what_the_run_recorded():
    run = make_run()
    path = write_model_card(run)
    assert path == run.file("merge/merged_model/README.md")
    head = ModelCard.load(path).data.to_dict()
    assert head["base_model"] == "Qwen/Qwen3-8B" and head["license"] == "unknown"
    assert head["library_name"] == "transformers" and head["pipeline_tag"] == "text-generation"
    assert {"tinker", "lora"} <= set(head["tags"])
    text = path.read_text()
    low, high = wilson_interval(90, 120)
    for expected in (
        "[Qwen/Qwen3-8B](https://huggingface.co/Qwen/Qwen3-8B)",
        "hosted Tinker",
        "rank 32, alpha 32",
        "9,768,960",
        "| base model | 6/120 | 5.0% |",
        "| … unseen templates | 10/20 | 50.0% |",
        f"| tuned model, Tinker sampler | 90/120 | 75.0% | {low:.1%} to {high:.1%} |",
        "| this model, transformers | 89/120 |",
        "| this model, vLLM | 91/120 |",
        "gained 85 and lost 1",
        "p = 2.2e-20",
        "| 1.2e-05 | 3.4e-05 | 32 | yes |",
        "| 7.7e-06 |",
        "1,248 records",
        "`word_problems.json`",
        "reach across the parts: 0",
        "| learning rate | 0.001 |",
        "| optimizer steps planned | 113 |",
        "| sha256 of the adapter's archive | abab",
        "Instruction: …\nInput: …\nResponse:",
        f"| transformers | {run.manifest.packages['transformers']} |",
        "They say nothing about other tasks",
    ):
        assert expected in text, expected
    assert f"| train | 3 | {hashlib.sha256(run.file('split/train.json').read_bytes()).hexdigest()} |" in text


def test_the_card_tells_no_private_paths_and_addresses():
    text = write_model_card(make_run(base="/home/me/models/mine")).read_text()
    assert "/home/me" not in text and "secret.example" not in text and "tinker://" not in text
    assert "`mine`" in text and "base_model" not in text


def test_stages_that_are_not_done_are_left_out():
    run = make_run(upto="merge")
    text = write_model_card(run).read_text()
    assert "vLLM" not in text and "tuned model, Tinker sampler" in text
    with run.edit() as manifest:
        assert manifest.stages.split
        manifest.stages.split.status, manifest.stages.evaluate = "stale", None
    run.file("merge/parity.json").unlink()
    text = write_model_card(run).read_text()
    for absent in (
        "6/120",
        "90/120",
        "McNemar",
        "## Data",
        "Is it the trained model",
        "None",
        "nan",
        "unknown precision",
    ):
        assert absent not in text, absent
    assert (
        "| this model, transformers | 89/120 |" in text
        and "no scores that compare this model with its base model" in text
    )


def test_settings_and_scores_of_another_checkpoint_are_not_claimed():
    for path in BEST.values():
        assert "90/120" in write_model_card(make_run(checkpoint_path=path, parity=False)).read_text()
    text = write_model_card(make_run(checkpoint_path="tinker://other/weights/x", parity=False)).read_text()
    assert "90/120" not in text and "learning rate" not in text and "## Data" not in text
    assert (
        "| this model, transformers | 89/120 |" in text
        and "**no**" in text
        and "How the merged checkpoint was trained is not recorded" in text
    )


def test_a_difference_that_may_be_chance_is_called_so():
    run = make_run()
    file = run.file("evaluate/model_evaluation.json")
    write_json(file, {**json.loads(file.read_text()), "p_value": 0.4})
    assert "may be chance" in write_model_card(run).read_text()


def test_licences_are_read_and_not_guessed(tmp_path):
    for number, (readme, licence, base) in enumerate(
        [
            (local_model.README, "apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct"),
            ("---\nlicense: mit\ntags: [a]\n---\nlicense: gpl-3.0\n", "mit", None),
            ("---\ntags: [a]\n---\nlicense: gpl-3.0\n", "unknown", None),
            ("---\n: [\n", "unknown", None),
        ]
    ):
        folder = tmp_path / f"base-{number}"
        folder.mkdir()
        (folder / "README.md").write_text(readme)
        card = ModelCard.load(write_model_card(make_run(base=str(folder))))
        head = card.data.to_dict()
        assert (head["license"], head.get("base_model")) == (licence, base)
        assert ("look it up" in card.text) == (licence == "unknown") and ("4-bit" in card.text) == (
            number == 0
        )


def test_no_card_without_a_merged_model():
    with pytest.raises(RunError, match="05_merge"):
        write_model_card(make_run(upto="export"))


def test_the_hub_can_list_the_scores_of_this_model():
    run = make_run()
    found: Any = ModelCard.load(write_model_card(run)).data
    assert found.model_name == run.name
    assert [(row.metric_value, row.metric_name) for row in found.eval_results] == [
        (0.7417, "89 of 120 right, transformers"),
        (0.7583, "91 of 120 right, vLLM"),
    ]
    assert {row.dataset_type for row in found.eval_results} == {"custom"}
    assert {row.dataset_name for row in found.eval_results} == {"held-out part of word_problems.json"}
    run = make_run(data_files="hub:nyu-mll/glue:sst2#train")
    found = ModelCard.load(write_model_card(run)).data
    assert {row.dataset_type for row in found.eval_results} == {"nyu-mll/glue"}


def test_every_heading_stands_apart_and_tables_hold_together():
    lines = write_model_card(make_run()).read_text().splitlines()
    for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
        if line.startswith("#"):
            assert before == "" and after == "", line
        if line.startswith("| ---"):
            assert before.startswith("|") and after.startswith("|"), line
        assert not (line == "" and before == "" and after == ""), "three empty lines"


def test_a_cell_cannot_end_its_table():
    run = make_run()
    run.update(packages={"a|b": "1\n2"})
    assert "| a\\|b | 1 2 |" in write_model_card(run).read_text()


def test_the_card_is_written_for_publishing_and_a_change_by_hand_stays(capsys):
    run = make_run()
    card = run.file("merge/merged_model/README.md")
    assert publish_to_hub(run, "me/taught") is None
    assert f"# {run.name}" in capsys.readouterr().out
    card.write_text(card.read_text().replace("license: unknown", "license: mit"))
    publish_to_hub(run, "me/taught")
    assert "license: mit" in capsys.readouterr().out
    os.utime(card, (1, 1))  # older than the stages: something was done again
    publish_to_hub(run, "me/taught")
    assert "license: unknown" in capsys.readouterr().out


def test_a_run_without_a_merged_model_is_not_published():
    with pytest.raises(RunError, match="05_merge"):
        publish_to_hub(make_run(upto="export"), "me/my-model")
