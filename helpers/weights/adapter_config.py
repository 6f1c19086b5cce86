"""What an adapter's `adapter_config.json` may say. A key is used, changes nothing in a trained adapter, or is
refused by name: PEFT has three dozen, and one that is overlooked gives another model than the trained one.

config = read_adapter_config("peft_adapter/adapter_config.json")
config.scale_of("model.layers.0.mlp.up_proj")  # of B·A
"""

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, StringConstraints, ValidationError

from helpers.errors import ModelError, RunError
from helpers.files import read_json

# Where the adapter comes from, how it was trained, or a detail of a feature that is refused itself.
WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
}

# PEFT takes regular expressions too. A hostile one never ends, so names it is.
Name = Annotated[str, StringConstraints(pattern=r"^\^?[\w.]+$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class AdapterConfig(BaseModel):
    """The keys that are used, with PEFT's meaning. A module is named as in the model: `model.layers.0.…`.

    Attributes:
        r: rank of a module that `rank_pattern` does not name.
        lora_alpha: alpha of a module that `alpha_pattern` does not name.
        use_rslora: the scale is alpha / √rank, not alpha / rank.
        target_modules, exclude_modules: ends of module names; "all-linear" and None stand for all that have
            tensors.
        layers_to_transform: numbers of the layers with an adapter; None means all.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    r: PositiveInt
    lora_alpha: Positive
    use_rslora: bool = False
    rank_pattern: dict[Name, PositiveInt] = {}
    alpha_pattern: dict[Name, Positive] = {}
    target_modules: list[Name] | Literal["all-linear"] | None = None
    exclude_modules: list[Name] = []
    layers_to_transform: list[int] | int | None = None
    # Other values than these change the model in ways that no tensor of the adapter shows.
    peft_type: Literal["LORA"] = "LORA"
    task_type: Literal["CAUSAL_LM"] = "CAUSAL_LM"
    bias: Literal["none"] = "none"
    init_lora_weights: Literal[True, False, "gaussian", "orthogonal", "eva"] = True

    def rank_of(self, module: str) -> int:
        """The rank of a module's factors."""
        return _first_match(self.rank_pattern, module, self.r)

    def scale_of(self, module: str) -> float:
        """What B·A is multiplied with before it is added to a module's weight."""
        rank = self.rank_of(module)
        return _first_match(self.alpha_pattern, module, self.lora_alpha) / (
            math.sqrt(rank) if self.use_rslora else rank
        )

    def selects(self, module: str) -> bool:
        """Whether PEFT gives this module an adapter."""
        if isinstance(self.target_modules, list) and not _named(module, self.target_modules):
            return False
        return not _named(module, self.exclude_modules) and self._selects_layer(module)

    def _selects_layer(self, module: str) -> bool:
        layers = self.layers_to_transform
        layers = [layers] if isinstance(layers, int) else layers
        found = re.match(r".*?\.[^.]*\.(\d+)\.", module)
        return not layers or (found is not None and int(found[1]) in layers)


def _named(module: str, names: list[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _first_match(pattern: dict[str, Any], module: str, otherwise: Any) -> Any:
    """The value of the first key that is the end of the module's name, as in PEFT's `get_pattern_key`."""
    found = (value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module))
    return next(found, otherwise)


def read_adapter_config(path: Path) -> AdapterConfig:
    """Read an `adapter_config.json`, Tinker's or PEFT's.

    Raises:
        ModelError: it is missing or damaged, or has a key or a value that is not handled.
    """
    try:
        values = read_json(path)
    except (RunError, ValueError, RecursionError) as error:
        what = error.what if isinstance(error, RunError) else f"{path} is damaged: {error}"
        raise ModelError(what, "download and unpack it again") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} is damaged: it holds no JSON object", "download and unpack it again")
    for key, value in values.items():
        if key not in AdapterConfig.model_fields and key not in WITHOUT_EFFECT and value:
            raise _refused(path, key, value, "the course does not handle this key")
    known = {key: value for key, value in values.items() if key in AdapterConfig.model_fields}
    try:
        return AdapterConfig.model_validate({k: v for k, v in known.items() if v is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        if first["type"] == "missing":
            raise ModelError(f"{path} has no {key!r}", "download and unpack it again") from error
        raise _refused(path, key, values[key], first["msg"]) from error


def _refused(path: Path, key: str, value: Any, why: str) -> ModelError:
    if key == "init_lora_weights":
        fix = "convert it in PEFT: model.save_pretrained(…, path_initial_model_for_weight_conversion=…)"
    else:
        fix = "train without it, or merge with the PEFT version that trained it: merge_and_unload()"
    return ModelError(f"{path}: {key} = {value!r:.80} can't be used: {why}", fix)
