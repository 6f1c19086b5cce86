"""LoRA weights of one training client: parameters, gradients and Adam's state, each one flat float32 tensor.

One flat tensor makes the optimizer step one kernel, a snapshot one copy, and the memory of a client easy to state:
16 bytes a parameter.
"""

import math

import torch

from helpers.stub_tinker.model import ALPHA, ATTENTION_GROUPS, GROUPS, MLP_GROUPS, Config, LoraGroup, module_shapes

PREFIX = "base_model.model.model.layers"


class Layout:
    """Where each LoRA factor stands in the flat tensor, for one base model, rank and choice of modules."""

    def __init__(self, config: Config, rank: int, train_attn: bool, train_mlp: bool):
        self.rank, self.train_attn, self.train_mlp = rank, train_attn, train_mlp
        self.scale = ALPHA / rank
        groups = (ATTENTION_GROUPS if train_attn else ()) + (MLP_GROUPS if train_mlp else ())
        self.modules = [module for group in groups for module in GROUPS[group]]
        shapes = module_shapes(config)
        self.groups: dict[str, tuple] = {}  # "{layer}.{group}" -> (modules, a slice, a shape, [(b slice, b shape)])
        offset = 0
        for layer in range(config.layers):
            for group in groups:
                modules = GROUPS[group]
                a_shape = (len(modules) * rank, shapes[modules[0]][1])
                a = slice(offset, offset + a_shape[0] * a_shape[1])
                offset, bs = a.stop, []
                for module in modules:
                    b_shape = (shapes[module][0], rank)
                    bs.append((slice(offset, offset + b_shape[0] * rank), b_shape))
                    offset = bs[-1][0].stop
                self.groups[f"{layer}.{group}"] = (modules, a, a_shape, bs)
        self.size = offset

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
            layer = name.split(".")[0]
            for i, (module, (b, b_shape)) in enumerate(zip(modules, bs)):
                key = f"{PREFIX}.{layer}.{module}"
                tensors[f"{key}.lora_A.weight"] = flat[a].view(a_shape)[i * self.rank : (i + 1) * self.rank]
                tensors[f"{key}.lora_B.weight"] = flat[b].view(b_shape)
        return tensors


class Adapter:
    """Frozen LoRA weights that a sampler uses: float32, with a copy in the model's precision."""

    def __init__(self, layout: Layout, flat: torch.Tensor, dtype: torch.dtype):
        self.layout, self.flat = layout, flat
        self.exact = layout.views(flat)
        self.fast = self.exact if dtype == torch.float32 else layout.views(flat.to(dtype))


class LoraState:
    """The weights that a training client trains."""

    def __init__(self, layout: Layout, seed: int | None, device: torch.device):
        self.layout = layout
        self.flat = torch.nn.Parameter(torch.zeros(layout.size, device=device), requires_grad=False)
        self.grad = torch.zeros(layout.size, device=device)
        self.optimizer = torch.optim.AdamW([self.flat], lr=0.0)
        self.steps = 0
        generator = torch.Generator().manual_seed(seed if seed is not None else torch.seed() % 2**63)
        with torch.no_grad():
            for _, a, a_shape, _ in layout.groups.values():  # as PEFT: kaiming uniform with a=√5 for A, zero for B
                bound = 1 / math.sqrt(a_shape[1])
                values = torch.empty(a_shape).uniform_(-bound, bound, generator=generator)
                self.flat[a] = values.flatten().to(device)

    def training_groups(self, dtype: torch.dtype) -> dict[str, LoraGroup]:
        """The factors in compute precision, each with the float32 buffers that its gradients add to."""
        groups = self.layout.views(self.flat.detach().to(dtype))
        for group, gradient in zip(groups.values(), self.layout.views(self.grad).values()):
            group.grad_a, group.grad_b = gradient.a, gradient.b
        return groups

    def snapshot(self, dtype: torch.dtype) -> Adapter:
        """A copy that later training does not change."""
        return Adapter(self.layout, self.flat.detach().clone(), dtype)

    def step(self, params: dict[str, float]) -> dict[str, float]:
        """One AdamW step with the accumulated gradients, which are then zero.

        Args:
            params: the fields of `tinker.types.AdamParams`.

        Returns:
            The gradient's norm before clipping, and the learning rate.
        """
        norm = self.grad.norm()
        if params["grad_clip_norm"] > 0:
            self.grad.mul_((params["grad_clip_norm"] / (norm + 1e-6)).clamp(max=1.0))
        self.optimizer.param_groups[0].update(
            lr=params["learning_rate"],
            betas=(params["beta1"], params["beta2"]),
            eps=params["eps"],
            weight_decay=params["weight_decay"],
        )
        self.flat.grad = self.grad
        self.optimizer.step()
        self.flat.grad = None
        self.grad.zero_()
        self.steps += 1
        return {"grad_norm": float(norm), "learning_rate": params["learning_rate"]}

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
                raise ValueError(f"{key}: the checkpoint has shape {tuple(tensors[key].shape)}, the client {tuple(value.shape)}")
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(tensors[key])
        self.grad.zero_()
        self.optimizer.state.clear()
        if optimizer:
            self.optimizer.state[self.flat] = {
                key: value.clone().reshape(()) if key == "step" else value.clone().to(self.flat.device)
                for key, value in optimizer.items()
            }
