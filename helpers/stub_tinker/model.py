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
class Frozen:
    """One fused frozen matrix: weight (out, in), bias (out) or None, and where each module's rows end."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    splits: tuple[int, ...]


@dataclass
class LoraGroup:
    """LoRA factors of one fused matrix, in compute precision, with the float32 buffers their gradients go to.

    `a` is (n·r, in) for the n modules of the group; `b[i]` is (out_i, r).
    """

    a: torch.Tensor
    b: list[torch.Tensor]
    grad_a: torch.Tensor | None = None
    grad_b: list[torch.Tensor] = field(default_factory=list)


class _LoraLinear(torch.autograd.Function):
    """y = x Wᵀ + s (x Aᵀ) Bᵀ. Backward returns dx and adds dA and dB to the group's own buffers."""

    @staticmethod
    def forward(ctx, x, frozen, lora, scale):
        y = F.linear(x, frozen.weight, frozen.bias)
        h = (x @ lora.a.T).mul_(scale)
        rank, start = lora.b[0].shape[1], 0
        for i, (b, end) in enumerate(zip(lora.b, frozen.splits)):
            y[:, start:end].addmm_(h[:, i * rank : (i + 1) * rank], b.T)
            start = end
        ctx.save_for_backward(x, h)
        ctx.frozen, ctx.lora, ctx.scale = frozen, lora, scale
        return y

    @staticmethod
    def backward(ctx, grad):
        (x, h), frozen, lora = ctx.saved_tensors, ctx.frozen, ctx.lora
        rank, start = lora.b[0].shape[1], 0
        grad_h = torch.empty_like(h)
        for i, (b, end) in enumerate(zip(lora.b, frozen.splits)):
            part = grad[:, start:end]
            lora.grad_b[i] += part.T @ h[:, i * rank : (i + 1) * rank]
            torch.mm(part, b, out=grad_h[:, i * rank : (i + 1) * rank])
            start = end
        grad_h.mul_(ctx.scale)
        lora.grad_a += grad_h.T @ x
        return (grad @ frozen.weight).addmm_(grad_h, lora.a), None, None, None


class _RmsNorm(torch.autograd.Function):
    """Root mean square norm of float32 rows, result in compute precision; keeps only its input and 1/rms."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        inverse = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, inverse)
        ctx.weight = weight
        return (x * inverse).to(weight.dtype) * weight

    @staticmethod
    def backward(ctx, grad):
        x, inverse = ctx.saved_tensors
        normed = x * inverse
        grad = (grad * ctx.weight).float()
        return (grad - normed * (grad * normed).mean(-1, keepdim=True)).mul_(inverse).to(x.dtype), None, None


class _SwiGlu(torch.autograd.Function):
    """silu(gate) · up on the fused (tokens, 2·intermediate) output; keeps only that output."""

    @staticmethod
    def forward(ctx, gate_up):
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors[0].chunk(2, dim=-1)
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        out = torch.empty_like(ctx.saved_tensors[0])
        torch.mul(grad * up, sigmoid + silu * (1 - sigmoid), out=out[:, : gate.shape[1]])
        torch.mul(grad, silu, out=out[:, gate.shape[1] :])
        return out


class _TargetLogprob(torch.autograd.Function):
    """log softmax(h Eᵀ)[target] a row, in slices of rows; keeps the probabilities in compute precision for backward."""

    SLICE = 256

    @staticmethod
    def forward(ctx, hidden, embedding, targets):
        asked = len(targets)
        filler = round_up(asked, 64) - asked
        hidden, targets = F.pad(hidden, (0, 0, 0, filler)), F.pad(targets, (0, filler))
        result = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        kept = []
        for start in range(0, len(targets), _TargetLogprob.SLICE):
            rows = slice(start, start + _TargetLogprob.SLICE)
            logits = hidden[rows] @ embedding.T
            full = logits.float()
            total = torch.logsumexp(full, dim=-1, keepdim=True)
            result[rows] = (full.gather(1, targets[rows, None]) - total).squeeze(1)
            if ctx.needs_input_grad[0]:
                kept.append(torch.exp(full.sub_(total)).to(logits.dtype))
        ctx.save_for_backward(targets, *kept)
        ctx.embedding = embedding
        return result[:asked]

    @staticmethod
    def backward(ctx, grad):
        targets, *kept = ctx.saved_tensors
        asked = len(grad)
        pulled = torch.cat([probabilities @ ctx.embedding for probabilities in kept])[:asked]
        return (ctx.embedding[targets[:asked]] - pulled) * grad[:, None].to(pulled.dtype), None, None


def round_up(number: int, multiple: int) -> int:
    """oneDNN makes and keeps a kernel for each new shape (tens of ms, and MBs), so shapes are rounded to few values."""
    return -(-number // multiple) * multiple


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
        self.positions = torch.cat([torch.arange(n) for n in self.lengths] + [torch.zeros(filler, dtype=torch.long)]).to(device)
        owner = torch.repeat_interleave(torch.arange(len(sequences) + 1), torch.tensor([*self.lengths, filler])).to(device)
        self.slots = owner * self.longest + self.positions  # row -> place in the grid

    def pad(self, rows: torch.Tensor) -> torch.Tensor:
        """(tokens, heads, dim) -> (sequences, heads, longest, dim), zeros where there is no token."""
        grid = rows.new_zeros(self.count * self.longest, *rows.shape[1:]).index_copy(0, self.slots, rows)
        return grid.view(self.count, self.longest, *rows.shape[1:]).transpose(1, 2)

    def unpad(self, grid: torch.Tensor) -> torch.Tensor:
        """(sequences, heads, longest, dim) -> (tokens, heads·dim)."""
        return grid.transpose(1, 2).reshape(self.count * self.longest, -1)[self.slots]


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

        def take(name: str, dtype: torch.dtype = dtype) -> torch.Tensor:
            if name not in where:
                raise ValueError(f"{folder} has no weight {name}")
            return where[name].get_tensor(name).to(device, dtype)

        def fused(prefix: str, modules: tuple[str, ...]) -> Frozen:
            weights = [take(f"{prefix}{m}.weight") for m in modules]
            biases = [take(f"{prefix}{m}.bias") for m in modules if f"{prefix}{m}.bias" in where]
            splits = torch.tensor([len(w) for w in weights]).cumsum(0).tolist()
            return Frozen(torch.cat(weights), torch.cat(biases) if biases else None, tuple(splits))

        self.embedding = take("model.embed_tokens.weight")
        self.unembedding = self.embedding if self.config.tied else take("lm_head.weight")
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
        self.cos, self.sin = self._rotary_tables()

    def _rotary_tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of every position, (max_length, head_dim / 2), float32, by transformers' own rope functions."""
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
        return (angles.cos() * factor).to(self.device), (angles.sin() * factor).to(self.device)

    def _rotate(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rotary position embedding of (tokens, heads, head_dim)."""
        cos, sin = self.cos[positions][:, None].to(x.dtype), self.sin[positions][:, None].to(x.dtype)
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def _linear(self, x, frozen: Frozen, adapters, name: str):
        """The frozen matrix, and each adapter's delta on its rows (see `hidden` for `adapters`)."""
        if adapters.training:
            lora = adapters.groups.get(name)
            return _LoraLinear.apply(x, frozen, lora, adapters.scale) if lora else F.linear(x, frozen.weight, frozen.bias)
        weight = frozen.weight.to(x.dtype)
        y = F.linear(x, weight, None if frozen.bias is None else frozen.bias.to(x.dtype))
        for groups, scale, rows in adapters.segments:
            lora = groups.get(name)
            if lora is None:
                continue
            part = x if rows is None else x[rows]
            h = (part @ lora.a.to(x.dtype).T).mul_(scale)
            rank = lora.b[0].shape[1]
            delta = torch.cat([h[:, i * rank : (i + 1) * rank] @ b.to(x.dtype).T for i, b in enumerate(lora.b)], dim=1)
            y = y.add_(delta) if rows is None else y.index_add_(0, rows, delta)
        return y

    def _qkv(self, n: int, x, positions, adapters):
        """Rotated queries and keys, and values, of layer `n`: (tokens, heads, head_dim) each."""
        c, layer = self.config, self.layers[n]
        out = self._linear(_RmsNorm.apply(x, layer["norm1"].to(adapters.dtype), c.eps), layer["qkv"], adapters, f"{n}.qkv")
        q, k, v = (part.unflatten(-1, (-1, c.head_dim)) for part in out.tensor_split(layer["qkv"].splits[:2], dim=-1))
        if layer["q_norm"] is not None:
            q = _RmsNorm.apply(q, layer["q_norm"].to(adapters.dtype), c.eps)
            k = _RmsNorm.apply(k, layer["k_norm"].to(adapters.dtype), c.eps)
        return self._rotate(q, positions), self._rotate(k, positions), v

    def _after_attention(self, n: int, x, attended, adapters):
        layer = self.layers[n]
        x = x + self._linear(attended, layer["o"], adapters, f"{n}.o")
        normed = _RmsNorm.apply(x, layer["norm2"].to(adapters.dtype), self.config.eps)
        gate_up = self._linear(normed, layer["gate_up"], adapters, f"{n}.gate_up")
        return x + self._linear(_SwiGlu.apply(gate_up), layer["down"], adapters, f"{n}.down")

    def hidden(self, batch: Packed, adapters: "Adapters", on_layer=None) -> torch.Tensor:
        """Final hidden states, (tokens, hidden), normed, in the adapters' compute precision; filler is cut off.

        Args:
            batch: packed sequences.
            adapters: which LoRA applies to which rows, and in what precision to compute.
            on_layer: called as on_layer(n, keys, values) with padded (sequences, kv_heads, longest, head_dim) tensors.
        """
        c, x = self.config, self.embedding[batch.tokens].float().requires_grad_(adapters.training)
        for n in range(c.layers):
            q, k, v = self._qkv(n, x, batch.positions, adapters)
            q, k, v = batch.pad(q), batch.pad(k), batch.pad(v)
            if on_layer:
                on_layer(n, k, v)
            x = self._after_attention(n, x, batch.unpad(self._attend(q, k, v)), adapters)
        return _RmsNorm.apply(x[: batch.size], self.norm.to(adapters.dtype), c.eps)

    def _attend(self, q, k, v):
        """Causal attention with grouped heads, all (sequences, heads, length, head_dim)."""
        sequences, heads, length, dim = q.shape
        if sequences * heads * length * length > 1 << 25:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        group = heads // k.shape[1]  # plain matrix products beat the fused kernel on short sequences
        scores = q.reshape(sequences, k.shape[1], group * length, dim) @ (k * (dim**-0.5)).transpose(-1, -2)
        mask = torch.full((length, length), -math.inf, device=q.device, dtype=torch.float32).triu_(1).repeat(group, 1)
        weights = torch.softmax(scores.float() + mask, dim=-1).to(v.dtype)
        return (weights @ v).view(sequences, heads, length, dim)

    def target_logprobs(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """log p(target) of each row, (rows,) float32."""
        return _TargetLogprob.apply(hidden, self.unembedding.to(hidden.dtype), targets)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(rows, vocab) float32."""
        return (hidden @ self.unembedding.to(hidden.dtype).T).float()

    def decode(self, tokens: torch.Tensor, cache: "Cache", adapters: "Adapters") -> torch.Tensor:
        """One token more for each sequence in the cache: (n,) tokens -> (n, vocab) float32 logits."""
        c, n_rows = self.config, len(tokens)
        lengths = cache.lengths[:n_rows]
        reach = min(round_up(int(lengths.max()) + 1, 32), cache.capacity)
        rows = torch.arange(n_rows, device=self.device)
        hidden_mask = torch.arange(reach, device=self.device)[None] > lengths[:, None]
        mask = torch.zeros(n_rows, 1, 1, reach, device=self.device).masked_fill_(hidden_mask[:, None, None], -math.inf)
        x = self.embedding[tokens].float()
        for n in range(c.layers):
            q, k, v = self._qkv(n, x, lengths, adapters)
            keys, values = cache.keys[n], cache.values[n]
            keys[rows, :, lengths], values[rows, :, lengths] = k, v
            keys, values = keys[:n_rows, :, :reach], values[:n_rows, :, :reach]
            q = q.view(n_rows, c.kv_heads, c.heads // c.kv_heads, c.head_dim) * (c.head_dim**-0.5)
            weights = torch.softmax((q @ keys.transpose(-1, -2)).float() + mask, dim=-1).to(v.dtype)
            x = self._after_attention(n, x, (weights @ values).reshape(n_rows, -1), adapters)
        cache.lengths[:n_rows] += 1
        return self.logits(_RmsNorm.apply(x, self.norm.to(adapters.dtype), c.eps))


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


class Cache:
    """Keys and values of running sequences, one slot a sequence; the running ones are always the first slots."""

    def __init__(self, model: Model, slots: int, capacity: int):
        c = model.config
        shape = (slots, c.kv_heads, capacity, c.head_dim)
        self.keys = [torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in range(c.layers)]
        self.values = [torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in range(c.layers)]
        self.lengths = torch.zeros(slots, dtype=torch.long, device=model.device)
        self.slots, self.capacity = slots, capacity

    def move(self, source: int, target: int) -> None:
        """Copy one slot onto another."""
        for tensors in (self.keys, self.values):
            for tensor in tensors:
                tensor[target] = tensor[source]
        self.lengths[target] = self.lengths[source]
