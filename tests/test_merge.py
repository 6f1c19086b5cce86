"""From Tinker's adapter to a merged model that is the trained model, on small models made on the spot."""

import json
import math
import os
import resource
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import (
    HIDDEN,
    LAYERS,
    MODULES,
    PAIRS,
    VOCABULARY,
    by_hand,
    furthest,
    make_adapter,
    make_base,
    make_kind,
    make_sharded,
    output_layer,
)
from transformers import AutoTokenizer, LlamaForCausalLM

from helpers.errors import ModelError, RunError
from helpers.weights import adapter_to_peft, merge_adapter, score_with_transformers
from helpers.weights.base_model import base_folder, load_base
from helpers.weights.fresh_folder import fresh_folder
from helpers.weights.peft_form import load_peft


@pytest.mark.parametrize("rank,alpha", [(4, 4), (4, 16), (8, 2), (1, 32)])
@pytest.mark.parametrize("tied", [True, False])
def test_peft_and_merged_are_the_trained_model(tmp_path, rank, alpha, tied):
    base = make_base(tmp_path / "base", tied)
    adapter = make_adapter(tmp_path / "adapter", base, rank, alpha)
    trained = score_with_transformers(by_hand(base, adapter, dtype=torch.float64), PAIRS)
    adapter_to_peft(base, adapter, tmp_path / "peft")
    merge_adapter(base, adapter, tmp_path / "merged")
    assert (
        furthest(trained, score_with_transformers(load_peft(base, tmp_path / "peft").double(), PAIRS)) < 1e-5
    )
    assert furthest(trained, score_with_transformers(load_base(tmp_path / "merged"), PAIRS)) < 1e-4
    assert furthest(trained, score_with_transformers(load_base(base), PAIRS)) > 0.1


def test_an_output_layer_of_its_own_is_merged(tmp_path):
    base = make_base(tmp_path / "base", tied=False)
    adapter = make_adapter(tmp_path / "adapter", base, extra=output_layer())
    merge_adapter(base, adapter, tmp_path / "merged")
    trained = score_with_transformers(by_hand(base, adapter), PAIRS)
    assert furthest(trained, score_with_transformers(load_base(tmp_path / "merged"), PAIRS)) < 1e-4


def test_a_trained_output_layer_that_is_tied_is_refused_in_peft_form(tmp_path):
    base = make_base(tmp_path / "base", tied=True)
    with pytest.raises(ModelError, match="train_unembed=False"):
        adapter_to_peft(
            base, make_adapter(tmp_path / "adapter", base, extra=output_layer()), tmp_path / "peft"
        )
    assert not (tmp_path / "peft").exists()


def test_merged_folder_is_complete(made):
    names = {p.name for p in made["merged"].iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not any(name.startswith(".") for name in names)
    tokenizer, before = (
        AutoTokenizer.from_pretrained(made["merged"]),
        AutoTokenizer.from_pretrained(made["base"]),
    )
    assert (
        tokenizer.encode("w3 w9 w63") == before.encode("w3 w9 w63")
        and tokenizer.chat_template == before.chat_template
    )
    assert json.loads((made["merged"] / "config.json").read_text())["dtype"] == "float32"
    assert made["report"]["changed"] == LAYERS * len(MODULES) and made["report"]["rounding"] == 0


def test_bfloat16_rounds_once_and_the_report_says_how_far(made, tmp_path):
    report = merge_adapter(made["base"], made["adapter"], tmp_path / "merged", dtype="bfloat16")
    exact, rounded = (
        by_hand(made["base"], made["adapter"]).state_dict(),
        load_base(tmp_path / "merged").state_dict(),
    )
    worst = max(float((exact[key] - rounded[key]).abs().max()) for key in exact)
    assert worst == pytest.approx(report["rounding"], abs=1e-6) and worst > 0
    assert (
        max(float(((exact[k] - rounded[k]).abs() / exact[k].abs().clamp(min=1e-3)).max()) for k in exact)
        <= 2**-8
    )
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


def test_an_interrupted_merge_leaves_no_folder(made, tmp_path, monkeypatch):
    save = LlamaForCausalLM.save_pretrained

    def cut(self, folder, **kwargs):
        save(self, folder, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", cut)
    with pytest.raises(KeyboardInterrupt):
        merge_adapter(made["base"], made["adapter"], tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_merge_is_replaced_only_when_asked(made, tmp_path):
    with fresh_folder(tmp_path / "merged") as folder:
        (folder / "mine").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        merge_adapter(made["base"], made["adapter"], tmp_path / "merged")
    assert (tmp_path / "merged" / "mine").exists()
    merge_adapter(made["base"], made["adapter"], tmp_path / "merged", overwrite=True)
    assert not (tmp_path / "merged" / "mine").exists()


def test_what_does_not_belong_together_is_refused(made, tmp_path):
    deeper = make_adapter(tmp_path / "deeper", made["base"], layers=LAYERS + 1)
    with pytest.raises(ModelError, match=r"layers\.3\..*does not exist"):
        merge_adapter(made["base"], deeper, tmp_path / "merged")
    wide = load_file(made["adapter"] / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    wide[key] = torch.cat([wide[key], wide[key]], dim=1)
    (tmp_path / "wide").mkdir()
    save_file(wide, tmp_path / "wide" / "adapter_model.safetensors")
    (tmp_path / "wide" / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 4}')
    with pytest.raises(ModelError, match="was not trained on"):
        merge_adapter(made["base"], tmp_path / "wide", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_missing_or_damaged_parts(made, tmp_path):
    with pytest.raises(ModelError, match="no base model at"):
        merge_adapter(tmp_path / "nowhere", made["adapter"], tmp_path / "merged")
    with pytest.raises(ModelError, match="04_export"):
        merge_adapter(made["base"], tmp_path / "nowhere", tmp_path / "merged")
    with pytest.raises(ModelError, match="float64"):
        merge_adapter(made["base"], made["adapter"], tmp_path / "merged", dtype="float64")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="not a whole model"):
        base_folder(tmp_path / "empty")


def test_weights_that_are_not_finite_are_refused(made, tmp_path):
    key = "base_model.model.model.layers.0.self_attn.q_proj"
    extra = {f"{key}.lora_B.weight": torch.full((HIDDEN, 4), math.inf)}
    adapter = make_adapter(tmp_path / "adapter", made["base"], extra=extra)
    with pytest.raises(ModelError, match="finite"):
        merge_adapter(made["base"], adapter, tmp_path / "merged")


# ---- what a user can fix


def test_a_missing_or_damaged_file_of_the_base_model_is_named(made, tmp_path):
    base = make_sharded(tmp_path / "base", files=3, hidden=HIDDEN, inner=48)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(made["base"] / name, base / name)
    file = base / "model-00002-of-00003.safetensors"
    os.truncate(file, file.stat().st_size - 100)
    with pytest.raises(ModelError, match=r"model-00002-of-00003.safetensors is damaged"):
        merge_adapter(base, made["adapter"], tmp_path / "merged")
    file.unlink()
    with pytest.raises(ModelError, match="lacks 1 of its 3 weight files, model-00002-of-00003"):
        merge_adapter(base, made["adapter"], tmp_path / "merged")
    (base / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match=r"index.json is damaged"):
        merge_adapter(base, made["adapter"], tmp_path / "merged")
    (base / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelError, match=r"neither model.safetensors.index.json nor model.safetensors"):
        merge_adapter(base, made["adapter"], tmp_path / "merged")


@pytest.mark.parametrize("method", ["memory", "shards"])
def test_an_adapter_of_another_architecture_is_refused(tmp_path, method):
    base, adapter = make_kind("grouped-query attention", tmp_path)
    other = make_base(tmp_path / "other", head_dim=16)
    with pytest.raises(ModelError, match=r"was not trained on .*Shape mismatch"):
        merge_adapter(other, adapter, tmp_path / "merged", method=method)
    (tmp_path / "moe").mkdir()
    _, experts = make_kind("experts", tmp_path / "moe")
    with pytest.raises(ModelError, match=r"was not trained on .*experts.*does not exist"):
        merge_adapter(base, experts, tmp_path / "merged", method=method)
    embedding = {
        f"base_model.model.model.embed_tokens.lora_{half}.weight": torch.ones(shape)
        for half, shape in (("A", (4, HIDDEN)), ("B", (VOCABULARY, 4)))
    }
    with pytest.raises(ModelError, match="input embedding"):
        merge_adapter(
            base,
            make_adapter(tmp_path / "embedding", base, extra=embedding),
            tmp_path / "merged",
            method=method,
        )
    assert not (tmp_path / "merged").exists()


def test_ranks_that_differ_are_refused(made, tmp_path):
    key = "base_model.model.model.layers.0.self_attn.q_proj"
    halves = make_adapter(
        tmp_path / "halves", made["base"], extra={f"{key}.lora_B.weight": torch.ones(HIDDEN, 3)}
    )
    stated = shutil.copytree(made["adapter"], tmp_path / "stated")
    (stated / "adapter_config.json").write_text('{"r": 8, "lora_alpha": 16}')
    for adapter in (halves, stated):
        with pytest.raises(ModelError, match=r"the ranks in .* differ"):
            merge_adapter(made["base"], adapter, tmp_path / "merged")


def test_a_quantised_base_model_is_refused(made, tmp_path):
    base = shutil.copytree(made["base"], tmp_path / "base")
    config, stated = json.loads((base / "config.json").read_text()), {"quantization_config": {"bits": 4}}
    for more in (stated, {"text_config": stated}):
        (base / "config.json").write_text(json.dumps(config | more))
        with pytest.raises(ModelError, match="quantised"):
            merge_adapter(base, made["adapter"], tmp_path / "merged")
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": None}))
    eight_bits = {n: w.to(torch.float8_e4m3fn) for n, w in load_file(base / "model.safetensors").items()}
    save_file(eight_bits, base / "model.safetensors")
    with pytest.raises(ModelError, match="quantised"):
        merge_adapter(base, made["adapter"], tmp_path / "merged")


@pytest.mark.parametrize("method", ["memory", "shards"])
def test_a_full_disk_is_said_and_leaves_nothing(made, tmp_path, monkeypatch, method):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (50_000, limits[1])
    )  # a disk that fills up in the middle of the weights
    try:
        with pytest.raises(ModelError, match="can't write the merged model"):
            merge_adapter(
                made["base"],
                make_adapter(tmp_path / "adapter", made["base"], rank=1),
                tmp_path / "merged",
                method=method,
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ModelError, match="no disk space"):
        merge_adapter(made["base"], made["adapter"], tmp_path / "merged", method=method)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("method", ["memory", "shards"])
def test_weights_that_are_not_finite_are_refused_by_both_methods(made, tmp_path, method):
    extra = {"base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": torch.full((HIDDEN, 4), 1e5)}
    adapter = make_adapter(tmp_path / "adapter", made["base"], extra=extra)
    with pytest.raises(ModelError, match="finite"):  # finite in float32, not in float16
        merge_adapter(made["base"], adapter, tmp_path / "merged", dtype="float16", method=method)
    assert not (tmp_path / "merged").exists()
