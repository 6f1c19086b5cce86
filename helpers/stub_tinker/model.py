"""A decoder-only transformer (llama, Qwen2, Qwen3) with LoRA, written for few tokens on few cores.

Why not PEFT on the Hugging Face model: that loop spends most of a step on padding, on logits nobody asked
for, and on autograd over frozen weights. Here a batch is packed (one row a real token), the frozen matrices
are fused and kept in bfloat16, each LoRA layer is one autograd node that adds to the gradient itself, and the
residual stream stays float32.
"""

import json
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from helpers.stub_tinker.cache import Cache
from helpers.stub_tinker.kernels import (
    Attention,
    Before,
    Frozen,
    RmsNorm,
    Rotate,
    SwiGlu,
    TargetLogprob,
    causal_weights,
    log_softmax,
    rotate,
)
from helpers.stub_tinker.lora_layer import LoraGroup, LoraLinear, SteadyLora
from helpers.stub_tinker.packing import Packed
from helpers.stub_tinker.pieces import attend_in_pieces
from helpers.stub_tinker.steady import fill

FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
ALPHA = 32.0  # the scale of a LoRA delta is ALPHA / rank, as in tinker_cookbook.hyperparam_utils


@dataclass(frozen=True)
class Config:
    """The numbers of a model folder's config.json that the forward pass needs."""

    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    eps: float
    max_length: int
    rope_theta: float
    rope_scaling: dict | None
    tied: bool

    @classmethod
    def read(cls, folder: Path) -> "Config":
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        family = raw.get("model_type")
        if family not in FAMILIES:
            raise ValueError(f"{folder}: model_type {family!r} is not one of {', '.join(FAMILIES)}")
        rope = raw.get("rope_parameters") or {}
        scaling = raw.get("rope_scaling") or (rope if rope.get("rope_type", "default") != "default" else None)
        return cls(
            family=family,
            hidden=raw["hidden_size"],
            layers=raw["num_hidden_layers"],
            heads=raw["num_attention_heads"],
            kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
            head_dim=raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
            intermediate=raw["intermediate_size"],
            vocab=raw["vocab_size"],
            eps=raw.get("rms_norm_eps", 1e-6),
            max_length=raw.get("max_position_embeddings", 2048),
            rope_theta=rope.get("rope_theta") or raw.get("rope_theta", 10000.0),
            rope_scaling=scaling,
            tied=bool(raw.get("tie_word_embeddings", False)),
        )


# The four fused matrices of a layer, each with the modules it holds, in order.
GROUPS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
ATTENTION_GROUPS, MLP_GROUPS = ("qkv", "o"), ("gate_up", "down")
SHORT = 512  # tokens; in training, longer sequences take PyTorch's attention, with no (length, length) matrix


def module_shapes(config: Config) -> dict[str, tuple[int, int]]:
    """Output and input width of each linear module of a layer."""
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return {
        "self_attn.q_proj": (q, config.hidden),
        "self_attn.k_proj": (kv, config.hidden),
        "self_attn.v_proj": (kv, config.hidden),
        "self_attn.o_proj": (config.hidden, q),
        "mlp.gate_proj": (config.intermediate, config.hidden),
        "mlp.up_proj": (config.intermediate, config.hidden),
        "mlp.down_proj": (config.hidden, config.intermediate),
    }


@dataclass
class Adapters:
    """Which LoRA applies in a pass.

    Attributes:
        dtype: compute precision of the pass.
        training: one adapter with gradient buffers, in `groups` and `scale`; else `segments` apply, without
            gradients.
        segments: (groups, scale, rows), rows None for all of them; `groups` maps `"{layer}.{group}"` to a
            LoraGroup.
    """

    dtype: torch.dtype
    training: bool = False
    groups: dict[str, LoraGroup] = field(default_factory=dict)
    scale: float = 1.0
    segments: list[tuple[dict[str, LoraGroup | SteadyLora], float, torch.Tensor | None]] = field(
        default_factory=list
    )

    def within(self, part: slice) -> "Adapters":
        """For these rows of a pass without gradients."""

        def inside(rows: torch.Tensor | None) -> torch.Tensor | None:
            return None if rows is None else rows[(rows >= part.start) & (rows < part.stop)] - part.start

        parts = [(groups, scale, inside(rows)) for groups, scale, rows in self.segments]
        return Adapters(self.dtype, segments=[p for p in parts if p[2] is None or len(p[2])])


class Model:
    """A frozen base model. `dtype` is the precision of its matrices; a pass may ask for a higher one."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype):
        from safetensors import safe_open

        self.folder, self.device, self.dtype = folder, device, dtype
        self.config = Config.read(folder)
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ValueError(f"{folder} holds no .safetensors weights")
        where = {}
        for file in files:
            handle = safe_open(file, framework="pt")
            where.update(dict.fromkeys(handle.keys(), handle))

        def take(name: str) -> torch.Tensor:
            if name not in where:
                raise ValueError(f"{folder} has no weight {name}")
            return where[name].get_tensor(name).to(device, dtype, copy=True)

        def fused(prefix: str, modules: tuple[str, ...]) -> Frozen:
            weights = [take(f"{prefix}{m}.weight") for m in modules]
            biases = [take(f"{prefix}{m}.bias") for m in modules if f"{prefix}{m}.bias" in where]
            splits = torch.tensor([len(w) for w in weights]).cumsum(0).tolist()
            return Frozen(torch.cat(weights), torch.cat(biases) if biases else None, tuple(splits))

        self.embedding = take("model.embed_tokens.weight")
        self.output = Frozen(self.embedding if self.config.tied else take("lm_head.weight"), keep_plain=True)
        self.norm = take("model.norm.weight")
        self.layers = []
        for n in range(self.config.layers):
            prefix = f"model.layers.{n}."
            layer: dict[str, Any] = {g: fused(prefix, modules) for g, modules in GROUPS.items()}
            layer["norm1"] = take(f"{prefix}input_layernorm.weight")
            layer["norm2"] = take(f"{prefix}post_attention_layernorm.weight")
            for part in ("q_norm", "k_norm"):
                name = f"{prefix}self_attn.{part}.weight"
                layer[part] = take(name) if name in where else None
            self.layers.append(layer)
        self._cos, self._sin = self._rotary_tables()

    def _rotary_tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of every position, (max_length, head_dim), float32, by transformers' own rope
        functions.
        """
        c = self.config
        if c.rope_scaling:
            from transformers import AutoConfig
            from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

            kind = c.rope_scaling.get("rope_type") or c.rope_scaling["type"]
            inverse, factor = ROPE_INIT_FUNCTIONS[kind](
                AutoConfig.from_pretrained(self.folder, trust_remote_code=False), self.device
            )
        else:
            inverse = c.rope_theta ** (-torch.arange(0, c.head_dim, 2, dtype=torch.float32) / c.head_dim)
            factor = 1.0
        angles = torch.arange(c.max_length, dtype=torch.float32)[:, None] * inverse.cpu()[None]
        cos, sin = angles.cos() * factor, angles.sin() * factor
        return torch.cat([cos, cos], dim=1).to(self.device), torch.cat([-sin, sin], dim=1).to(self.device)

    def _angles(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """What `rotate` takes, for rows at `positions`."""
        return self._cos[positions][:, None].to(dtype), self._sin[positions][:, None].to(dtype)

    def _linear(
        self, x, frozen: Frozen, adapters: Adapters, name: str, before: RmsNorm | SwiGlu | None = None
    ):
        """f(x) Wᵀ, where f is the step before, with each adapter's delta on its rows."""
        if adapters.training:
            return LoraLinear.apply(x, before, frozen, adapters.groups.get(name), adapters.scale)
        x = before(x) if before else x
        return frozen.steady(x, _deltas(x, frozen.shape[0], adapters, name))

    def _norm(self, weight: torch.Tensor, adapters: Adapters) -> RmsNorm:
        return RmsNorm(weight.to(adapters.dtype), self.config.eps)

    def _normed(self, x, weight: torch.Tensor, adapters: Adapters):
        norm = self._norm(weight, adapters)
        return Before.apply(x, norm) if adapters.training else norm(x)

    def _heads(self, n: int, x, angles, adapters: Adapters):
        """Of layer `n`: rotated queries and keys, (tokens, heads + kv_heads, head_dim), and values, (tokens,
        kv_heads, head_dim).
        """
        c, layer = self.config, self.layers[n]
        turn = Rotate.apply if adapters.training else rotate
        out = self._linear(x, layer["qkv"], adapters, f"{n}.qkv", self._norm(layer["norm1"], adapters))
        out = out.unflatten(-1, (-1, c.head_dim))
        turned, values = out.split([c.heads + c.kv_heads, c.kv_heads], dim=1)
        if layer["q_norm"] is not None:
            q, k = turned.split([c.heads, c.kv_heads], dim=1)
            q = self._normed(q, layer["q_norm"], adapters)
            turned = torch.cat([q, self._normed(k, layer["k_norm"], adapters)], dim=1)
        return turn(turned, *angles), values

    def _after_attention(self, n: int, x, attended, adapters: Adapters):
        layer = self.layers[n]
        x = x + self._linear(attended, layer["o"], adapters, f"{n}.o")
        norm = self._norm(layer["norm2"], adapters)
        gate_up = self._linear(x, layer["gate_up"], adapters, f"{n}.gate_up", norm)
        return x + self._linear(gate_up, layer["down"], adapters, f"{n}.down", SwiGlu())

    def hidden(self, batch: Packed, adapters: Adapters) -> torch.Tensor:
        """Final hidden states, (tokens, hidden), normed, in the adapters' compute precision; filler is cut
        off.

        Args:
            batch: packed sequences.
            adapters: which LoRA applies to which rows, and in what precision to compute.
        """
        steps = self.hidden_in_layers(batch, adapters)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value

    def hidden_in_layers(
        self, batch: Packed, adapters: Adapters, on_layer=None
    ) -> Generator[None, None, torch.Tensor]:
        """As `hidden`, with a pause after each layer.

        Args:
            on_layer: called, unless in training, as on_layer(n, i, keys, values) for sequence i, (length,
                kv_heads, head_dim), keys times 1/√dim.
        """
        x, angles = self.start(batch, adapters)
        for n in range(self.config.layers):
            x = self.layer(n, x, batch, angles, adapters, on_layer)
            yield
        return self.end(x, batch, adapters)

    def start(
        self, batch: Packed, adapters: Adapters
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """The first layer's input, (rows, hidden) in float32, and what `layer` takes of the positions."""
        x = self.embedding[batch.tokens].float()
        return x.requires_grad_(adapters.training), self._angles(batch.positions, adapters.dtype)

    def layer(self, n: int, x, batch: Packed, angles, adapters: Adapters, on_layer=None) -> torch.Tensor:
        """The input of layer n + 1 from that of layer n."""
        c = self.config
        heads = torch.cat(self._heads(n, x, angles, adapters), dim=1)
        if adapters.training:
            grid = batch.pad(heads)
            attended = batch.unpad(_attend(*grid.split([c.heads, c.kv_heads, c.kv_heads], dim=1)))
        else:
            attended = self._attend_apart(n, heads, batch, on_layer)
        return self._after_attention(n, x, attended, adapters)

    def end(self, x: torch.Tensor, batch: Packed, adapters: Adapters) -> torch.Tensor:
        """Final hidden states, (tokens, hidden), from the last layer's output."""
        return self._normed(x[: batch.size], self.norm, adapters)

    def _attend_apart(self, n: int, heads, batch: Packed, on_layer) -> torch.Tensor:
        """Attention of layer `n`, (tokens, heads·head_dim). What a sequence gets is what it gets alone."""
        c = self.config
        q, keys, values = heads.split([c.heads, c.kv_heads, c.kv_heads], dim=1)
        keys = keys * c.head_dim**-0.5
        if on_layer:
            for i, (start, length) in enumerate(zip(batch.starts, batch.lengths, strict=False)):
                on_layer(n, i, keys[start : start + length], values[start : start + length])
        rows, attended = torch.cat([q, keys, values], dim=1), q.new_zeros(len(q), c.heads * c.head_dim)
        for alike in batch.alike:
            q, keys, values = alike.spread(rows).split([c.heads, c.kv_heads, c.kv_heads], dim=2)
            keys = _whole([piece.keys[n] for piece in alike.known], keys)
            values = _whole([piece.values[n] for piece in alike.known], values)
            attended[alike.rows] = attend_in_pieces(q, keys, values).flatten(0, 1)[alike.places]
        return attended

    def target_logprobs(
        self, hidden: torch.Tensor, targets: torch.Tensor, adapters: Adapters
    ) -> torch.Tensor:
        """log p of each row's targets, (rows, k) float32. `adapters` are those of the rows' pass."""
        if adapters.training:
            return TargetLogprob.apply(
                hidden, self.output, targets, adapters.groups.get("unembed"), adapters.scale
            )
        values = []
        for start in range(0, len(hidden), TargetLogprob.SLICE):
            rows = slice(start, min(start + TargetLogprob.SLICE, len(hidden)))
            logits = self.logits(hidden[rows], adapters.within(rows))
            values.append(log_softmax(logits, targets[rows]))
        return torch.cat(values) if values else torch.empty(targets.shape, device=hidden.device)

    def logits(self, hidden: torch.Tensor, adapters: Adapters) -> torch.Tensor:
        """(rows, vocab) float32 of final hidden states; `adapters` are for these rows."""
        return self.output.steady(hidden, _deltas(hidden, self.config.vocab, adapters, "unembed")).float()

    def decode(self, tokens: torch.Tensor, cache: Cache, adapters: Adapters) -> torch.Tensor:
        """One token more for each sequence in the cache, in its order: (n,) tokens -> (n, vocab) float32
        logits.

        Filler rows stand after the last sequence, so that each product need not add its own.
        """
        c, count = self.config, len(tokens)
        rows = max(frozen.rows_for(count, self.dtype) for frozen in (*self._matrices(0), self.output))
        tokens, lengths = fill(tokens, rows), fill(cache.lengths(), rows)
        angles, x = self._angles(lengths, self.dtype), self.embedding[tokens].float()
        step = cache.step()
        for n in range(c.layers):
            turned, values = self._heads(n, x, angles, adapters)
            queries, keys = turned.split([c.heads, c.kv_heads], dim=1)
            attended = step.attend(n, queries, keys, values)
            x = self._after_attention(n, x, attended, adapters)
        step.done()
        return self.logits(self._normed(x, self.norm, adapters), adapters)[:count]

    def _matrices(self, n: int) -> list[Frozen]:
        return [self.layers[n][group] for group in GROUPS]


def _deltas(x: torch.Tensor, width: int, adapters: Adapters, name: str) -> torch.Tensor | None:
    """What the adapters' groups `name` make of their rows of x, (rows, width); None if there are none."""
    loras = [(groups[name], scale, rows) for groups, scale, rows in adapters.segments if name in groups]
    if not loras:
        return None
    if loras[0][2] is None:
        return loras[0][0].delta(x, loras[0][1])[0]
    every = torch.cat([rows for *_, rows in loras if rows is not None])
    parts = x[every].split([len(rows) for *_, rows in loras if rows is not None])
    deltas = [lora.delta(part, scale)[0] for (lora, scale, _), part in zip(loras, parts, strict=True)]
    return x.new_zeros(len(x), width).index_copy_(0, every, torch.cat(deltas))


def _whole(known: list[torch.Tensor], own: torch.Tensor) -> torch.Tensor:
    """(prompts, kv_heads, positions, dim) of the (tokens, kv_heads, dim) pieces that all prompts begin with,
    and of what is each prompt's own after them, (prompts, tokens, kv_heads, dim).
    """
    if not known:
        return own.transpose(1, 2).contiguous()
    pieces = torch.cat(known).transpose(0, 1).expand(len(own), -1, -1, -1)
    return torch.cat([pieces, own.transpose(1, 2)], dim=2)


def _attend(q, k, v):
    """Causal attention in training, with grouped heads, all (sequences, heads, length, head_dim)."""
    sequences, heads, length, dim = q.shape
    if length > SHORT:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    grouped = q.reshape(sequences, k.shape[1], -1, dim)
    k, v = k.contiguous(), v.contiguous()  # or what is kept of them would be the whole grid
    attended = Attention.apply(grouped, k, v) if q.requires_grad else causal_weights(grouped, k) @ v
    return attended.view(sequences, heads, length, dim)
