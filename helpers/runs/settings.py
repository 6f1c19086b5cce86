"""The settings of each stage: names, types, allowed values, defaults and help, in one pydantic model a stage.

The notebooks' parameter cells hold the same defaults (a test keeps them equal), since that is where a learner
reads and papermill replaces them. Everything else asks here: `open_stage`, `course run`, the dry run, sweeps,
the Tab key, the docs.

    chosen = check_settings({"rank": 8, "epochs": 2})      # what a user set, for whichever stages take it
    settings_of("train", chosen).learning_rate             # 0.001, the default
"""

import difflib
import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)
from pydantic.fields import FieldInfo

from helpers.data.columns import parse_columns
from helpers.errors import CourseError
from helpers.files import SURROGATE
from helpers.runs.stages import STAGES, stages_until

OTHER_RUNS = ("base_run",)  # settings that name another run: a run like this one does not take them over


def _columns(text: str) -> str:
    parse_columns(text)
    return text


def _whole_numbers(text: str) -> str:
    if not all(part.strip().isdecimal() and int(part) for part in text.split(",")):
        raise ValueError("give whole numbers above zero, separated by commas, such as '1,4,16'")
    return text


def _plain_number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _list_as_text(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, list) else value


Text = Annotated[str, BeforeValidator(_plain_number_as_text)]
Columns = Annotated[Text, AfterValidator(_columns)]
WholeNumbers = Annotated[Text, BeforeValidator(_list_as_text), AfterValidator(_whole_numbers)]
BackendName = Annotated[str, Field(pattern=r"^(auto|stub|hosted|https?://.+)$")]
OneOrMore = Annotated[int, Field(ge=1)]
ZeroOrMore = Annotated[int, Field(ge=0)]
Tokens = Annotated[int, Field(ge=2)]
Share = Annotated[float, Field(gt=0, lt=1)]
ShareOrAll = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Precision = Literal["float32", "bfloat16", "float16"]

BACKEND = "auto, stub, hosted, or the URL of a Tinker-compatible server"
BASE_MODEL = "a model name or folder; empty takes the backend's default"
PROMPT_FORMAT = "guide, template (the model's own chat template), or a tinker_cookbook renderer"


class Settings(BaseModel):
    """Base of the settings of a stage. An unknown name is refused, and so is a value of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @field_validator("*")
    @classmethod
    def _can_be_written(cls, value: Any) -> Any:
        if isinstance(value, str) and ("\0" in value or SURROGATE.search(value)):
            raise ValueError("it holds a byte that is no text in UTF-8")
        return value

    @property
    def changed(self) -> dict[str, Any]:
        """Those with another value than the default, by name."""
        return {
            name: value
            for name, value in self.model_dump().items()
            if value != type(self).model_fields[name].default
        }


class SplitSettings(Settings):
    """01_split."""

    data_files: str = Field(
        "data/word_problems.json", description="files, separated by commas, or hub:OWNER/NAME"
    )
    columns: Columns = Field("", description="which column is what: instruction=text,output=label")
    instruction: Text = Field(
        "", description="one instruction for all records; each one's own text becomes its input"
    )
    skip_bad: bool = Field(
        False, description="leave out records that can't be used, instead of refusing the data"
    )
    task: Literal["math", "classification", "extraction", "calls", "text"] = Field(
        "math", description="what makes an answer right"
    )
    base_model: str = Field("", description=BASE_MODEL)
    prompt_format: str = Field("guide", description=PROMPT_FORMAT)
    test_size: Share = Field(0.2, description="share of all records kept for the test set")
    validation_size: Share = Field(0.1, description="share of the rest kept for choosing a checkpoint")
    seed: Seed = Field(42, description="the same seed gives the same parts")
    unseen_templates: Text = Field("", description="templates to keep out of training, separated by commas")
    max_train: ZeroOrMore = Field(0, description="most training records; 0 keeps all")
    max_validation: ZeroOrMore = Field(60, description="most validation records; 0 keeps all")
    max_test: ZeroOrMore = Field(120, description="most test records; 0 keeps all")


class TrainSettings(Settings):
    """02_train."""

    backend_name: BackendName = Field("auto", description=BACKEND)
    base_model: str = Field("", description=BASE_MODEL)
    rank: OneOrMore = Field(32, description="width of the LoRA factors")
    prompt_format: str = Field("guide", description=PROMPT_FORMAT)
    train_on: Literal[
        "last_assistant_message",
        "last_assistant_turn",
        "all_assistant_messages",
        "all_messages",
        "all_tokens",
        "all_user_and_system_messages",
        "customized",
    ] = Field("last_assistant_message", description="what of a conversation is trained on")
    max_length: Tokens = Field(1024, description="tokens; a longer example is an error, not cut")
    epochs: Positive = Field(1.0, description="passes over the training data")
    batch_size: OneOrMore = Field(8, description="examples an optimizer step")
    learning_rate: Positive = Field(1e-3, description="of the first step; it falls linearly to zero")
    seed: Seed = Field(42, description="order of the examples, and the LoRA weights")
    trial_batches: ZeroOrMore = Field(4, description="batches of the bare loop, a demonstration; 0: none")
    eval_every: OneOrMore = Field(28, description="optimizer steps between two evaluations")
    eval_every_epochs: NotNegative = Field(0.0, description="above 0: epochs between two evaluations instead")
    best_metric: Literal["accuracy", "loss"] = Field(
        "accuracy", description="chooses the checkpoint, on validation"
    )
    patience: ZeroOrMore = Field(0, description="evaluations without improvement before it stops; 0: never")
    max_tokens: OneOrMore = Field(96, description="longest sampled answer, in tokens")


class EvaluateSettings(Settings):
    """03_evaluate."""

    backend_name: BackendName = Field("auto", description=BACKEND)
    base_run: str = Field("", description="a run that asked the base model the same; empty asks it here")
    max_tokens: OneOrMore = Field(96, description="longest sampled answer, in tokens")
    temperature: NotNegative = Field(0.0, description="0 is greedy")
    max_in_flight: OneOrMore = Field(64, description="requests under way at once")
    seed: Seed = Field(42, description="used where the temperature is above 0")
    subset: OneOrMore = Field(40, description="problems that Inspect asks again")
    sampled_problems: OneOrMore = Field(16, description="problems that get several answers")
    samples_each: OneOrMore = Field(8, description="answers to each of them")
    benchmark_file: str = Field("", description="GSM8K's own test.jsonl; empty leaves the benchmark out")


class ExportSettings(Settings):
    """04_export."""

    backend_name: BackendName = Field("auto", description=BACKEND)
    checkpoint_path: str = Field("", description="a tinker:// path; empty takes the run's best checkpoint")
    export_name: Text = Field("final", description="name of the export on the server")


class MergeSettings(Settings):
    """05_merge."""

    backend_name: BackendName = Field("auto", description=BACKEND)
    dtype: Precision = Field("float32", description="precision of the saved weights")
    parity_prompts: OneOrMore = Field(32, description="test examples whose logprobs are compared")
    sampler_precision: Precision = Field("float32", description="precision in which the service scores")
    test_limit: ZeroOrMore = Field(0, description="test examples to answer; 0 takes all")
    max_tokens: OneOrMore = Field(96, description="longest answer, in tokens")
    batch_size: OneOrMore = Field(32, description="prompts at once")


class VllmSettings(Settings):
    """06_vllm_inference."""

    dtype: Precision = Field("float32", description="precision of weights and activations")
    max_model_len: Tokens = Field(1024, description="longest prompt and answer together, in tokens")
    tensor_parallel_size: OneOrMore = Field(1, description="GPUs to split each layer over")
    gpu_memory_utilization: ShareOrAll = Field(0.9, description="share of a GPU's memory that vLLM may take")
    kv_cache_gib: OneOrMore = Field(1, description="memory for keys and values on a CPU, in GiB")
    executor: Literal["", "ray", "mp", "uni", "external_launcher"] = Field(
        "", description="ray spreads the engine over machines; empty leaves it to vLLM"
    )
    max_tokens: OneOrMore = Field(96, description="longest answer, in tokens")
    parity_prompts: OneOrMore = Field(32, description="test examples whose logprobs are compared")
    throughput_tokens: ZeroOrMore = Field(
        32, description="length of each answer in the speed test; 0: no test"
    )
    batch_sizes: WholeNumbers = Field("1,4,16,64", description="prompts at once in the speed test")
    serve_prompts: ZeroOrMore = Field(24, description="test problems asked of a server; 0: none")


SETTINGS: dict[str, type[Settings]] = {
    "split": SplitSettings,
    "train": TrainSettings,
    "evaluate": EvaluateSettings,
    "export": ExportSettings,
    "merge": MergeSettings,
    "vllm": VllmSettings,
}


def fields_named(name: str) -> dict[str, FieldInfo]:
    """The stages that take a setting, each with its field; empty if none does."""
    return {
        stage: model.model_fields[name] for stage, model in SETTINGS.items() if name in model.model_fields
    }


def setting_names() -> list[str]:
    """All names, in the order of the notebooks."""
    return list(dict.fromkeys(name for model in SETTINGS.values() for name in model.model_fields))


def choices(name: str) -> tuple[str, ...]:
    """The few words that a setting takes; empty if it takes anything of its type."""
    for field in fields_named(name).values():
        return tuple(word for word in get_args(field.annotation) if isinstance(word, str))
    return ()


def check_settings(chosen: dict[str, Any]) -> dict[str, Any]:
    """What a user set, checked against every stage that takes it.

    Returns:
        The same values by name, a whole number for a float made one.

    Raises:
        CourseError: no stage takes such a setting (names the near ones), or a value is not allowed.
    """
    checked = {}
    for name, value in chosen.items():
        takers = fields_named(name)
        if not takers:
            raise CourseError(f"there is no setting {name!r}", _near(name))
        for stage in takers:
            checked[name] = getattr(_validated(SETTINGS[stage], {name: value}), name)
    return checked


def settings_of(stage: str, chosen: dict[str, Any]) -> Any:
    """The settings of a stage: its defaults, and those of `chosen` that it takes.

    Raises:
        CourseError: a value is not allowed.
    """
    model = SETTINGS[stage]
    return _validated(model, {name: value for name, value in chosen.items() if name in model.model_fields})


def settings_until(last: str, chosen: dict[str, Any]) -> dict[str, Settings]:
    """`settings_of` every stage up to `last`, by stage."""
    return {stage: settings_of(stage, chosen) for stage in stages_until(last)}


def _validated(model: type[Settings], values: dict[str, Any]) -> Settings:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        default = written(model.model_fields[name].default)
        raise CourseError(
            f"setting {name} can't be {_shortened(written(first['input']))}: {_reason(first)}",
            f"the default is {default}",
        ) from error


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:50]}… ({len(text):,} characters)"


def _reason(error: Any) -> str:
    text = error["msg"].removeprefix("Value error, ")
    if error["type"] == "string_pattern_mismatch":
        return f"it must be {BACKEND}"
    return text[0].lower() + text[1:]


def _near(name: str) -> str:
    if name == "run_name":
        return "the run's name is set by --name"
    near = difflib.get_close_matches(name, setting_names())
    return (
        f"did you mean {' or '.join(near)}?" if near else f"settings are {', '.join(sorted(setting_names()))}"
    )


def written(value: Any) -> str:
    """A value as one would type it after `-p NAME=`."""
    return (
        json.dumps(value, ensure_ascii=False, default=str)
        if not isinstance(value, str) or not value
        else value
    )


def defaults_of(name: str) -> dict[str, Any]:
    """The default of a setting in each stage that takes it."""
    return {stage: field.default for stage, field in fields_named(name).items()}


def taken_by(name: str, stages: Iterable[str] = STAGES) -> list[str]:
    """Those of `stages` that take a setting."""
    takers = fields_named(name)
    return [stage for stage in stages if stage in takers]
