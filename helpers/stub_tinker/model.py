"""A decoder-only transformer (llama, Qwen2, Qwen3) with LoRA, written for few tokens on few cores.

Why not PEFT on the Hugging Face model: that loop spends most of a step on padding, on logits nobody asked for, and on
autograd over frozen weights. Here a batch is packed (one row a real token), the frozen matrices are fused and kept in
bfloat16, each LoRA layer is one autograd node that adds to the gradient itself, and the residual stream stays float32.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F

from helpers.stub_tinker.kernels import (
    Attention,
    Frozen,
    LoraGroup,
    LoraLinear,
    RmsNorm,
    Rotate,
    SwiGlu,
    TargetLogprob,
    causal_weights,
    rms_norm,
    rotate,
    round_up,
    swiglu,
)

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
SHORT = 512  # tokens; longer sequences take PyTorch's fused attention, which keeps no (length, length) matrix


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


class Packed:
    """Token sequences laid end to end, and where each row stands in the padded (sequence, position) grid.

    Rows after the last token are filler, up to a multiple of 64; they stand in a sequence of their own.
    """

    def __init__(self, sequences: list[list[int]], device: torch.device):
        self.lengths = [len(s) for s in sequences]
        self.starts = [0, *torch.tensor(self.lengths).cumsum(0).tolist()]
        self.size = self.starts[-1]
        filler = round_up(self.size, 64) - self.size
        self.longest = round_up(max(self.lengths), 16)
        self.count = round_up(len(sequences) + (filler > 0), 4)
        self.tokens = torch.tensor([t for s in sequences for t in s] + [0] * filler, device=device)
        self.positions = torch.cat(
            [torch.arange(n) for n in self.lengths] + [torch.zeros(filler, dtype=torch.long)]
        ).to(device)
        owner = torch.repeat_interleave(
            torch.arange(len(sequences) + 1), torch.tensor([*self.lengths, filler])
        ).to(device)
        self.slots = owner * self.longest + self.positions  # row -> place in the grid

    def pad(self, rows: torch.Tensor) -> torch.Tensor:
        """(tokens, heads, dim) -> (sequences, heads, longest, dim), zeros where there is no token."""
        grid = rows.new_zeros(self.count * self.longest, *rows.shape[1:]).index_copy(0, self.slots, rows)
        return grid.view(self.count, self.longest, *rows.shape[1:]).transpose(1, 2)

    def unpad(self, grid: torch.Tensor) -> torch.Tensor:
        """(sequences, heads, longest, dim) -> (tokens, heads·dim)."""
        return grid.transpose(1, 2).reshape(self.count * self.longest, -1)[self.slots]


@dataclass
class Adapters:
    """Which LoRA applies in a pass.

    Attributes:
        dtype: compute precision of the pass.
        training: one adapter with gradient buffers, in `groups` and `scale`; else `segments` apply, without gradients.
        segments: (groups, scale, rows), rows None for all of them; `groups` maps `"{layer}.{group}"` to a LoraGroup.
    """

    dtype: torch.dtype
    training: bool = False
    groups: dict[str, LoraGroup] = field(default_factory=dict)
    scale: float = 1.0
    segments: list[tuple[dict[str, LoraGroup], float, torch.Tensor | None]] = field(default_factory=list)


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
            where.update({key: handle for key in handle.keys()})

        def take(name: str) -> torch.Tensor:
            if name not in where:
                raise ValueError(f"{folder} has no weight {name}")
            return where[name].get_tensor(name).to(device, dtype)

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
            layer = {group: fused(prefix, modules) for group, modules in GROUPS.items()}
            layer["norm1"] = take(f"{prefix}input_layernorm.weight")
            layer["norm2"] = take(f"{prefix}post_attention_layernorm.weight")
            for part in ("q_norm", "k_norm"):
                name = f"{prefix}self_attn.{part}.weight"
                layer[part] = take(name) if name in where else None
            self.layers.append(layer)
        self._cos, self._sin = self._rotary_tables()

    def _rotary_tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of every position, (max_length, head_dim), float32, by transformers' own rope functions."""
        from transformers import AutoConfig
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        c = self.config
        if c.rope_scaling:
            kind = c.rope_scaling.get("rope_type") or c.rope_scaling.get("type")
            inverse, factor = ROPE_INIT_FUNCTIONS[kind](AutoConfig.from_pretrained(self.folder), self.device)
        else:
            inverse = c.rope_theta ** (-torch.arange(0, c.head_dim, 2, dtype=torch.float32) / c.head_dim)
            factor = 1.0
        angles = torch.arange(c.max_length, dtype=torch.float32)[:, None] * inverse.cpu()[None]
        cos, sin = angles.cos() * factor, angles.sin() * factor
        return torch.cat([cos, cos], dim=1).to(self.device), torch.cat([-sin, sin], dim=1).to(self.device)

    def _angles(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """What `rotate` takes, for rows at `positions`."""
        return self._cos[positions][:, None].to(dtype), self._sin[positions][:, None].to(dtype)

    def _linear(self, x, frozen: Frozen, adapters: Adapters, name: str):
        """x Wᵀ with each adapter's delta on its rows."""
        if adapters.training:
            return LoraLinear.apply(x, frozen, adapters.groups.get(name), adapters.scale)
        return frozen(x, _deltas(x, frozen.shape[0], adapters, name))

    def _heads(self, n: int, x, angles, adapters: Adapters):
        """Of layer `n`: rotated queries and keys, (tokens, heads + kv_heads, head_dim), and values, (tokens, kv_heads, head_dim)."""
        c, layer = self.config, self.layers[n]
        norm, turn = (RmsNorm.apply, Rotate.apply) if adapters.training else (rms_norm, rotate)
        out = self._linear(
            norm(x, layer["norm1"].to(adapters.dtype), c.eps), layer["qkv"], adapters, f"{n}.qkv"
        )
        out = out.unflatten(-1, (-1, c.head_dim))
        turned, values = out.split([c.heads + c.kv_heads, c.kv_heads], dim=1)
        if layer["q_norm"] is not None:
            q, k = turned.split([c.heads, c.kv_heads], dim=1)
            q = norm(q, layer["q_norm"].to(adapters.dtype), c.eps)
            turned = torch.cat([q, norm(k, layer["k_norm"].to(adapters.dtype), c.eps)], dim=1)
        return turn(turned, *angles), values

    def _after_attention(self, n: int, x, attended, adapters: Adapters):
        layer = self.layers[n]
        norm, activation = (RmsNorm.apply, SwiGlu.apply) if adapters.training else (rms_norm, swiglu)
        x = x + self._linear(attended, layer["o"], adapters, f"{n}.o")
        normed = norm(x, layer["norm2"].to(adapters.dtype), self.config.eps)
        gate_up = self._linear(normed, layer["gate_up"], adapters, f"{n}.gate_up")
        return x + self._linear(activation(gate_up), layer["down"], adapters, f"{n}.down")

    def hidden(self, batch: Packed, adapters: Adapters, on_layer=None) -> torch.Tensor:
        """Final hidden states, (tokens, hidden), normed, in the adapters' compute precision; filler is cut off.

        Args:
            batch: packed sequences.
            adapters: which LoRA applies to which rows, and in what precision to compute.
            on_layer: called as on_layer(n, keys, values) with padded (sequences, kv_heads, longest, head_dim) tensors.
        """
        c, x = self.config, self.embedding[batch.tokens].float().requires_grad_(adapters.training)
        angles = self._angles(batch.positions, adapters.dtype)
        for n in range(c.layers):
            grid = batch.pad(torch.cat(self._heads(n, x, angles, adapters), dim=1))
            q, k, v = grid.split([c.heads, c.kv_heads, c.kv_heads], dim=1)
            if on_layer:
                on_layer(n, k, v)
            x = self._after_attention(n, x, batch.unpad(_attend(q, k, v)), adapters)
        norm = RmsNorm.apply if adapters.training else rms_norm
        return norm(x[: batch.size], self.norm.to(adapters.dtype), c.eps)

    def target_logprobs(
        self, hidden: torch.Tensor, targets: torch.Tensor, adapters: Adapters
    ) -> torch.Tensor:
        """log p of each row's targets, (rows, k) float32. `adapters` are those of the rows' pass."""
        if adapters.training:
            return TargetLogprob.apply(
                hidden, self.output, targets, adapters.groups.get("unembed"), adapters.scale
            )
        values = torch.empty(targets.shape, device=hidden.device)
        left = torch.ones(len(targets), dtype=torch.bool, device=hidden.device)
        for groups, scale, rows in adapters.segments:
            if lora := groups.get("unembed"):
                rows = (
                    torch.arange(len(targets), device=hidden.device)
                    if rows is None
                    else rows[rows < len(targets)]
                )
                values[rows] = TargetLogprob.apply(hidden[rows], self.output, targets[rows], lora, scale)
                left[rows] = False
        if left.any():
            values[left] = TargetLogprob.apply(hidden[left], self.output, targets[left], None, 1.0)
        return values

    def logits(self, hidden: torch.Tensor, adapters: Adapters) -> torch.Tensor:
        """(rows, vocab) float32 of final hidden states; `adapters` are for these rows."""
        return self.output(hidden, _deltas(hidden, self.config.vocab, adapters, "unembed")).float()

    def decode(self, tokens: torch.Tensor, cache: "Cache", adapters: Adapters) -> torch.Tensor:
        """One token more for each sequence in the cache: (n,) tokens -> (n, vocab) float32 logits."""
        c, n_rows = self.config, len(tokens)
        lengths = cache.lengths[:n_rows]
        cache.reach(int(lengths.max()) + 1)
        rows = torch.arange(n_rows, device=self.device)
        beyond = torch.arange(cache.capacity, device=self.device)[None] > lengths[:, None]
        mask = torch.zeros(n_rows, 1, 1, cache.capacity, dtype=self.dtype, device=self.device).masked_fill_(
            beyond[:, None, None], -math.inf
        )
        angles, x = self._angles(lengths, self.dtype), self.embedding[tokens].float()
        for n in range(c.layers):
            turned, v = self._heads(n, x, angles, adapters)
            q, k = turned.split([c.heads, c.kv_heads], dim=1)
            keys, values = cache.keys[n], cache.values[n]
            keys[rows, :, :, lengths], values[rows, :, lengths] = k * c.head_dim**-0.5, v
            q = q.unflatten(
                1, (c.kv_heads, -1)
            )  # the queries that share a key head stand as positions of one sequence
            weights = torch.softmax((q @ keys[:n_rows]).add_(mask), dim=-1)
            attended = weights @ values[:n_rows]
            x = self._after_attention(n, x, attended.reshape(n_rows, -1), adapters)
        cache.lengths[:n_rows] += 1
        return self.logits(rms_norm(x, self.norm, c.eps), adapters)


def _deltas(x: torch.Tensor, width: int, adapters: Adapters, name: str) -> torch.Tensor | None:
    """What the adapters' groups `name` make of their rows of x, (rows, width); None if there are none. Few rows are padded to
    four, for the same reason as in `Frozen`."""
    result = None
    for groups, scale, rows in adapters.segments:
        if (lora := groups.get(name)) is None:
            continue
        part = x if rows is None else x[rows]
        count = len(part)
        if count < 4:
            part = F.pad(part, (0, 0, 0, 4 - count))
        delta = lora.delta(part, scale)[0][:count]
        if rows is None:
            return delta
        if result is None:
            result = x.new_zeros(len(x), width)
        result[rows] = delta
    return result


def _attend(q, k, v):
    """Causal attention with grouped heads, all (sequences, heads, length, head_dim)."""
    sequences, heads, length, dim = q.shape
    if length > SHORT:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    grouped = q.reshape(sequences, k.shape[1], -1, dim)
    attended = Attention.apply(grouped, k, v) if q.requires_grad else causal_weights(grouped, k) @ v
    return attended.view(sequences, heads, length, dim)


class Cache:
    """Keys and values of running sequences, one slot a sequence; the running ones are always the first slots.

    Keys are kept as (slots, kv_heads, dim, capacity), times 1/√dim: products with them are then plain matrix products, which
    take two thirds of the time of PyTorch's fused attention at 16 sequences and half at 64. They must be contiguous for that,
    so the capacity is never much more than the longest sequence needs now, and grows with it.
    """

    STEP = 32  # positions by which the capacity grows

    def __init__(self, model: Model, slots: int):
        c, self.slots, self.capacity = model.config, slots, 0
        self.keys = [
            torch.zeros(slots, c.kv_heads, c.head_dim, 0, dtype=model.dtype, device=model.device)
            for _ in range(c.layers)
        ]
        self.values = [
            torch.zeros(slots, c.kv_heads, 0, c.head_dim, dtype=model.dtype, device=model.device)
            for _ in range(c.layers)
        ]
        self.lengths = torch.zeros(slots, dtype=torch.long, device=model.device)

    def reach(self, length: int) -> None:
        """Make room for sequences of this length."""
        if length > self.capacity:
            self._resize(self.slots, round_up(length, Cache.STEP))

    def widen(self, slots: int) -> None:
        """Make room for more sequences."""
        if slots > self.slots:
            self._resize(slots, self.capacity)
            self.lengths = F.pad(self.lengths, (0, slots - self.slots))
            self.slots = slots

    def _resize(self, slots: int, capacity: int) -> None:
        more, longer = slots - self.slots, capacity - self.capacity
        for n in range(len(self.keys)):
            self.keys[n] = F.pad(self.keys[n], (0, longer, 0, 0, 0, 0, 0, more))
            self.values[n] = F.pad(self.values[n], (0, 0, 0, longer, 0, 0, 0, more))
        self.capacity = capacity

    def put(self, layer: int, slots: slice, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write (sequences, kv_heads, length, head_dim) keys and values from position 0 on, as far as there is room, and zeros
        after them: what another sequence left there, NaN of spoilt weights perhaps, is multiplied by zero, which must give zero."""
        reach = min(keys.shape[2], self.capacity)
        self.keys[layer][slots, ..., reach:] = 0
        self.values[layer][slots, :, reach:] = 0
        self.keys[layer][slots, ..., :reach] = keys[:, :, :reach].transpose(2, 3) * keys.shape[3] ** -0.5
        self.values[layer][slots, :, :reach] = values[:, :, :reach]

    def move(self, source: int, target: int) -> None:
        """Copy one slot onto another."""
        for tensors in (self.keys, self.values):
            for tensor in tensors:
                tensor[target] = tensor[source]
        self.lengths[target] = self.lengths[source]
