"""Adapters are described right."""

import json

import pytest
import torch
from safetensors.torch import save_file

from helpers import plots
from helpers.errors import ModelError
from helpers.weights import describe_adapter, lora_pairs


def test_describe_adapter_agrees_with_the_full_product(tmp_path):
    torch.manual_seed(0)
    tensors, expected = {}, {}
    for layer in range(2):
        for module, (out, width) in {"self_attn.q_proj": (12, 8), "mlp.down_proj": (8, 20)}.items():
            a, b = torch.randn(4, width), torch.randn(out, 4)
            key = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = a, b
            expected[layer, module.split(".")[1]] = float((2.0 * b @ a).norm())
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    description = describe_adapter(tmp_path)
    assert (description["rank"], description["alpha"], description["scale"]) == (4, 8, 2.0)
    assert description["target_modules"] == ["down_proj", "q_proj"] and description["dtype"] == "float32"
    per_layer = 4 * (12 + 8) + 4 * (8 + 20)
    assert (
        description["parameters_per_layer"] == {0: per_layer, 1: per_layer}
        and description["parameters"] == 2 * per_layer
    )
    assert {(r["layer"], r["module"]): r["norm"] for r in description["modules"]} == pytest.approx(
        expected, rel=1e-6
    )

    axes = plots.weight_change_heatmap(description).axes[0]
    grid = axes.images[0].get_array()
    assert grid is not None and grid.shape == (2, 2) and grid[1, 0] == pytest.approx(expected[0, "q_proj"])


def test_describe_adapter_says_what_is_wrong(tmp_path):
    with pytest.raises(ModelError, match="missing"):
        describe_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no weights")
    (tmp_path / "adapter_config.json").write_text('{"r": 4}')
    with pytest.raises(ModelError, match="has no 'lora_alpha'"):
        describe_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}')
    with pytest.raises(ModelError, match="damaged"):
        describe_adapter(tmp_path)


def test_factors_come_in_pairs(tmp_path):
    name = "base_model.model.model.layers.0.mlp.up_proj"
    a, b = torch.ones(4, 8), torch.ones(12, 4)
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}')
    save_file(
        {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, tmp_path / "adapter_model.safetensors"
    )
    assert [(key, x.shape, y.shape) for key, (x, y) in lora_pairs(tmp_path).items()] == [
        ("model.layers.0.mlp.up_proj", a.shape, b.shape)
    ]
    save_file({f"{name}.lora_A.weight": a}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"has .*lora_A\.weight but no .*lora_B\.weight"):
        lora_pairs(tmp_path)
