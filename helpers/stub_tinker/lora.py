"""LoRA weights of one training client: parameters, gradients and Adam's state, each one flat float32 tensor.

One flat tensor makes the optimizer step one kernel, a snapshot one copy, and the memory of a client easy to
state: 4 bytes a parameter, 12 after the first step, and 4 more while gradients wait for a step.
"""

import json
import math
from functools import cached_property

import torch

from helpers.stub_tinker.lora_layer import LoraGroup, SteadyLora
from helpers.stub_tinker.model import ALPHA, ATTENTION_GROUPS, GROUPS, MLP_GROUPS, Config, module_shapes

PREFIX = "base_model.model.model"
UNEMBED = "unembed"  # the group of the output layer, which Tinker calls unembed_tokens and PEFT lm_head


class Layout:
    """Where each LoRA factor stands in the flat tensor, for one base model, rank and choice of modules."""

    def __init__(
        self, config: Config, rank: int, train_attn: bool, train_mlp: bool, train_unembed: bool = False
    ):
        self.rank = rank
        self.train_attn, self.train_mlp, self.train_unembed = train_attn, train_mlp, train_unembed
        self.scale = ALPHA / rank
        chosen = (ATTENTION_GROUPS if train_attn else ()) + (MLP_GROUPS if train_mlp else ())
        shapes = module_shapes(config)
        # "{layer}.{group}" -> (modules, a slice, a shape, [(b slice, b shape)])
        self.groups: dict[str, tuple] = {}
        self.size = 0
        for layer in range(config.layers):
            for group in chosen:
                self._add(f"{layer}.{group}", GROUPS[group], [shapes[module] for module in GROUPS[group]])
        if train_unembed:
            self._add(UNEMBED, ("unembed_tokens",), [(config.vocab, config.hidden)])
        modules = {module.split(".")[-1] for modules, *_ in self.groups.values() for module in modules}
        self.modules = sorted(modules)

    def _add(self, name: str, modules: tuple[str, ...], shapes: list[tuple[int, int]]) -> None:
        def take(rows: int, columns: int) -> tuple[slice, tuple[int, int]]:
            start = self.size
            self.size += rows * columns
            return slice(start, self.size), (rows, columns)

        a = take(len(modules) * self.rank, shapes[0][1])
        self.groups[name] = modules, *a, [take(out, self.rank) for out, _ in shapes]

    @property
    def trained_bytes(self) -> int:
        """Of weights that are trained, with gradients and Adam's state."""
        return 16 * self.size

    def frozen_bytes(self, dtype: torch.dtype) -> int:
        """Of weights to sample with, at most: as they are, and as `SteadyLora`."""
        joined = 0
        for _, _, (rows, width), bs in self.groups.values():
            joined += rows * width + rows * sum(out for _, (out, _) in bs)
        return 4 * self.size + dtype.itemsize * joined

    def views(self, flat: torch.Tensor) -> dict[str, LoraGroup]:
        """The factors as views of `flat`."""
        return {
            name: LoraGroup(flat[a].view(a_shape), [flat[b].view(shape) for b, shape in bs])
            for name, (_, a, a_shape, bs) in self.groups.items()
        }

    def named(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """The factors as views of `flat`, under the names that Tinker gives them in an adapter file."""
        tensors = {}
        for name, (modules, a, a_shape, bs) in self.groups.items():
            where = PREFIX if name == UNEMBED else f"{PREFIX}.layers.{name.split('.')[0]}"
            for i, (module, (b, b_shape)) in enumerate(zip(modules, bs, strict=True)):
                key = f"{where}.{module}"
                tensors[f"{key}.lora_A.weight"] = flat[a].view(a_shape)[i * self.rank : (i + 1) * self.rank]
                tensors[f"{key}.lora_B.weight"] = flat[b].view(b_shape)
        return tensors


def adapter_config(layout: Layout, base_model: str) -> bytes:
    """adapter_config.json of an adapter, as Tinker exports it."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": layout.rank,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": layout.modules,
    }
    return json.dumps(config, indent=2).encode()


class Adapter:
    """Frozen LoRA weights that a sampler uses: float32, and in the precision of the model once it samples."""

    def __init__(self, layout: Layout, flat: torch.Tensor, dtype: torch.dtype):
        self.layout, self.flat, self.dtype = layout, flat, dtype

    def groups(self, dtype: torch.dtype) -> dict[str, SteadyLora]:
        """The factors for a pass in float32 or in the model's precision; only the latter are kept."""
        return self._groups if dtype == self.dtype else self._in(dtype)

    @cached_property
    def _groups(self) -> dict[str, SteadyLora]:
        return self._in(self.dtype)

    def rest(self) -> None:
        """Drop the factors in the model's precision, half of what it holds, until it samples again."""
        self.__dict__.pop("_groups", None)

    def _in(self, dtype: torch.dtype) -> dict[str, SteadyLora]:
        views = self.layout.views(self.flat.to(dtype))
        return {name: SteadyLora(group) for name, group in views.items()}


class LoraState:
    """The weights that a training client trains."""

    def __init__(self, layout: Layout, seed: int | None, device: torch.device):
        self.layout = layout
        self.flat = torch.nn.Parameter(torch.zeros(layout.size, device=device), requires_grad=False)
        self.grad: torch.Tensor | None = None  # only between forward_backward and optim_step
        self.optimizer = torch.optim.AdamW([self.flat], lr=0.0, fused=True)
        self.steps = 0
        generator = torch.Generator().manual_seed(seed if seed is not None else torch.seed() % 2**63)
        with torch.no_grad():
            for (
                _,
                a,
                a_shape,
                _,
            ) in layout.groups.values():  # as PEFT: A kaiming uniform with a=√5, B zero
                bound = 1 / math.sqrt(a_shape[1])
                values = torch.empty(a_shape).uniform_(-bound, bound, generator=generator)
                self.flat[a] = values.flatten().to(device)

    def training_groups(self, dtype: torch.dtype) -> dict[str, LoraGroup]:
        """The factors in compute precision, each with the float32 buffers that its gradients add to."""
        if self.grad is None:
            self.grad = torch.zeros(self.layout.size, device=self.flat.device)
        groups = self.layout.views(self.flat.detach().to(dtype))
        for group, gradient in zip(groups.values(), self.layout.views(self.grad).values(), strict=True):
            group.grad_a, group.grad_b = gradient.a, gradient.b
        return groups

    def frozen_groups(self, dtype: torch.dtype) -> dict[str, LoraGroup]:
        """The factors in compute precision, for passes without gradients."""
        return self.layout.views(self.flat.detach().to(dtype))

    def snapshot(self, dtype: torch.dtype) -> Adapter:
        """A copy that later training does not change."""
        return Adapter(self.layout, self.flat.detach().clone(), dtype)

    def step(self, params: dict[str, float]) -> dict[str, float]:
        """One AdamW step with the accumulated gradients, which are then zero.

        Args:
            params: the fields of `tinker.types.AdamParams`.

        Returns:
            The gradient's norm before clipping, and the learning rate.

        Raises:
            ValueError: a gradient is not finite. Nothing is changed but the gradients, which are dropped.
        """
        gradient, self.grad = self.grad, None
        if gradient is None:
            gradient = torch.zeros_like(self.flat)
        norm = float(gradient.norm())
        if not math.isfinite(norm):
            raise ValueError(
                "the gradient is NaN or infinite: the step was not taken and the gradient is dropped. "
                "Look at the loss of the last forward_backward: its inputs are too far off"
            )
        if 0 < params["grad_clip_norm"] < norm:
            gradient.mul_(params["grad_clip_norm"] / (norm + 1e-6))
        self.optimizer.param_groups[0].update(
            lr=params["learning_rate"],
            betas=(params["beta1"], params["beta2"]),
            eps=params["eps"],
            weight_decay=params["weight_decay"],
        )
        self.flat.grad = gradient
        try:
            self.optimizer.step()
        except RuntimeError as error:  # a number of the step is beyond float32
            raise ValueError(
                f"the optimizer step failed: {error}. Look at learning_rate and weight_decay"
            ) from error
        finally:
            self.flat.grad = None
        self.steps += 1
        return {"grad_norm": norm, "learning_rate": params["learning_rate"]}

    def optimizer_tensors(self) -> dict[str, torch.Tensor]:
        """Adam's state: two moments of the layout's size and the step count; empty before the first step."""
        state = self.optimizer.state.get(self.flat, {})
        return {key: value.detach().clone().reshape(-1) for key, value in state.items()}

    def load(self, tensors: dict[str, torch.Tensor], optimizer: dict[str, torch.Tensor] | None) -> None:
        """Take weights by name, and Adam's state if given; gradients become zero.

        Raises:
            ValueError: names or shapes differ from this client's.
        """
        own = self.layout.named(self.flat.data)
        if own.keys() != tensors.keys():
            raise ValueError("the checkpoint trains other modules than this client")
        for key, value in own.items():
            if value.shape != tensors[key].shape:
                other, mine = tuple(tensors[key].shape), tuple(value.shape)
                raise ValueError(f"{key}: the checkpoint has shape {other}, the client {mine}")
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(tensors[key])
        self.grad = None
        self.optimizer.state.clear()
        if optimizer:
            self.optimizer.state[self.flat] = {
                key: (value.reshape(()) if key == "step" else value).clone().to(self.flat.device)
                for key, value in optimizer.items()
            }
