"""From an example to tokens, the same way for training, evaluation, the merged model and vLLM.

    fmt = get_format("guide", base_model)
    fmt.prompt_tokens(example), fmt.answer_tokens(example), fmt.stop

A prompt format decides three things together, because they only work together: the text before the answer,
the text that ends the answer, and the stop rule for sampling.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.errors import DataError, ModelError
from helpers.train.models import load_tokenizer

# The source guide's format, turn by turn: the one text that the renderer and vLLM's chat template are made
# of, too.
END_OF_ANSWER = "\n\n"
GUIDE_TURNS = {
    "system": f"{{}}{END_OF_ANSWER}",
    "user": "Instruction: {}\nResponse:",
    "assistant": f" {{}}{END_OF_ANSWER}",
}
GUIDE_STOP = (END_OF_ANSWER, "Instruction:")


def guide_prompt(example: dict[str, Any]) -> str:
    """The prompt of the source guide: `Instruction`, an `Input` line if there is one, `Response`."""
    return GUIDE_TURNS["user"].format(question_text(example, "guide"))


def guide_chat_template() -> str:
    """The guide's format as a chat template (Jinja), for servers."""
    cases = []
    for role, turn in GUIDE_TURNS.items():
        before, after = map(json.dumps, turn.split("{}"))
        text = f"{{{{- {before} + message['content'].strip() + {after} }}}}"
        cases.append(f"if message['role'] == '{role}' -%}}{text}")
    return "{%- for message in messages -%}{%- " + "{%- el".join(cases) + "{%- endif -%}{%- endfor -%}"


def question_text(example: dict[str, Any], format_name: str) -> str:
    """What the user's turn says: the instruction, and its input below it (after `Input:` in the guide's
    format).
    """
    instruction, more = example["instruction"].strip(), (example.get("input") or "").strip()
    if not more:
        return instruction
    return f"{instruction}\nInput: {more}" if format_name == "guide" else f"{instruction}\n{more}"


@dataclass(frozen=True)
class PromptFormat:
    """How an example becomes tokens. Make one with `get_format(...)`.

    Attributes:
        name: `guide`, or the name of a `tinker_cookbook` renderer.
        tokenizer: the base model's tokenizer.
        stop: what ends an answer, in the form that Tinker's `SamplingParams.stop` takes (strings or token
            ids).
        renderer: the cookbook's renderer; None for `guide`.
    """

    name: str
    tokenizer: Any
    stop: list
    renderer: Any = field(default=None, repr=False)

    def prompt_tokens(self, example: dict[str, Any]) -> list[int]:
        """Token ids of the prompt, up to where the answer starts."""
        if self.renderer is None:
            return self.tokenizer.encode(guide_prompt(example), add_special_tokens=True)
        return self.renderer.build_generation_prompt(as_messages(example)[:-1]).to_ints()

    def answer_tokens(self, example: dict[str, Any]) -> list[int]:
        """Token ids of the reference answer and of what ends it: what the model learns to write.

        Raises:
            DataError: the answer holds text at which sampling would stop.
        """
        if self.renderer is None:
            answer = example["output"].strip()
            for text in self.stop:
                if text in answer:
                    raise DataError(
                        f"the output of {example.get('instruction', '')[:60]!r} holds {text!r}, where the "
                        "guide's stop "
                        "rule ends an answer",
                        "use a chat renderer for such data (prompt_format='qwen3_instruct'), or take that "
                        "text out",
                    )
            turn = GUIDE_TURNS["assistant"].format(answer)
            return self.tokenizer.encode(turn, add_special_tokens=False)
        model_input, _ = self.renderer.build_supervised_example(as_messages(example))
        tokens = model_input.to_ints()
        return tokens[len(self.prompt_tokens(example)) :]

    def answer_text(self, tokens: list[int]) -> str:
        """The answer in a sampled token list, without the stop text, stripped."""
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        for stop in self.stop:
            if isinstance(stop, str) and stop in text:
                text = text[: text.index(stop)]
        return text.strip()


def as_messages(example: dict[str, Any]) -> list[dict[str, str]]:
    """A record as a chat of one turn: the question and its answer."""
    return [
        {"role": "user", "content": question_text(example, "chat")},
        {"role": "assistant", "content": example["output"].strip()},
    ]


def get_format(name: str, model: Any = "") -> PromptFormat:
    """The prompt format named `guide`, or the one of a `tinker_cookbook` renderer for chat models.

    Args:
        model: whose tokenizer it uses: a name on the hub, a folder, empty for the local base model; or a
            tokenizer.

    Raises:
        DataError: there is no renderer of that name.
        ModelError: the tokenizer can't be had.
    """
    tokenizer = load_tokenizer(model) if isinstance(model, (str, Path)) else model
    if name == "guide":
        return PromptFormat("guide", tokenizer, list(GUIDE_STOP))
    from tinker_cookbook import renderers

    check_format_name(name)
    try:
        renderer = renderers.get_renderer(name, tokenizer)
        stop = renderer.get_stop_sequences()
        renderer.build_generation_prompt([{"role": "user", "content": "?"}])
    except Exception as error:  # assertions and errors of many kinds: a sign of the format is no token here
        folder = Path(str(getattr(tokenizer, "name_or_path", ""))).name or "this model"
        raise DataError(
            f"prompt format {name!r} doesn't fit the tokenizer of {folder} ({type(error).__name__}: {error})",
            "use 'guide', or the renderer that the model was made for, such as 'qwen3_instruct'",
        ) from error
    return PromptFormat(name, tokenizer, stop, renderer)


def check_format_name(name: str) -> None:
    """Refuse a name that is no prompt format, without any tokenizer.

    Raises:
        DataError: there is no renderer of that name.
    """
    from tinker_cookbook import renderers
    from tinker_cookbook.exceptions import RendererError

    no_tokenizer: Any = None
    try:
        if name != "guide":
            renderers.get_renderer(name, no_tokenizer)
    except RendererError as error:
        raise DataError(
            f"there is no prompt format {name!r}",
            "use 'guide', or a tinker_cookbook renderer such as 'qwen3_instruct'",
        ) from error
    except AttributeError:  # it exists, and asks for its tokenizer
        return


def renderer_for(base_model: str, tokenizer: Any = None) -> str:
    """The cookbook's name of the chat format that a model was made for.

    Args:
        base_model: its name on the hub, or a folder.
        tokenizer: of the model, for a folder that the cookbook does not know.

    Raises:
        ModelError: neither the cookbook nor the tokenizer's chat template says.
    """
    from tinker_cookbook import model_info

    try:
        return model_info.get_recommended_renderer_name(base_model)
    except Exception as error:  # the cookbook raises several kinds for a model that it doesn't know
        if "<|im_start|>" in (getattr(tokenizer, "chat_template", None) or ""):
            return "qwen3_instruct"  # ChatML
        raise ModelError(
            f"no chat format is known for {base_model}",
            "name one: renderer='role_colon' for a base model, or 'guide'",
        ) from error


def build_datum(example: dict[str, Any], fmt: PromptFormat, max_length: int = 2048) -> Any:
    """One training example: tokens, targets shifted by one, weight 0 on the prompt and 1 on the answer.

    Returns:
        `tinker.types.Datum` of length `len(prompt) + len(answer) - 1`.

    Raises:
        DataError: the example is longer than `max_length` tokens.
    """
    import tinker
    from tinker import types

    prompt, answer = fmt.prompt_tokens(example), fmt.answer_tokens(example)
    tokens = prompt + answer
    if len(tokens) > max_length:
        raise DataError(
            f"{example.get('instruction', '')[:60]!r} is {len(tokens)} tokens long, over "
            f"max_length={max_length}",
            "raise max_length, or leave long examples out in the split",
        )
    weights = [0.0] * (len(prompt) - 1) + [1.0] * len(answer)
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData(data=tokens[1:], dtype="int64", shape=[len(tokens) - 1]),
            "weights": tinker.TensorData(data=weights, dtype="float32", shape=[len(tokens) - 1]),
        },
    )
