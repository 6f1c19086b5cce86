"""From a record to tokens, the same way for training, evaluation, the merged model and vLLM.

    renderer = get_renderer("guide", base_model)
    prompt_tokens(record, renderer), answer_tokens(record, renderer), renderer.get_stop_sequences()

A renderer decides three things together, because they only work together: the text before the answer, the
text that ends the answer, and the stop rule for sampling. `guide` is the source guide's format, `template`
the chat template that came with the model, and any other name one of `tinker_cookbook`'s renderers.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.data.conversation import call_text
from helpers.errors import DataError, ModelError
from helpers.train.lineup import own_renderer
from helpers.train.messages import cookbook_messages, messages_before_answer, with_tools
from helpers.train.models import load_tokenizer
from helpers.train.supervised import LAST, check_all_written, naming, start_of, training_tokens

OTHER_FORMATS = "use 'guide', 'template', or a tinker_cookbook renderer such as 'qwen3_instruct'"


def get_renderer(name: str, model: Any = "") -> Any:
    """A renderer by its name: `guide`, `template`, or one of `tinker_cookbook`.

    Args:
        model: whose tokenizer it uses: a name on the hub, a folder, empty for the local base model; or a
            tokenizer.

    Returns:
        A `tinker_cookbook.renderers.Renderer`.

    Raises:
        DataError: there is no renderer of that name, or it doesn't fit the tokenizer.
        ModelError: the tokenizer can't be had.
    """
    from tinker_cookbook import renderers

    tokenizer = load_tokenizer(model) if isinstance(model, (str, Path)) else model
    check_renderer_name(name)
    path = str(getattr(tokenizer, "name_or_path", ""))
    try:
        renderer = renderers.get_renderer(name, tokenizer, model_name=path)
        renderer.get_stop_sequences()
        renderer.build_generation_prompt([renderers.Message(role="user", content="?")])
    except Exception as error:  # assertions and errors of many kinds: a sign of the format is no token here
        raise DataError(
            f"prompt format {name!r} doesn't fit the tokenizer of {Path(path).name or 'this model'} "
            f"({type(error).__name__}: {error})",
            "use 'guide', or the renderer that the model was made for, such as 'qwen3_instruct'",
        ) from error
    return renderer


def check_renderer_name(name: str) -> None:
    """Refuse a name that is no renderer's, without any tokenizer.

    Raises:
        DataError: there is no renderer of that name.
    """
    from tinker_cookbook import renderers
    from tinker_cookbook.exceptions import RendererError

    register_renderers()
    no_tokenizer: Any = None
    try:
        if not renderers.is_renderer_registered(name):
            renderers.get_renderer(name, no_tokenizer)
    except RendererError as error:
        raise DataError(f"there is no prompt format {name!r}", OTHER_FORMATS) from error
    except AttributeError:  # it exists, and asks for its tokenizer
        return


def register_renderers() -> None:
    """Make `guide` and `template` names that `tinker_cookbook.renderers.get_renderer` knows."""
    from tinker_cookbook import renderers

    from helpers.train.guide_renderer import GuideRenderer
    from helpers.train.template_renderer import TemplateRenderer

    renderers.register_renderer("guide", lambda tokenizer, image_processor: GuideRenderer(tokenizer))
    renderers.register_renderer("template", lambda tokenizer, image_processor: TemplateRenderer(tokenizer))


def renderer_for(base_model: str, tokenizer: Any = None) -> str:
    """The cookbook's name of the chat format that a model was made for.

    Args:
        base_model: its name on the hub, or a folder.
        tokenizer: of the model, for a folder that the cookbook does not know.

    Raises:
        ModelError: neither the cookbook nor the tokenizer's chat template says.
    """
    if name := own_renderer(base_model):
        return name
    if "<|im_start|>" in (getattr(tokenizer, "chat_template", None) or ""):
        return "qwen3_instruct"  # ChatML
    raise ModelError(
        f"no chat format is known for {base_model}",
        "name one: renderer='role_colon' for a base model, or 'guide'",
    )


def prompt_tokens(record: dict[str, Any], renderer: Any) -> list[int]:
    """Token ids of a record up to where its last answer starts.

    Raises:
        DataError: the renderer can't write the record.
    """
    with naming(record, renderer):
        turns = with_tools(cookbook_messages(messages_before_answer(record, renderer)), record, renderer)
        tokens = renderer.build_generation_prompt(turns).to_ints()
        check_all_written(turns, tokens, lambda turns: renderer.build_generation_prompt(turns).to_ints())
    return tokens


def answer_tokens(record: dict[str, Any], renderer: Any) -> list[int]:
    """Token ids of a record's last answer and of what ends it: what the model learns to write.

    Raises:
        DataError: the renderer can't write the record, or the answer holds text at which sampling would stop.
    """
    tokens, weights = training_tokens(record, renderer, by_marks=False)
    places = [place for place, weight in enumerate(weights) if weight]
    return tokens[places[0] : places[-1] + 1]


def answer_text(tokens: Sequence[int], renderer: Any) -> str:
    """The answer in a sampled token list: without what ended it, its thinking and white space around it.

    Tool calls become JSON, as `helpers.data.conversation.call_text` writes them.
    """
    from tinker_cookbook.exceptions import RendererError
    from tinker_cookbook.renderers import get_text_content

    with contextlib.suppress(RendererError):  # it did not end as an answer should: the text below
        message, _ = renderer.parse_response(list(tokens))
        if calls := message.get("tool_calls"):
            return call_text([call.model_dump() for call in calls])
        if isinstance(message["content"], list) and not message.get("unparsed_tool_calls"):
            return get_text_content(message).strip()
    text = renderer.tokenizer.decode(list(tokens), skip_special_tokens=True)
    for stop in renderer.get_stop_sequences():
        if isinstance(stop, str) and stop in text:
            text = text[: text.index(stop)]
    return text.strip()


def build_datum(
    record: dict[str, Any],
    renderer: Any,
    max_length: int = 2048,
    train_on: str = LAST,
) -> Any:
    """One training example: tokens, targets shifted by one, weight 1 on what is trained on and 0 elsewhere.

    Args:
        max_length: most tokens of prompt and answer together.
        train_on: one of the cookbook's `TrainOnWhat`; a message's own `trainable` goes before it.

    Returns:
        `tinker.types.Datum`, one shorter than the conversation's tokens up to the last that is trained on.

    Raises:
        DataError: the example is longer than `max_length` tokens, or the renderer can't write the record.
    """
    import tinker
    from tinker import types

    tokens, weights = training_tokens(record, renderer, train_on)
    end = max(place for place, weight in enumerate(weights) if weight) + 1  # a template may go on after it
    tokens, weights = tokens[:end], weights[:end]
    if len(tokens) > max_length:
        raise DataError(
            f"{start_of(record)} is {len(tokens)} tokens long, over max_length={max_length}",
            "raise max_length, or leave long examples out in the split",
        )
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData(data=tokens[1:], dtype="int64", shape=[len(tokens) - 1]),
            "weights": tinker.TensorData(data=weights[1:], dtype="float32", shape=[len(tokens) - 1]),
        },
    )
