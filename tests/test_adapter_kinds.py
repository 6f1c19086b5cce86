"""Adapters as PEFT makes them: merged into what PEFT's own forward pass computes, or refused by name."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import HIDDEN, PAIRS, by_hand, make_adapter, make_base, make_kind, output_layer

from helpers.errors import ModelError
from helpers.serve.server import VLLM_RANKS, _adapter_options, serve_vllm
from helpers.weights import adapter_to_peft, describe_adapter, merge_adapter, score_with_transformers
from helpers.weights.adapter import read_adapter
from helpers.weights.adapter_config import WITHOUT_EFFECT, AdapterConfig, read_adapter_config
from helpers.weights.base_model import load_base
from helpers.weights.parity import compare_logprobs
from helpers.weights.peft_form import check_peft_adapter, load_peft
from helpers.weights.scores import Scores

METHODS = ("memory", "shards")


def save_adapter(base: Path, folder: Path, **options: Any) -> Path:
    """An adapter that PEFT made, with every number that it trains drawn at random."""
    torch.manual_seed(3)
    plain = {
        "r": 4,
        "lora_alpha": 16,
        "task_type": "CAUSAL_LM",
        "target_modules": ["q_proj", "v_proj", "up_proj"],
    }
    model = get_peft_model(load_base(base), LoraConfig(**(plain | options)))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_(0, 0.2)
    model.save_pretrained(str(folder))
    return folder


def peft_scores(base: Path, adapter: Path) -> Scores:
    """The reference: PEFT reads the adapter, and computes with it beside the base model."""
    return score_with_transformers(
        PeftModel.from_pretrained(load_base(base), str(adapter)).eval(), PAIRS, "PEFT"
    )


def refused_by_all(base: Path, adapter: Path, folder: Path, match: str) -> None:
    for method in METHODS:
        with pytest.raises(ModelError, match=match):
            merge_adapter(base, adapter, folder / "merged", method=method)
    with pytest.raises(ModelError, match=match):
        adapter_to_peft(base, adapter, folder / "peft")
    with pytest.raises(ModelError, match=match), serve_vllm(base, adapters={"tuned": adapter}):
        pass
    assert not {"merged", "peft"} & {path.name for path in folder.iterdir()}


def edited(made: dict[str, Any], folder: Path, config: dict[str, Any] | None = None, **tensors: Any) -> Path:
    """The plain adapter with some keys or tensors changed; a tensor that is None goes."""
    shutil.copytree(made["peft"], folder)
    before = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(before | (config or {})))
    file = folder / "adapter_model.safetensors"
    changed = {name: t for name, t in (load_file(file) | tensors).items() if t is not None}
    save_file(changed, file)
    return folder


HANDLED: dict[str, dict[str, Any]] = {
    "nothing special": {},
    "rslora": {"use_rslora": True},
    "alphas, of which the first match counts": {
        "alpha_pattern": {
            "model.layers.1.mlp.up_proj": 2,
            "^model.layers.0.mlp.up_proj": 3,
            "layers.0.self_attn.q_proj": 64,
            "q_proj": 1,
            "layers.1.self_attn.q_proj": 99,
        }
    },
    "ranks": {"rank_pattern": {"v_proj": 2, "up_proj": 8}},
    "ranks, alphas and rslora": {
        "rank_pattern": {"v_proj": 7},
        "alpha_pattern": {"up_proj": 5},
        "use_rslora": True,
    },
    "some layers": {"layers_to_transform": [0, 2]},
    "one layer, and one module not": {"layers_to_transform": 1, "exclude_modules": ["up_proj"]},
    "dropout and another start": {"lora_dropout": 0.5, "init_lora_weights": "gaussian"},
}


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")  # of layers that the adapter leaves alone
@pytest.mark.parametrize("options", HANDLED.values(), ids=HANDLED)
def test_what_is_handled_is_what_peft_computes(made, tmp_path, options):
    base, adapter = made["base"], save_adapter(made["base"], tmp_path / "adapter", **options)
    for method in METHODS:
        merge_adapter(base, adapter, tmp_path / method, method=method)
    adapter_to_peft(base, adapter, tmp_path / "peft")
    models = [*(load_base(tmp_path / method) for method in METHODS), load_peft(base, tmp_path / "peft")]
    scores = [score_with_transformers(model, PAIRS, str(i)) for i, model in enumerate(models)]
    results = compare_logprobs(peft_scores(base, adapter), scores)
    assert all(result["passed"] for result in results.values()), str(results)
    check_peft_adapter(base, adapter)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "use_dora"),
    "all biases": ({"bias": "all"}, "bias"),
    "biases of its modules": ({"bias": "lora_only"}, "bias"),
    "biases of B": ({"lora_bias": True}, "lora_bias"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "tokens": ({"trainable_token_indices": [5, 6]}, "trainable_token_indices"),
    "parameters": ({"target_parameters": ["mlp.down_proj.weight"]}, "target_parameters"),
    "layers used twice": ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
    "a changed base model": ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    "from some token on": ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens"),
    "embeddings": ({"target_modules": ["embed_tokens"]}, "embed_tokens.*no LoRA factor"),
    "modules by a pattern": ({"target_modules": r".*\.(q|v)_proj"}, "target_modules"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's, on what goes badly together
@pytest.mark.parametrize(("options", "match"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_handled_is_refused_by_name(tmp_path_factory, made, tmp_path, options, match):
    adapter = save_adapter(made["base"], tmp_path_factory.mktemp("kind") / "adapter", **options)
    refused_by_all(made["base"], adapter, tmp_path, match)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"made_up_by_a_later_peft": {"x": 1}}, "made_up_by_a_later_peft"),
        ({"alpha_pattern": {"(a+)+$": 3}}, "alpha_pattern"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern"),
        ({"r": 4.5}, "r = 4.5"),
        ({"r": True}, "r = True"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"lora_alpha": "16"}, "lora_alpha"),
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"layers_pattern": "layers"}, "layers_pattern"),
        ({"target_modules": ["q_proj"]}, "down_proj.*would not use them"),
        ({"layers_to_transform": [0]}, "layers.1.*would not use them"),
        ({"exclude_modules": ["layers.2.mlp.up_proj"]}, "layers.2.mlp.up_proj.*would not use them"),
    ],
    ids=str,
)
def test_a_value_that_is_not_handled_is_refused(made, tmp_path, config, match):
    with pytest.raises(ModelError, match=match):
        read_adapter(edited(made, tmp_path / "adapter", config))


def test_each_key_of_the_installed_peft_is_handled_or_refused(tmp_path):
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    path = tmp_path / "adapter_config.json"
    for key in sorted(fields - WITHOUT_EFFECT - set(AdapterConfig.model_fields)):
        path.write_text(json.dumps({"r": 4, "lora_alpha": 8, key: ["on"]}))
        with pytest.raises(ModelError, match=key):
            read_adapter_config(path)
    assert WITHOUT_EFFECT - fields <= {"runtime_config"} and set(AdapterConfig.model_fields) <= fields
    path.write_text(json.dumps({"r": 4, "lora_alpha": 8} | dict.fromkeys(fields - {"r", "lora_alpha"})))
    assert read_adapter_config(path).scale_of("q_proj") == 2


KEY = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({f"{KEY}.lora_magnitude_vector": torch.ones(HIDDEN)}, "lora_magnitude_vector.*no LoRA factor"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 64)}, "embedding_A.*no LoRA"),
        ({f"{KEY}.lora_B.bias": torch.ones(HIDDEN)}, "lora_B.bias.*no LoRA factor"),
        ({f"{KEY}.bias": torch.ones(HIDDEN)}, "q_proj.bias.*no LoRA factor"),
        ({"base_model.model.lm_head.weight": torch.ones(64, HIDDEN)}, "lm_head.weight.*no LoRA factor"),
        ({f"{KEY}.lora_A.default.weight": torch.ones(4, HIDDEN)}, "default.*no LoRA factor"),
        ({"model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(4, HIDDEN)}, "model.layers.*no LoRA factor"),
        ({f"base_model.model.{KEY}.lora_A.weight": torch.ones(4, HIDDEN)}, "base_model.*no LoRA factor"),
        ({f"{KEY}.lora_A.weight": None}, r"has .*lora_B\.weight but no .*lora_A\.weight"),
        ({f"{KEY}.lora_A.weight": torch.ones(4, HIDDEN, dtype=torch.int32)}, "int32"),
        ({f"{KEY}.lora_B.weight": torch.full((HIDDEN, 4), torch.nan)}, "not finite"),
        ({f"{KEY}.lora_A.weight": torch.ones(4, 1, HIDDEN)}, "ranks in .* differ"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_tensor_that_is_not_handled_is_refused_with_its_name(made, tmp_path, tensors, match):
    with pytest.raises(ModelError, match=match):
        read_adapter(edited(made, tmp_path / "adapter", **tensors))


def test_names_of_another_model_are_refused_with_an_example(made, tmp_path):
    """vLLM would leave all of them out, and answer as the base model."""
    other = shutil.copytree(made["peft"], tmp_path / "other")
    tensors = load_file(other / "adapter_model.safetensors")
    renamed = {
        name.replace(".model.model.", ".model.language_model.model."): t for name, t in tensors.items()
    }
    save_file(renamed, other / "adapter_model.safetensors")
    with (
        pytest.raises(
            ModelError,
            match=r"base_model\.model\.language_model\..* names such as base_model\.model\.model\.layers",
        ),
        serve_vllm(made["base"], adapters={"tuned": other}),
    ):
        pass
    for method in METHODS:
        with pytest.raises(ModelError, match=r"language_model\.model.*names such as model\.layers\.0"):
            merge_adapter(made["base"], other, tmp_path / "merged", method=method)


def test_an_adapter_is_served_beside_a_model_of_its_shape_and_with_room_for_its_rank(made, tmp_path):
    wide = make_base(tmp_path / "wide", head_dim=16)
    with pytest.raises(ModelError, match=r"changes a matrix \(16, 32\), and .*k_proj of .* is \(32, 32\)"):
        check_peft_adapter(wide, made["peft"])
    tied = make_adapter(tmp_path / "tied", made["base"], extra=output_layer())
    with pytest.raises(ModelError, match="unembed_tokens"):
        check_peft_adapter(made["base"], tied)
    twelve = save_adapter(made["base"], tmp_path / "twelve", rank_pattern={"v_proj": 12})
    assert _adapter_options(made["base"], {"a": made["peft"], "b": twelve})[1:3] == ["--max-lora-rank", "16"]
    assert list(VLLM_RANKS) == sorted(VLLM_RANKS)


def test_one_weight_changed_under_two_names_is_refused(tmp_path):
    base = make_base(tmp_path / "base", tied=False)
    twice = output_layer()
    twice |= {
        name.replace("model.unembed_tokens", "lm_head"): tensor.clone() for name, tensor in twice.items()
    }
    with pytest.raises(ModelError, match=r"changes lm_head\.weight twice"):
        merge_adapter(base, make_adapter(tmp_path / "adapter", base, extra=twice), tmp_path / "merged")


def test_a_description_has_the_scale_of_each_module(made, tmp_path):
    adapter = save_adapter(made["base"], tmp_path / "a", use_rslora=True, alpha_pattern={"q_proj": 32})
    description, pairs = describe_adapter(adapter), read_adapter(adapter).pairs
    assert description["scale"] == 16 / 4**0.5
    for row in description["modules"]:
        a, b = pairs[row["name"]]
        scale = (32 if row["module"] == "q_proj" else 16) / 4**0.5
        assert row["norm"] == pytest.approx(float((scale * b @ a).norm()), rel=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"use_rslora": True},
        {"alpha_pattern": {"model.layers.1.self_attn.v_proj": 15}},
    ],
    ids=str,
)
def test_parity_with_peft_notices_a_key_that_was_overlooked(tmp_path, options):
    """W + (alpha / r)·B·A, read from the tensors alone, is not the model that PEFT computes."""
    base, _ = make_kind("biases", tmp_path)
    adapter = save_adapter(base, tmp_path / "peft", **options)
    plain = score_with_transformers(by_hand(base, adapter), PAIRS, "plain")
    result = compare_logprobs(peft_scores(base, adapter), [plain])["plain"]
    assert not result["passed"] and result["max_abs_logprob_diff"] > 50 * result["tolerance"]
