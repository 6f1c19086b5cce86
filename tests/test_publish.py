"""Nothing leaves this machine that should not."""

import json
import os
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi
from tiny_models import make_merged_folder

from helpers.errors import BackendError, ModelError
from helpers.runs import publish_to_hub
from helpers.runs.publish import KEY

FILES = ["README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def model(tmp_path):
    folder = make_merged_folder(tmp_path / "merged_model")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    return folder


@pytest.fixture
def hub(monkeypatch):
    """Stands for the hub: what was sent to it, and how it answers."""
    hub = SimpleNamespace(sent=[], made=[], private=True, refusal=None)

    def create(self, repo_id, private, exist_ok):
        if hub.refusal:
            raise hub.refusal
        hub.made.append((repo_id, private))
        return f"https://huggingface.co/{repo_id}"

    def upload(self, folder_path, repo_id, allow_patterns):
        hub.sent.append((self.token, folder_path, repo_id, allow_patterns))

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "repo_info", lambda *_, **__: SimpleNamespace(private=hub.private))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: os.environ.get("HF_TOKEN"))
    return hub


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


def test_a_real_call_sends_what_was_shown(model, hub, capsys):
    url = publish_to_hub(model, "me/my-model", dry_run=False, token="hf_mine")
    assert url == "https://huggingface.co/me/my-model" and url in capsys.readouterr().out
    assert hub.made == [("me/my-model", True)]
    assert hub.sent == [("hf_mine", model, "me/my-model", FILES)]


def test_a_real_call_without_a_token_says_how_to_get_one(model, hub, monkeypatch):
    with pytest.raises(BackendError, match=r"(?s)needs a token.*huggingface.co/settings/tokens"):
        publish_to_hub(model, "me/my-model", dry_run=False)
    monkeypatch.setenv("HF_TOKEN", "hf_environment")
    publish_to_hub(model, "me/my-model", dry_run=False)
    assert [token for token, *_ in hub.sent] == ["hf_environment"]


def test_a_hub_that_refuses_or_is_away_is_reported_without_the_token(model, hub):
    hub.refusal = OSError("Name or service not known; token hf_mine")
    with pytest.raises(
        BackendError, match=r"(?s)did not take me/my-model.*not known.*check the network"
    ) as caught:
        publish_to_hub(model, "me/my-model", dry_run=False, token="hf_mine")
    assert "hf_mine" not in str(caught.value)


def test_private_is_never_sent_into_a_public_repository(model, hub):
    hub.private = False
    with pytest.raises(BackendError, match="exists and is public"):
        publish_to_hub(model, "me/my-model", dry_run=False, token="hf_mine")
    hub.private = None  # the hub doesn't say
    with pytest.raises(BackendError, match="exists and is public"):
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
    with pytest.raises(ModelError, match=r"(?s)not one of the files.*move it out"):
        publish_to_hub(model, "me/my-model", dry_run=False, token="hf_mine")
    assert hub.sent == []


def test_links_are_refused(model, tmp_path):
    (tmp_path / "elsewhere").write_text("{}")
    (model / "vocab.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"vocab.json"):
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
    with pytest.raises(ModelError, match=r"(?s)can't name a repository.*user/name"):
        publish_to_hub(model, repo_id, dry_run=False, token="hf_mine")
    assert hub.sent == []


def test_folders_without_a_whole_model_are_refused(model, tmp_path):
    with pytest.raises(ModelError, match="no model folder"):
        publish_to_hub(tmp_path / "none", "me/my-model")
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(ModelError, match="damaged"):
        publish_to_hub(model, "me/my-model")
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no model.safetensors"):
        publish_to_hub(model, "me/my-model")
    (model / "config.json").unlink()
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="LoRA adapter"):
        publish_to_hub(model, "me/my-model")
