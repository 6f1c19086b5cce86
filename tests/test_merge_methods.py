"""Merging in memory and merging file by file give the same model, where others go wrong too."""

import json
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from tinker_cookbook.weights import build_hf_model
from tiny_models import (
    HIDDEN,
    LAYERS,
    MODULES,
    PAIRS,
    VOCABULARY,
    check_merged,
    furthest,
    make_adapter,
    make_kind,
    make_sharded,
    read_weights,
    trained_weights,
)

from helpers.errors import ModelError
from helpers.weights import merge_adapter, score_with_transformers
from helpers.weights.base_model import load_base
from helpers.weights.merge import memory_needed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["memory", "shards"])
@pytest.mark.parametrize("kind", ["grouped-query attention", "float32 base", "biases", "tied output layer"])
def test_each_saved_weight_is_the_trained_one_rounded_once(tmp_path, kind, method, dtype):
    base, adapter = make_kind(kind, tmp_path)
    report = merge_adapter(base, adapter, tmp_path / "merged", dtype=dtype, method=method)
    check_merged(tmp_path / "merged", trained_weights(base, adapter), dtype)
    assert report["method"] == method and report["changed"] == LAYERS * len(MODULES) + (
        "output layer" in kind
    )
    assert (report["rounding"] == 0) == (dtype == "float32") and report["untied"] == ("output layer" in kind)


@pytest.mark.filterwarnings(
    "ignore:.*_pattern keys did not match:RuntimeWarning"
)  # PEFT's, for a pattern it doesn't need
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["auto", "memory"])
def test_experts_are_merged_each_by_its_own_factors_and_file_by_file_unless_told_otherwise(
    tmp_path, method, dtype
):
    base, adapter = make_kind("experts", tmp_path)
    report = merge_adapter(base, adapter, tmp_path / "merged", dtype=dtype, method=method)
    check_merged(tmp_path / "merged", trained_weights(base, adapter), dtype)
    assert report["method"] == ("shards" if method == "auto" else "memory") and report[
        "changed"
    ] == LAYERS * (4 + 3 * 4)
    assert load_base(tmp_path / "merged").config.model_type == "qwen3_moe"


@pytest.mark.parametrize("method", ["memory", "shards"])
def test_a_trained_output_layer_that_is_tied_becomes_a_weight_of_its_own(tmp_path, method):
    base, adapter = make_kind("tied output layer", tmp_path)
    merge_adapter(base, adapter, tmp_path / "merged", method=method)
    saved, before = read_weights(tmp_path / "merged"), read_weights(base)["model.embed_tokens.weight"].float()
    assert torch.equal(saved["model.embed_tokens.weight"], before) and not torch.equal(
        saved["lm_head.weight"], before
    )
    assert json.loads((tmp_path / "merged/config.json").read_text())["tie_word_embeddings"] is False
    trained = load_base(base).double()
    trained.lm_head.weight = torch.nn.Parameter(torch.empty(VOCABULARY, HIDDEN, dtype=torch.float64))
    trained.load_state_dict(trained_weights(base, adapter))
    scores = score_with_transformers(trained, PAIRS)
    assert furthest(scores, score_with_transformers(load_base(tmp_path / "merged").double(), PAIRS)) < 1e-5


def test_the_cookbook_alone_changes_the_input_embedding(tmp_path):
    """Why `untie` exists: when this fails, the cookbook no longer needs it."""
    base, adapter = make_kind("tied output layer", tmp_path)
    build_hf_model(base_model=str(base), adapter_path=str(adapter), output_path=str(tmp_path / "merged"))
    saved = read_weights(tmp_path / "merged")
    assert "lm_head.weight" not in saved and not torch.equal(
        saved["model.embed_tokens.weight"], read_weights(base)["model.embed_tokens.weight"]
    )


@pytest.mark.parametrize("method", ["memory", "shards"])
@pytest.mark.parametrize("sampled", [True, False, None])  # transformers would write only the first
def test_tokenizer_chat_template_and_generation_config_come_along(made, tmp_path, method, sampled):
    """None: an old model, whose settings of generation are in its `config.json`."""
    base = shutil.copytree(made["base"], tmp_path / "base")
    files, settings = (
        ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"],
        {"temperature": 0.25},
    )
    if sampled is None:
        (base / "generation_config.json").unlink(missing_ok=True)
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | settings))
    else:
        settings |= {"do_sample": sampled, "eos_token_id": 2}
        (base / "generation_config.json").write_text(json.dumps(settings))
        files.append("generation_config.json")
    merge_adapter(base, made["adapter"], tmp_path / "merged", method=method)
    for name in files:
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()
    assert load_base(tmp_path / "merged").generation_config.temperature == 0.25


def test_size_decides_how_to_merge_and_the_report_says_so(made, tmp_path, monkeypatch, capsys):
    need = memory_needed(made["base"])
    monkeypatch.setattr("helpers.weights.merge.machine_memory", lambda: (2 * need, need))
    report = merge_adapter(made["base"], made["adapter"], tmp_path / "small")
    assert report["method"] == "memory" and "GiB" in report["why"] and capsys.readouterr().out == ""
    monkeypatch.setattr("helpers.weights.merge.machine_memory", lambda: (2 * need, need - 1))
    report = merge_adapter(made["base"], made["adapter"], tmp_path / "large")
    assert report["method"] == "shards" and report["why"] in capsys.readouterr().out
    with pytest.raises(ModelError, match="auto, memory, shards"):
        merge_adapter(made["base"], made["adapter"], tmp_path / "other", method="disk")


CHILD = """
import sys
from helpers.weights import merge_adapter
import peft, torch, transformers, tinker_cookbook.weights

def status(key):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(key))

base, adapter, out = sys.argv[1:]
before = status("VmRSS")
report = merge_adapter(base, adapter, out + "/whole", dtype="bfloat16", method="shards")
print("peak", status("VmHWM") - before, report["changed"], flush=True)
merge_adapter(base, adapter, out + "/cut", dtype="bfloat16", method="shards")
"""


@pytest.fixture(scope="module")
def child(tmp_path_factory, made):
    """A process that merged a model of six files of 148 MB, and was killed while it merged it again."""
    folder = tmp_path_factory.mktemp("large")
    base = make_sharded(folder / "base", files=6, hidden=2048, inner=10240)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(made["base"] / name, base / name)
    adapter = make_adapter(folder / "adapter", base, only=MODULES[:4] + MODULES[-1:])
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, base, adapter, folder], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    line = next(line for line in process.stdout if line.startswith("peak"))
    cut = folder / f".cut.{process.pid}.tmp"
    while process.poll() is None and not list(cut.glob("model-00003*")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    yield SimpleNamespace(
        folder=folder,
        base=base,
        cut=cut,
        returncode=process.returncode,
        line=line.split(),
        largest=max(file.stat().st_size for file in base.glob("*.safetensors")),
    )
    shutil.rmtree(folder)


@pytest.mark.soak
def test_a_large_model_needs_memory_for_one_file_of_it(child):
    """1.5 GiB and the largest file are promised. This bound is tighter, so a second file in memory shows."""
    assert int(child.line[2]) == LAYERS * 5
    assert int(child.line[1]) < child.largest + 384 * 2**20


@pytest.mark.soak
def test_a_killed_merge_leaves_nothing_that_looks_whole_and_the_next_one_cleans_up(child, made):
    assert child.returncode == -signal.SIGKILL and child.cut.is_dir() and not (child.folder / "cut").exists()
    assert not (child.cut / "config.json").exists()
    assert not list(child.cut.glob("*.index.json"))
    merge_adapter(made["base"], made["adapter"], child.folder / "cut")
    assert sorted(path.name for path in child.folder.iterdir()) == ["adapter", "base", "cut", "whole"]
