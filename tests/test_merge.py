"""From Tinker's adapter to a merged model that is the trained model, on small models made on the spot.

The reference is independent of PEFT and the cookbook: each weight matrix is replaced by W + (alpha / r)·B·A by hand.
"""

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helpers.errors import ModelError, RunError
from helpers.weights.export import fresh_folder
from helpers.weights.merge import (
    adapter_to_peft,
    base_folder,
    load_base,
    load_peft,
    memory_needed,
    merge_adapter,
)
from helpers.weights.parity import (
    Scores,
    check_same_tokenizer,
    compare_logprobs,
    logit_noise,
    measured_noise,
    score_with_sampler,
    score_with_transformers,
)

LAYERS, HIDDEN, VOCABULARY = 3, 32, 64
MODULES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
PAIRS = [
    (list(range(3, 9)), [9, 11, 40]),
    ([5, 60, 2, 33], [7, 8, 1, 12, 30]),
    ([1], [2, 3]),
    (list(range(20, 45)), [50]),
] * 4


def make_base(
    folder: Path, tied: bool = True, seed: int = 0, dtype: torch.dtype = torch.bfloat16, head_dim: int = 8
) -> Path:
    """A tiny llama with grouped-query attention, logits as wide as a real model's, and a tokenizer with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        vocab_size=VOCABULARY,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.5 if "embed" in name or "lm_head" in name else 0.2)
    model.to(dtype).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2", unk_token="w0")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(
    folder: Path,
    base: Path,
    rank: int = 4,
    alpha: float = 16,
    seed: int = 1,
    layers: int = LAYERS,
    only=MODULES,
    extra=None,
) -> Path:
    """A random adapter in Tinker's naming."""
    from safetensors.torch import save_file

    from helpers.weights.merge import weight_shapes

    generator = torch.Generator().manual_seed(seed)
    shapes, tensors = weight_shapes(base), {}
    for layer in range(layers):
        for module in only:
            out, width = shapes[f"model.layers.{min(layer, LAYERS - 1)}.{module}.weight"]
            key = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, width, generator=generator) * 0.2
            tensors[f"{key}.lora_B.weight"] = torch.randn(out, rank, generator=generator) * 0.1
    tensors.update(extra or {})
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": alpha}))
    return folder


def output_layer() -> dict[str, torch.Tensor]:
    """Factors of the output layer, as Tinker names it."""
    key = "base_model.model.model.unembed_tokens"
    return {
        f"{key}.lora_A.weight": torch.randn(4, HIDDEN) * 0.2,
        f"{key}.lora_B.weight": torch.randn(VOCABULARY, 4) * 0.1,
    }


def by_hand(
    base: Path, adapter: Path, scale: float | None = None, skip=(), dtype: torch.dtype = torch.float32
) -> torch.nn.Module:
    """The trained model, without PEFT: W + scale·B·A, with faults on request."""
    from safetensors.torch import load_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"] if scale is None else scale
    model = load_base(base).to(dtype)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for key in tensors:
            if ".lora_A" in key and not any(part in key for part in skip):
                module = (
                    key.split(".lora_A")[0]
                    .removeprefix("base_model.model.")
                    .replace("model.unembed_tokens", "lm_head")
                )
                weights[f"{module}.weight"] += (
                    scale * tensors[key.replace("lora_A", "lora_B")].to(dtype) @ tensors[key].to(dtype)
                )
    return model


def furthest(left: Scores, right: Scores) -> float:
    return max(abs(a - b) for x, y in zip(left.logprobs, right.logprobs) for a, b in zip(x, y))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Base, adapter, PEFT form, merged model, and the score of the model merged by hand."""
    folder = tmp_path_factory.mktemp("merge")
    base = make_base(folder / "base")
    adapter = make_adapter(folder / "adapter", base)
    adapter_to_peft(base, adapter, folder / "peft")
    report = merge_adapter(base, adapter, folder / "merged")
    return {
        "folder": folder,
        "base": base,
        "adapter": adapter,
        "peft": folder / "peft",
        "merged": folder / "merged",
        "report": report,
        "scores": score_with_transformers(by_hand(base, adapter), PAIRS, "by hand"),
    }


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
    from transformers import AutoTokenizer

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
    from transformers import LlamaForCausalLM

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
    from safetensors.torch import load_file, save_file

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


# ---- both methods, where others go wrong


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def trained_weights(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """Every weight of the trained model in float64: W + (alpha / r)·B·A, experts one by one."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    factors, weights = read_weights(adapter), {name: w.double() for name, w in read_weights(base).items()}
    for key, a in factors.items():
        if ".lora_A" not in key:
            continue
        name = key.removeprefix("base_model.model.").replace(".lora_A", "")
        a, b = (
            a.double(),
            config["lora_alpha"] / config["r"] * factors[key.replace("lora_A", "lora_B")].double(),
        )
        if ".experts." in name:
            name = name.replace("w1", "gate_proj").replace("w2", "down_proj").replace("w3", "up_proj")
            for expert in range(max(len(a), len(b))):
                weights[name.replace("experts.", f"experts.{expert}.")] += (
                    b[min(expert, len(b) - 1)] @ a[min(expert, len(a) - 1)]
                )
        elif "unembed_tokens" in name:
            weights["lm_head.weight"] = (
                weights.get("lm_head.weight", weights["model.embed_tokens.weight"]) + b @ a
            )
        else:
            weights[name] += b @ a
    return weights


def check_merged(merged: Path, exact: dict[str, torch.Tensor], dtype: str) -> None:
    """Each saved weight is the exact one, rounded once: no further off than half a step of its precision."""
    saved, bits = read_weights(merged), {"float32": 24, "bfloat16": 8}[dtype]
    assert set(saved) == set(exact) and all(w.dtype == getattr(torch, dtype) for w in saved.values())
    for name, weight in exact.items():
        half_step = torch.ldexp(torch.ones_like(weight), torch.frexp(weight).exponent - bits - 1)
        assert ((saved[name].double() - weight).abs() <= half_step + 1e-6).all(), name
    assert json.loads((merged / "config.json").read_text())["dtype"] == dtype


def make_kind(kind: str, folder: Path) -> tuple[Path, Path]:
    """A base model and an adapter of some kind, with alpha other than the rank."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    base = make_base(folder / "base", dtype=torch.float32 if kind == "float32 base" else torch.bfloat16)
    extra = {}
    if kind in ("biases", "experts"):
        common = dict(
            hidden_size=HIDDEN,
            intermediate_size=48,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            vocab_size=VOCABULARY,
            tie_word_embeddings=False,
        )
        model = (
            Qwen2ForCausalLM(Qwen2Config(**common))
            if kind == "biases"
            else Qwen3MoeForCausalLM(
                Qwen3MoeConfig(**common, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2)
            )
        )
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(0, 0.2)  # biases too, which transformers starts at 0
        model.to(torch.bfloat16).save_pretrained(base)
    if (
        kind == "experts"
    ):  # as the cookbook has them: three-dimensional, w1 is gate, w2 down, w3 up; a factor of all experts has size 1
        for layer in range(LAYERS):
            for name, a, b in (
                ("w1", (1, 4, HIDDEN), (4, 24, 4)),
                ("w2", (4, 4, 24), (1, HIDDEN, 4)),
                ("w3", (4, 4, HIDDEN), (4, 24, 4)),
            ):
                key = f"base_model.model.model.layers.{layer}.mlp.experts.{name}"
                extra |= {
                    f"{key}.lora_A.weight": torch.randn(a) * 0.2,
                    f"{key}.lora_B.weight": torch.randn(b) * 0.1,
                }
    if "output layer" in kind:
        extra = output_layer()
    only = MODULES[:4] if kind == "experts" else MODULES
    return base, make_adapter(folder / "adapter", base, rank=4, alpha=24, only=only, extra=extra)


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
    """Why `untie` exists: when this fails, the cookbook has been mended."""
    from tinker_cookbook.weights import build_hf_model

    base, adapter = make_kind("tied output layer", tmp_path)
    build_hf_model(base_model=str(base), adapter_path=str(adapter), output_path=str(tmp_path / "merged"))
    saved = read_weights(tmp_path / "merged")
    assert "lm_head.weight" not in saved and not torch.equal(
        saved["model.embed_tokens.weight"], read_weights(base)["model.embed_tokens.weight"]
    )


@pytest.mark.parametrize("method", ["memory", "shards"])
def test_tokenizer_chat_template_and_generation_config_come_along(made, tmp_path, method):
    base = shutil.copytree(made["base"], tmp_path / "base")
    (base / "generation_config.json").write_text(
        '{"temperature": 0.25, "do_sample": true, "eos_token_id": 2}'
    )
    merge_adapter(base, made["adapter"], tmp_path / "merged", method=method)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()
    assert load_base(tmp_path / "merged").generation_config.temperature == 0.25


def test_size_decides_how_to_merge_and_the_report_says_so(made, tmp_path, monkeypatch, capsys):
    need = memory_needed(made["base"])
    monkeypatch.setattr("helpers.weights.merge.free_memory", lambda: need)
    report = merge_adapter(made["base"], made["adapter"], tmp_path / "small")
    assert report["method"] == "memory" and "GiB" in report["why"] and capsys.readouterr().out == ""
    monkeypatch.setattr("helpers.weights.merge.free_memory", lambda: need - 1)
    report = merge_adapter(made["base"], made["adapter"], tmp_path / "large")
    assert report["method"] == "shards" and report["why"] in capsys.readouterr().out
    with pytest.raises(ModelError, match="auto, memory, shards"):
        merge_adapter(made["base"], made["adapter"], tmp_path / "other", method="disk")


# ---- a base model of several files


def make_sharded(folder: Path, files: int, hidden: int, inner: int) -> Path:
    """A llama of one layer a file, written without torch: `files` files of 4·hidden·(1.25·hidden + 1.5·inner) bytes."""
    import numpy

    folder.mkdir()
    noise = (numpy.random.default_rng(0).standard_normal(1 << 20) * 0.02).astype(numpy.float32).view(
        numpy.uint32
    ) >> 16
    noise, weight_map = noise.astype(numpy.uint16).tobytes(), {}  # bfloat16 is the upper half of float32
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden // 4, hidden),
        "self_attn.v_proj": (hidden // 4, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    for layer in range(files):
        weights = {f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()}
        weights |= (
            {"model.embed_tokens.weight": (VOCABULARY, hidden), "model.norm.weight": (hidden,)}
            if layer == 0
            else {}
        )
        header, end = {}, 0
        for name, shape in weights.items():
            header[name] = {
                "dtype": "BF16",
                "shape": shape,
                "data_offsets": (end, end := end + 2 * math.prod(shape)),
            }
        text = json.dumps(header).encode()
        file = f"model-{layer + 1:05d}-of-{files:05d}.safetensors"
        with open(folder / file, "wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for start in range(0, end, len(noise)):
                out.write(noise[: end - start])
        weight_map |= dict.fromkeys(weights, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "hidden_size": hidden,
                "intermediate_size": inner,
                "num_hidden_layers": files,
                "num_attention_heads": 4,
                "num_key_value_heads": 1,
                "vocab_size": VOCABULARY,
                "tie_word_embeddings": True,
                "dtype": "bfloat16",
            }
        )
    )
    return folder


CHILD = """
import sys
from helpers.weights import merge
import peft, torch, transformers, tinker_cookbook.weights

def status(key):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(key))

base, adapter, out = sys.argv[1:]
before = status("VmRSS")
report = merge.merge_adapter(base, adapter, out + "/whole", dtype="bfloat16", method="shards")
print("peak", status("VmHWM") - before, report["changed"], flush=True)
merge.merge_adapter(base, adapter, out + "/cut", dtype="bfloat16", method="shards")
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
    line = next(line for line in process.stdout if line.startswith("peak"))
    cut = folder / f".cut.{process.pid}.tmp"
    while process.poll() is None and not list(cut.glob(".work/merged/shard-00003*")):
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


def test_a_large_model_needs_memory_for_one_file_of_it(child):
    """The bound promised is the largest file and 1.5 GiB; this one is tighter, so that a second file in memory would show."""
    assert int(child.line[2]) == LAYERS * 5
    assert int(child.line[1]) < child.largest + 384 * 2**20


def test_a_killed_merge_leaves_nothing_that_looks_whole_and_the_next_one_cleans_up(child, made):
    assert child.returncode == -signal.SIGKILL and child.cut.is_dir() and not (child.folder / "cut").exists()
    assert not list(child.cut.glob("*.safetensors")) and not (child.cut / "config.json").exists()
    merge_adapter(made["base"], made["adapter"], child.folder / "cut")
    assert sorted(path.name for path in child.folder.iterdir()) == ["adapter", "base", "cut", "whole"]


# ---- what a user can mend


def test_a_missing_or_damaged_file_of_the_base_model_is_named(made, tmp_path):
    base = make_sharded(tmp_path / "base", files=3, hidden=HIDDEN, inner=48)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(made["base"] / name, base / name)
    file = base / "model-00002-of-00003.safetensors"
    os.truncate(file, file.stat().st_size - 100)
    with pytest.raises(ModelError, match="model-00002-of-00003.safetensors is damaged"):
        merge_adapter(base, made["adapter"], tmp_path / "merged")
    file.unlink()
    with pytest.raises(ModelError, match="lacks 1 of its 3 weight files, model-00002-of-00003"):
        merge_adapter(base, made["adapter"], tmp_path / "merged")
    (base / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match="index.json is damaged"):
        merge_adapter(base, made["adapter"], tmp_path / "merged")


@pytest.mark.parametrize("method", ["memory", "shards"])
def test_an_adapter_of_another_architecture_is_refused(tmp_path, method):
    base, adapter = make_kind("grouped-query attention", tmp_path)
    other = make_base(tmp_path / "other", head_dim=16)
    with pytest.raises(ModelError, match="was not trained on .*Shape mismatch"):
        merge_adapter(other, adapter, tmp_path / "merged", method=method)
    (tmp_path / "moe").mkdir()
    _, experts = make_kind("experts", tmp_path / "moe")
    with pytest.raises(ModelError, match="was not trained on .*experts.*does not exist"):
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
        with pytest.raises(ModelError, match="the ranks in .* differ"):
            merge_adapter(made["base"], adapter, tmp_path / "merged")


def test_a_quantised_base_model_is_refused(made, tmp_path):
    base = shutil.copytree(made["base"], tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}})
    )
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


# ---- the parity check: right models pass, wrong ones fail


def noise_for(scores: Scores, *precisions: str) -> float:
    return logit_noise(*precisions, layers=LAYERS, hidden=HIDDEN, logit_std=scores.logit_std)


def test_parity_passes_for_peft_and_merged(made):
    for model in (load_peft(made["base"], made["peft"]), load_base(made["merged"])):
        result = compare_logprobs(
            made["scores"],
            score_with_transformers(model, PAIRS),
            noise_for(made["scores"], "float32", "float32"),
        )
        assert result["passed"] and result["token_agreement"] == 1.0
        assert result["prompts"] == len(PAIRS) and result["tokens"] == sum(len(c) for _, c in PAIRS)


def test_parity_passes_for_bfloat16_under_its_own_bound_only(made):
    scores = score_with_transformers(load_base(made["merged"], "bfloat16"), PAIRS)
    assert compare_logprobs(made["scores"], scores, noise_for(made["scores"], "float32", "bfloat16"))[
        "passed"
    ]
    assert not compare_logprobs(made["scores"], scores, noise_for(made["scores"], "float32", "float32"))[
        "passed"
    ]


def test_noise_measured_on_equal_models_passes_them_and_not_the_base(made):
    rounded = score_with_transformers(load_base(made["merged"], "bfloat16"), PAIRS)
    noise = max(noise_for(made["scores"], "float32", "bfloat16"), measured_noise(made["scores"], rounded))
    assert (
        0.1 < measured_noise(made["scores"], rounded) / noise_for(made["scores"], "float32", "bfloat16") < 5
    )
    assert compare_logprobs(made["scores"], rounded, noise)["passed"]
    assert not compare_logprobs(
        made["scores"], score_with_transformers(load_base(made["base"]), PAIRS), noise
    )["passed"]
    assert measured_noise(made["scores"], made["scores"]) == 0


WRONG = {
    "base model": lambda made: load_base(made["base"]),
    "double scale": lambda made: by_hand(made["base"], made["adapter"], scale=8.0),
    "scale 1 (alpha / r forgotten)": lambda made: by_hand(made["base"], made["adapter"], scale=1.0),
    "scale off by one percent": lambda made: by_hand(made["base"], made["adapter"], scale=4.04),
    "a layer dropped": lambda made: by_hand(made["base"], made["adapter"], skip=("layers.1.",)),
    "one matrix dropped": lambda made: by_hand(made["base"], made["adapter"], skip=("layers.2.mlp.up_proj",)),
    "another adapter": lambda made: by_hand(
        made["base"], make_adapter(made["folder"] / "other", made["base"], seed=7)
    ),
    "another base": lambda made: by_hand(make_base(made["folder"] / "base2", seed=3), made["adapter"]),
}


@pytest.mark.parametrize("fault", WRONG)
def test_parity_fails_for_a_wrong_model(made, fault):
    scores = score_with_transformers(WRONG[fault](made), PAIRS)
    result = compare_logprobs(made["scores"], scores, noise_for(made["scores"], "float32", "float32"))
    assert not result["passed"], result


def test_a_swapped_tokenizer_is_found_where_logprobs_are_blind(made, tmp_path):
    from transformers import AutoTokenizer

    folder = shutil.copytree(made["merged"], tmp_path / "swapped")
    words = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = words["model"]["vocab"]
    vocabulary["w5"], vocabulary["w6"] = vocabulary["w6"], vocabulary["w5"]
    (folder / "tokenizer.json").write_text(json.dumps(words), encoding="utf-8")
    trained, merged, swapped = (
        AutoTokenizer.from_pretrained(path) for path in (made["base"], made["merged"], folder)
    )
    check_same_tokenizer(trained, merged, ["w3 w5", "w9"])
    check_same_tokenizer(trained, swapped, ["w3 w4"])
    with pytest.raises(ModelError, match="differ on 'w3 w5': token 1 is .5. and .6."):
        check_same_tokenizer(trained, swapped, ["w1", "w3 w5"])
    swapped.eos_token = "w7"
    for other, texts, message in (
        (swapped, ["w3"], "end a text with different tokens"),
        (merged, [], "no texts"),
    ):
        with pytest.raises(ModelError, match=message):
            check_same_tokenizer(trained, other, texts)


@pytest.mark.parametrize(
    "fault", ["base model", "double scale", "scale 1 (alpha / r forgotten)", "a layer dropped"]
)
def test_gross_faults_fail_even_in_bfloat16(made, fault):
    scores = score_with_transformers(WRONG[fault](made), PAIRS)
    assert not compare_logprobs(made["scores"], scores, noise_for(made["scores"], "float32", "bfloat16"))[
        "passed"
    ]


def test_scores_agree_with_one_sequence_at_a_time(made):
    model = by_hand(made["base"], made["adapter"])
    for (prompt, continuation), row, chosen in zip(PAIRS[:4], made["scores"].logprobs, made["scores"].greedy):
        with torch.inference_mode():
            logprobs = torch.log_softmax(model(torch.tensor([prompt + continuation])).logits[0].float(), -1)
        places = range(len(prompt) - 1, len(prompt) + len(continuation) - 1)
        assert row == pytest.approx(
            [float(logprobs[p, t]) for p, t in zip(places, continuation)], rel=1e-5, abs=1e-5
        )
        assert chosen == [int(logprobs[p].argmax()) for p in places]


def test_scoring_with_a_sampler_takes_the_continuation_only():
    class Sampler:
        def __init__(self):
            self.waiting = 0

        def sample(self, prompt, count, params, include_prompt_logprobs, topk_prompt_logprobs):
            self.waiting += 1
            tokens = prompt.to_ints()
            sent = SimpleNamespace(
                prompt_logprobs=[None, *(-t / 10 for t in tokens[1:])],
                topk_prompt_logprobs=[None, *([(t, -0.1)] for t in tokens[1:])],
            )

            def result():
                assert self.waiting == 2, "all requests are sent before the first is awaited"
                return sent

            return SimpleNamespace(result=result)

    scores = score_with_sampler(Sampler(), [([1, 2], [3, 4]), ([5], [6])])
    assert scores.logprobs == [[-0.3, -0.4], [-0.6]] and scores.greedy == [[3, 4], [6]]


def test_comparisons_that_make_no_sense_are_refused(made):
    scores = made["scores"]
    with pytest.raises(ModelError, match="same tokens"):
        compare_logprobs(scores, Scores("short", scores.logprobs[:-1]), 0.1)
    with pytest.raises(ModelError, match="not log-probabilities"):
        compare_logprobs(scores, Scores("nan", [[math.nan] * len(row) for row in scores.logprobs]), 0.1)
    with pytest.raises(ModelError, match="not log-probabilities"):
        compare_logprobs(Scores("none", []), Scores("none", []), 0.1)
    with pytest.raises(ModelError, match="int4"):
        logit_noise("int4", layers=1, hidden=1, logit_std=1.0)
    with pytest.raises(ModelError, match="hold tokens"):
        score_with_transformers(load_base(made["base"]), [([1], [])])


def test_scatter_draws_each_token(made):
    from helpers.plots import parity_scatter

    figure = parity_scatter(made["scores"], [made["scores"]])
    assert all(
        len(axes.collections[0].get_offsets()) == sum(len(c) for _, c in PAIRS) for axes in figure.axes
    )
