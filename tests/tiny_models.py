"""Small base models and adapters made on the spot, and the trained model computed by hand.

The reference is independent of PEFT and the cookbook: each weight matrix is replaced by W + (alpha / r)·B·A.
"""

import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from helpers.files import write_json
from helpers.weights.base_model import load_base, weight_shapes
from helpers.weights.scores import Scores

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
NARROW = {  # two layers with grouped-query attention, for AutoConfig
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
PAIRS = [
    (list(range(3, 9)), [9, 11, 40]),
    ([5, 60, 2, 33], [7, 8, 1, 12, 30]),
    ([1], [2, 3]),
    (list(range(20, 45)), [50]),
] * 4


def save_llama(folder: Path, base_model: Path, **sizes: Any) -> Path:
    """A random llama with the base model's tokenizer; two narrow layers unless `sizes` say otherwise."""
    from transformers import LlamaConfig, LlamaForCausalLM

    narrow = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {**narrow, "num_key_value_heads": 2, "max_position_embeddings": 256, **sizes}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=49152, tie_word_embeddings=True, **config)).save_pretrained(
        folder
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base_model / name, folder)
    return folder


def make_base(
    folder: Path, tied: bool = True, seed: int = 0, dtype: torch.dtype = torch.bfloat16, head_dim: int = 8
) -> Path:
    """A tiny llama with grouped-query attention, logits as wide as a real model's, and a tokenizer."""
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
    model: Any = LlamaForCausalLM(config)
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
    only: Iterable[str] = MODULES,
    extra: dict[str, torch.Tensor] | None = None,
) -> Path:
    """A random adapter in Tinker's naming."""
    from safetensors.torch import save_file

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
    base: Path,
    adapter: Path,
    scale: float | None = None,
    skip: Iterable[str] = (),
    dtype: torch.dtype = torch.float32,
) -> Any:
    """The trained model, without PEFT: W + scale·B·A, with faults on request."""
    from safetensors.torch import load_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    factor = config["lora_alpha"] / config["r"] if scale is None else scale
    model: Any = load_base(base)
    model.to(dtype)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for key in tensors:
            if ".lora_A" in key and not any(part in key for part in skip):
                module = (
                    key.split(".lora_A")[0]
                    .removeprefix("base_model.model.")
                    .replace("model.unembed_tokens", "lm_head")
                )
                b, a = tensors[key.replace("lora_A", "lora_B")].to(dtype), tensors[key].to(dtype)
                weights[f"{module}.weight"].add_(factor * b @ a)
    return model


def furthest(left: Scores, right: Scores) -> float:
    return max(
        abs(a - b)
        for x, y in zip(left.logprobs, right.logprobs, strict=True)
        for a, b in zip(x, y, strict=True)
    )


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
        common: dict[str, Any] = dict(
            hidden_size=HIDDEN,
            intermediate_size=48,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            vocab_size=VOCABULARY,
            tie_word_embeddings=False,
        )
        model: Any = (
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
    # The cookbook's experts have three dimensions: w1 is gate, w2 down, w3 up; a factor of all has size 1.
    if kind == "experts":
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


def make_sharded(folder: Path, files: int, hidden: int, inner: int) -> Path:
    """A llama of one layer a file, written without torch: 4·hidden·(1.25·hidden + 1.5·inner) bytes each."""
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
    config = {
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
    write_json(folder / "config.json", config)
    return folder


def make_merged_folder(folder: Path) -> Path:
    """A folder that has all that a merged model needs, and no more."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({"model.norm.weight": torch.ones(1000)}, folder / "model.safetensors")
    write_json(folder / "config.json", {"model_type": "llama"})
    write_json(folder / "tokenizer.json", {"model": {}})
    write_json(folder / "generation_config.json", {})
    return folder


def disturb(model: torch.nn.Module) -> None:
    """Move norms and biases away from one and zero, so that a missing one shows."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
