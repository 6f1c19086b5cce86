"""Model cards say what the run recorded and nothing else."""

import hashlib
import json
import os
import re
import shutil
from typing import Any

import pytest
import runs_for_tests
from huggingface_hub import ModelCard
from tiny_models import make_merged_folder

from helpers import local_model
from helpers.errors import RunError
from helpers.evaluate.score import Score, wilson_interval
from helpers.files import write_json
from helpers.runs import publish_to_hub, write_model_card
from helpers.runs.manifest import BackendUsed
from helpers.runs.run import Run
from helpers.runs.stages import STAGES
from helpers.serve import generate_with_transformers
from helpers.train.renderers import get_renderer, prompt_tokens
from helpers.weights.base_model import load_base
from helpers.weights.served_format import write_chat_template, write_end_tokens

RIGHT = "y" * 90 + "n" * 30  # 90 of 120; the base model gets the last one right, and no other
UNTIL_MERGE = tuple(STAGES)[:-1]
BEST = {"state_path": "tinker://r/weights/8", "sampler_path": "tinker://r/sampler_weights/8"}


def make_run(
    base: str = "Qwen/Qwen3-8B", parity: bool = True, done: tuple[str, ...] = tuple(STAGES), **settings: Any
) -> Run:
    """A run of hosted Tinker with a merged model, its data in a private folder."""
    backend = BackendUsed(kind="hosted", url="https://secret.example/team")
    settings = {"data_files": "/home/me/private/word_problems.json", **settings}
    manifest = {"base_model": base, "backend": backend}
    run = runs_for_tests.make_run("", done, RIGHT, manifest=manifest, **settings)
    if "merge" in done:
        make_merged_folder(run.file("merge/merged_model"))
        if not parity:
            change(run, "merge/parity.json", passed=False)
            with run.edit() as changed:
                changed.stages.merge.results.parity_passed = False  # pyright: ignore
    return run


def change(run: Run, name: str, **values: Any) -> None:
    """Replace values in a file of a run."""
    write_json(run.file(name), {**json.loads(run.file(name).read_text()), **values})


@pytest.fixture(autouse=True)
def runs_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_RUNS_DIR", str(tmp_path / "runs"))


def test_the_card_says_what_the_run_recorded():
    run = make_run()
    templates = {"seen": Score(80, 100).fields(), "unseen": Score(10, 20).fields()}
    change(run, "evaluate/model_evaluation.json", by_template=templates)
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
        "rank 8, alpha 32",
        "2,442,240",
        "| base model, asked in: chat template | 1/120 | 0.8% |",
        "| … unseen templates | 10/20 | 50.0% |",
        f"| tuned model, Tinker sampler | 90/120 | 75.0% | {low:.1%} to {high:.1%} |",
        "| this model, transformers | 90/120 |",
        "| this model, vLLM | 90/120 |",
        "gained 90 and lost 1",
        "p = 0.22",
        "| 2.0e-05 | 5.0e-04 | 4 | yes |",
        "| this model in vLLM with it in transformers |",
        "190 records",
        "`word_problems.json`",
        "reach across the parts: 0",
        "| learning rate | 0.001 |",
        "| optimizer steps planned | 8 |",
        "| sha256 of the adapter's archive | abab",
        "Instruction: …\nInput: …\nResponse:",
        f"| transformers | {run.manifest.packages['transformers']} |",
        "They say nothing about other tasks",
    ):
        assert expected in text, expected
    assert f"| train | 64 | {hashlib.sha256(run.file('split/train.json').read_bytes()).hexdigest()} |" in text


def test_the_card_tells_no_private_paths_and_addresses():
    text = write_model_card(make_run(base="/home/me/models/mine")).read_text()
    assert "/home/me" not in text and "secret.example" not in text and "tinker://" not in text
    assert "`mine`" in text and "base_model" not in text


def test_names_are_no_markup():
    hostile = "<img src=x onerror=alert(1)>"
    text = write_model_card(
        make_run(base=f"/models/{hostile}", data_files=f"/data/{hostile}.json")
    ).read_text()
    assert "<img" not in text and text.count("&lt;img src=x") >= 2


def test_stages_that_are_not_done_are_left_out():
    run = make_run(done=UNTIL_MERGE)
    text = write_model_card(run).read_text()
    assert "vLLM" not in text and "tuned model, Tinker sampler" in text
    with run.edit() as manifest:
        assert manifest.stages.split
        manifest.stages.split.status, manifest.stages.evaluate = "stale", None
    text = write_model_card(run).read_text()
    for absent in (
        "1/120",
        "Tinker sampler |",
        "McNemar",
        "## Data",
        "None",
        "nan",
        "unknown precision",
    ):
        assert absent not in text, absent
    assert (
        "| this model, transformers | 90/120 |" in text
        and "no scores that compare this model with its base model" in text
    )


def test_settings_and_scores_of_another_checkpoint_are_not_claimed():
    for path in BEST.values():
        assert (
            "Tinker sampler |" in write_model_card(make_run(checkpoint_path=path, parity=False)).read_text()
        )
    text = write_model_card(make_run(checkpoint_path="tinker://other/weights/x", parity=False)).read_text()
    assert "Tinker sampler |" not in text and "learning rate" not in text and "## Data" not in text
    assert (
        "| this model, transformers | 90/120 |" in text
        and "**no**" in text
        and "How the merged checkpoint was trained is not recorded" in text
    )


def test_a_difference_that_may_be_chance_is_called_so():
    run = make_run()
    assert "may be chance" in write_model_card(run).read_text()
    change(run, "evaluate/model_evaluation.json", p_value=0.04)
    assert "may be chance" not in write_model_card(run).read_text()


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
        write_model_card(make_run(done=UNTIL_MERGE[:-1]))


def test_the_hub_can_list_the_scores_of_this_model():
    run = make_run()
    found: Any = ModelCard.load(write_model_card(run)).data
    assert found.model_name == run.name
    assert [(row.metric_value, row.metric_name) for row in found.eval_results] == [
        (0.75, "accuracy, 90 of 120, transformers"),
        (0.75, "accuracy, 90 of 120, vLLM"),
    ]
    assert {row.dataset_type for row in found.eval_results} == {"custom"}
    assert {row.dataset_name for row in found.eval_results} == {"held-out part of word_problems.json"}
    run = make_run(data_files="hub:nyu-mll/glue:sst2#train")
    found = ModelCard.load(write_model_card(run)).data
    assert {row.dataset_type for row in found.eval_results} == {"nyu-mll/glue"}


def test_the_card_names_the_measures_of_free_text_and_warns():
    run = runs_for_tests.make_text_run()
    make_merged_folder(run.file("merge/merged_model"))
    found: Any = ModelCard.load(write_model_card(run))
    assert {row.metric_type for row in found.data.eval_results} == {"exact_match"}
    for words in (
        "|  | right | exact match | 95% interval | mean F1 (95% interval) |",
        "| this model, vLLM | 5/10 | 50.0% | 23.7% to 76.3% | 0.50 (0.24 to 0.76) |",
        "**WARNING: mean F1 gives 0.5 or more to 8 of 10 answers to other problems",
        "| chat template, 8 examples | not asked: there is no room |",
        "- mismatched answers, the references of other problems: exact match 0/10",
    ):
        assert words in found.text, words


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
        publish_to_hub(make_run(done=UNTIL_MERGE[:-1]), "me/my-model")


def test_a_result_that_is_missing_is_named():
    run = make_run()
    run.file("vllm/parity.json").unlink()
    with pytest.raises(RunError, match=r"(?s)vllm/parity\.json is missing.*06_vllm_inference"):
        write_model_card(run)


@pytest.mark.parametrize("name", ["guide", "template", "qwen3_instruct", "role_colon"])
def test_the_snippet_of_the_card_asks_as_in_training(small_model, name, monkeypatch, capsys):
    """As it stands, where the model is; of `role_colon` no chat template makes the local model's tokens."""
    renderer = get_renderer(name, small_model)
    run = make_run(prompt_format=name, max_tokens=8)
    folder = run.file("merge/merged_model")
    shutil.rmtree(folder)
    shutil.copytree(small_model, folder)
    write_chat_template(folder, renderer)
    write_end_tokens(folder, renderer)
    [snippet] = re.findall(r"```python\n(.*?)```", write_model_card(run).read_text(), re.DOTALL)
    assert ("apply_chat_template" in snippet) == (name != "role_colon")
    monkeypatch.chdir(folder.parent)
    exec(snippet, {})
    record = {"instruction": "…", "input": "…" if name == "guide" else ""}
    prompts, model = [prompt_tokens(record, renderer)], load_base(folder)
    [expected] = generate_with_transformers(model, renderer, prompts, 8, progress=False)
    assert capsys.readouterr().out.strip() == expected.text
