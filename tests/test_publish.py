"""Model cards say what the run recorded and nothing else; nothing leaves this machine that should not."""

import hashlib
import json
import os
from types import SimpleNamespace

import httpx
import pytest
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from tinker_cookbook import weights

from helpers import local_model
from helpers.errors import BackendError, ModelError, RunError
from helpers.evaluate.score import wilson_interval
from helpers.files import write_json
from helpers.runs.publish import publish_to_hub, write_model_card
from helpers.runs.run import new_run

TRAINING = {
    "base_model": "",
    "rank": 32,
    "prompt_format": "guide",
    "max_length": 1024,
    "epochs": 1.0,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "seed": 42,
}
PARITY = {
    "max_abs_logprob_diff": 1.2e-5,
    "tolerance": 3.4e-5,
    "prompts": 32,
    "token_agreement": 1.0,
    "passed": True,
}


def merged_model(folder):
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({"model.norm.weight": torch.ones(1000)}, folder / "model.safetensors")
    for name, value in {
        "config.json": {"model_type": "llama"},
        "tokenizer.json": {"model": {}},
        "generation_config.json": {},
    }.items():
        write_json(folder / name, value)
    return folder


def stage(run, name, parameters, results, files=()):
    under_way = run.begin(name, parameters)
    for file, value in dict(files).items():
        write_json(under_way.file(file), value)
    under_way.finish("done", **results)


def make_run(base="Qwen/Qwen3-8B", checkpoint_path="", parity=PARITY, upto="vllm"):
    """A run as the notebooks leave it, with every stage up to one of them."""
    run = new_run("taught")
    example = {"instruction": "2 + 3?", "input": "", "output": "Final answer: 5"}
    evaluation = {
        "model_path": "tinker://r/sampler_weights/best",
        "base_model": base,
        "base_accuracy": 0.05,
        "base_correct": 6,
        "base_accuracy_ci95": [0, 1],
        "test_accuracy": 0.75,
        "test_correct": 90,
        "test_size": 120,
        "test_accuracy_ci95": [0, 1],
        "gained": 85,
        "lost": 1,
        "p_value": 2.2e-20,
    }
    stages = {
        "split": (
            {"data_files": "/home/me/private/word_problems.json"},
            {"records": 1248, "leaks": 0},
            {"train.json": [example] * 3, "validation.json": [example], "test_set.json": [example] * 2},
        ),
        "train": (
            TRAINING,
            {"steps": 113, "best_step": 84, "first_nll": 1.61, "last_nll": 0.08},
            {
                "best_checkpoint.json": {
                    "state_path": "tinker://r/weights/best",
                    "sampler_path": "tinker://r/sampler_weights/best",
                }
            },
        ),
        "evaluate": ({"temperature": 0.0}, {}, {"model_evaluation.json": evaluation}),
        "export": (
            {"checkpoint_path": checkpoint_path},
            {"rank": 32, "alpha": 32.0, "parameters": 9_768_960, "archive": {"sha256": "ab" * 32}},
            {},
        ),
        "merge": (
            {},
            {"dtype": "float32", "correct": 89, "total": 120, "parity_passed": parity["passed"]},
            {"parity.json": parity},
        ),
        "vllm": (
            {},
            {"correct": 91, "total": 120},
            {"parity.json": {**PARITY, "max_abs_logprob_diff": 7.7e-6}},
        ),
    }
    for name, (parameters, results, files) in stages.items():
        stage(run, name, parameters, results, files)
        if name == "train":
            run.update(
                base_model=base, backend={"kind": "hosted", "url": "https://secret.example/team"}, seed=42
            )
        if name == "merge":
            merged_model(run.file("merge/merged_model"))
        if name == upto:
            break
    return run


@pytest.fixture(autouse=True)
def runs_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_RUNS_DIR", str(tmp_path / "runs"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def model(tmp_path):
    folder = merged_model(tmp_path / "merged_model")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    return folder


@pytest.fixture
def hub(monkeypatch):
    """Stands for the hub: what was sent, and the answers it gives."""
    hub = SimpleNamespace(
        sent=[],
        repository=RepositoryNotFoundError(
            "404", response=httpx.Response(404, request=httpx.Request("GET", "https://x"))
        ),
        refusal=None,
    )

    def send(**arguments):
        if hub.refusal:
            raise hub.refusal
        hub.sent.append(arguments)
        return f"https://huggingface.co/{arguments['repo_id']}"

    def info(self, repo_id, **_):
        if isinstance(hub.repository, Exception):
            raise hub.repository
        return hub.repository

    monkeypatch.setattr(weights, "publish_to_hf_hub", send)
    monkeypatch.setattr(HfApi, "repo_info", info)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: os.environ.get("HF_TOKEN"))
    return hub


# ---- the card


def test_the_card_says_what_the_run_recorded():
    run = make_run()
    path = write_model_card(run)
    assert path == run.file("merge/merged_model/README.md")
    card = ModelCard.load(path)
    assert (
        card.data.base_model == "Qwen/Qwen3-8B"
        and card.data.library_name == "transformers"
        and card.data.pipeline_tag == "text-generation"
    )
    assert {"tinker", "lora"} <= set(card.data.tags) and card.data.license == "unknown"
    text = path.read_text()
    low, high = wilson_interval(90, 120)
    for expected in (
        "[Qwen/Qwen3-8B](https://huggingface.co/Qwen/Qwen3-8B)",
        "hosted Tinker",
        "rank 32, alpha 32",
        "9,768,960",
        "| base model | 6/120 | 5.0% |",
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
        f"| transformers | {run.manifest['packages']['transformers']} |",
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
    manifest = run.manifest
    del manifest["stages"]["evaluate"]
    manifest["stages"]["split"]["status"] = "stale"
    write_json(run.manifest_path, manifest)
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
    for path in ("tinker://r/weights/best", "tinker://r/sampler_weights/best"):
        run = make_run(checkpoint_path=path, parity={**PARITY, "passed": False})
        assert "90/120" in write_model_card(run).read_text()
        run.path.rename(run.path.with_name(f"kept-{path.count('s')}-{len(path)}"))
    text = write_model_card(
        make_run(checkpoint_path="tinker://other/weights/x", parity={**PARITY, "passed": False})
    ).read_text()
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
        run = make_run(base=str(folder))
        card = ModelCard.load(write_model_card(run))
        assert (card.data.license, card.data.base_model) == (licence, base)
        assert ("look it up" in card.text) == (licence == "unknown") and ("4-bit" in card.text) == (
            number == 0
        )
        run.path.rename(tmp_path / f"run-{number}")


def test_no_card_without_a_merged_model():
    with pytest.raises(RunError, match="05_merge"):
        write_model_card(make_run(upto="export"))


def test_the_card_of_a_run_can_be_published(capsys):
    run = make_run()
    write_model_card(run)
    assert publish_to_hub(run, "me/taught") is None
    assert "# taught" in capsys.readouterr().out


# ---- the hub


def test_a_dry_run_shows_all_and_sends_nothing(model, hub, capsys):
    assert publish_to_hub(model, "me/my-model") is None
    said = capsys.readouterr().out
    assert hub.sent == []
    for expected in (
        "Would send 5 files",
        "https://huggingface.co/me/my-model",
        "private: only you see it",
        "# Mine",
        "Nothing was sent",
    ):
        assert expected in said
    for path in model.iterdir():
        assert any(
            path.name in line and f"{path.stat().st_size:,} bytes" in line for line in said.splitlines()
        )
    publish_to_hub(model, "me/my-model", private=False)
    assert "PUBLIC" in capsys.readouterr().out
    (model / "README.md").unlink()
    publish_to_hub(str(model), "me/my-model")
    assert "write_model_card(run) makes one" in capsys.readouterr().out


def test_a_real_call_goes_to_the_cookbook(model, hub, capsys):
    url = publish_to_hub(model, "me/my-model", dry_run=False, token="hf_mine")
    assert url == "https://huggingface.co/me/my-model" and url in capsys.readouterr().out
    assert hub.sent == [
        {"model_path": str(model), "repo_id": "me/my-model", "private": True, "token": "hf_mine"}
    ]


def test_a_real_call_without_a_token_says_how_to_get_one(model, hub, monkeypatch):
    with pytest.raises(BackendError, match="(?s)needs a token.*huggingface.co/settings/tokens"):
        publish_to_hub(model, "me/my-model", dry_run=False)
    monkeypatch.setenv("HF_TOKEN", "hf_environment")
    publish_to_hub(model, "me/my-model", dry_run=False)
    assert [sent["token"] for sent in hub.sent] == ["hf_environment"]


def test_a_hub_that_refuses_or_is_away_is_reported_without_the_token(model, hub):
    hub.refusal = OSError("Name or service not known; token hf_mine")
    hub.repository = ConnectionError("no network")
    with pytest.raises(
        BackendError, match="(?s)did not take me/my-model.*not known.*check the network"
    ) as caught:
        publish_to_hub(model, "me/my-model", dry_run=False, token="hf_mine")
    assert "hf_mine" not in str(caught.value)


def test_private_is_never_sent_into_a_public_repository(model, hub):
    hub.repository = SimpleNamespace(private=False)
    with pytest.raises(BackendError, match="exists and is public"):
        publish_to_hub(model, "me/my-model", dry_run=False, token="hf_mine")
    hub.repository = HfHubHTTPError(
        "503", response=httpx.Response(503, request=httpx.Request("GET", "https://x"))
    )
    with pytest.raises(BackendError, match="does not say"):
        publish_to_hub(model, "me/my-model", dry_run=False, token="hf_mine")
    assert hub.sent == []
    publish_to_hub(model, "me/my-model", dry_run=False, private=False, token="hf_mine")
    assert len(hub.sent) == 1


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "weights.pt", "state.PKL", "sub/weights.pth", "rank0.ckpt"]
)
def test_pickles_are_refused(model, hub, name):
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match="pickle"):
        publish_to_hub(model, "me/my-model", dry_run=False, token="hf_mine")
    assert hub.sent == []


@pytest.mark.parametrize(
    "name",
    [
        "train.log",
        ".env",
        ".git/config",
        "notes.txt",
        "optimizer.safetensors",
        "logs/run.jsonl",
        ".DS_Store",
        "train.json",
        "README.md.bak",
    ],
)
def test_stray_files_are_refused(model, hub, name):
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("x")
    with pytest.raises(ModelError, match="(?s)not one of the files.*move it out"):
        publish_to_hub(model, "me/my-model", dry_run=False, token="hf_mine")
    assert hub.sent == []


def test_links_are_refused(model, tmp_path):
    (tmp_path / "elsewhere").write_text("{}")
    (model / "vocab.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="vocab.json"):
        publish_to_hub(model, "me/my-model")


@pytest.mark.parametrize("name", ["README.md", "config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("key", ["tml-AbCdEf0123456789", "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567"])
def test_keys_are_refused_and_not_shown(model, hub, capsys, name, key):
    before = (model / name).read_text() if (model / name).exists() else ""
    (model / name).write_text(
        before + f'\n"note": "{key}"\n'
        if name != "config.json"
        else json.dumps({"model_type": "llama", "note": key})
    )
    with pytest.raises(ModelError, match=f"{name}, line .*secret key") as caught:
        publish_to_hub(model, "me/my-model", dry_run=False, token="hf_mine")
    assert key not in str(caught.value) and key not in capsys.readouterr().out and hub.sent == []


def test_words_that_only_look_like_keys_pass(model):
    (model / "README.md").write_text(
        "tml-renderers 0.2.1, html-abcdefghijklmnop, hf_quantizer, xhf_abcdefghijklmnopqrst"
    )
    publish_to_hub(model, "me/my-model")


def test_the_local_base_model_holds_nothing_that_looks_like_a_key(base_model):
    from helpers.runs.publish import KEY

    assert not [
        path.name
        for path in base_model.iterdir()
        if path.suffix != ".safetensors" and KEY.search(path.read_bytes())
    ]


@pytest.mark.parametrize(
    "repo_id",
    [
        "",
        "my-model",
        "me/",
        "/x",
        "a/b/c",
        "me/my model",
        "me/x.git",
        "me/a--b",
        "me/../x",
        "me/" + "x" * 97,
        "https://huggingface.co/me/x",
        "mé/x",
        None,
        7,
    ],
)
def test_bad_repository_names_are_refused(model, hub, repo_id):
    with pytest.raises(ModelError, match="(?s)can't name a repository.*user/name"):
        publish_to_hub(model, repo_id, dry_run=False, token="hf_mine")
    assert hub.sent == []


def test_folders_without_a_whole_model_are_refused(model, tmp_path):
    with pytest.raises(ModelError, match="no model folder"):
        publish_to_hub(tmp_path / "none", "me/my-model")
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(ModelError, match="damaged"):
        publish_to_hub(model, "me/my-model")
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no model.safetensors"):
        publish_to_hub(model, "me/my-model")
    (model / "config.json").unlink()
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="LoRA adapter"):
        publish_to_hub(model, "me/my-model")
    with pytest.raises(RunError, match="05_merge"):
        publish_to_hub(make_run(upto="export"), "me/my-model")
