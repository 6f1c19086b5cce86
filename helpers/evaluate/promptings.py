"""The ways in which the base model is asked. A tuned model is compared with the strongest of them.

    formats, left_out = base_formats(renderer, examples, test_set, max_tokens=96, context=8192)
    results = evaluate_formats(base_client, test_set, formats, …)
    results[strongest(task, results)]

A chat model in a format that is not its own does badly, and so does one that is not told what an answer looks
like. So it is asked in its own chat template, in the same after worked examples from the training data, and
in the format of training. To take the best of the three on the test set favours the base model, if anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from helpers.data.conversation import conversation
from helpers.errors import DataError
from helpers.evaluate.score import Score
from helpers.evaluate.tasks import Task
from helpers.text import plural
from helpers.train.messages import cookbook_messages, messages_of, renderer_name
from helpers.train.renderers import prompt_tokens

EXAMPLES = 8
CHAT, TRAINING = "chat template", "format of training"

Records = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Prompting:
    """How the base model did, asked in one way.

    Attributes:
        correct: None if it was not asked so.
        mean_f1: of free text only.
        cut_off: answers that came to `max_tokens`.
        left_out: why it was not asked so; else empty.
    """

    name: str
    total: int
    correct: int | None = None
    mean_f1: float | None = None
    cut_off: int = 0
    left_out: str = ""

    @classmethod
    def of(cls, name: str, result: dict[str, Any], task: Task) -> "Prompting":
        """From a result of `evaluate_model`."""
        samples = result["samples"]
        cut_off = sum(sample["stop_reason"] == "length" for sample in samples)
        return cls(name, result["total"], result["correct"], task.measures(samples).get("mean_f1"), cut_off)

    def told(self, task: Task) -> str:
        """In words: how it did, or why it was not asked so."""
        if self.correct is None:
            return f"not asked: {self.left_out}"
        cut_off = f"; {plural(self.cut_off, 'answer')} cut off" if self.cut_off else ""
        return f"{task.headline_of(Score(self.correct, self.total), self.mean_f1)}{cut_off}"

    def text(self, task: Task) -> str:
        """The same after its name."""
        return f"{self.name}: {self.told(task)}"


def base_formats(
    renderer: Any, examples: Records, test_data: Records, max_tokens: int, context: int | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The renderers with which to ask a base model, by name, and why others were left out.

    Args:
        renderer: the one of training.
        examples: records of the training part, EXAMPLES of them if there are as many.
        test_data: the problems to ask.
        max_tokens: longest answer.
        context: most tokens of prompt and answer together; None if it is not known.
    """
    renderers, left_out = {}, {}
    for name, before in ((CHAT, ()), (f"{CHAT}, {len(examples)} examples", examples)):
        if name == CHAT and renderer_name(renderer) == "template":
            left_out[name] = "it is the format of training"
            continue
        try:
            renderers[name] = _chat_template(renderer.tokenizer, before)
            _check_room(renderers[name], test_data, max_tokens, context)
        except DataError as reason:
            renderers.pop(name, None)
            left_out[name] = reason.what
    return renderers | {TRAINING: renderer}, left_out


def _chat_template(tokenizer: Any, examples: Records) -> Any:
    """A renderer of the model's own chat template, after worked examples."""
    from tinker_cookbook.exceptions import RendererError

    from helpers.train.template_renderer import TemplateRenderer

    turns = [turn for example in examples for turn in cookbook_messages(messages_of(example, None))]
    try:
        renderer = TemplateRenderer(tokenizer, [turn for turn in turns if turn["role"] != "system"])
        renderer.get_stop_sequences()
    except RendererError as error:
        raise DataError(str(error), "ask it in another format") from error
    return renderer


def _check_room(renderer: Any, test_data: Records, max_tokens: int, context: int | None) -> None:
    longest = max(test_data, key=lambda example: sum(len(m["content"]) for m in conversation(example)[:-1]))
    length = len(prompt_tokens(longest, renderer))
    if context and length + max_tokens > context:
        raise DataError(
            f"{length} tokens of prompt and {max_tokens} of answer are more than its context of {context}",
            "lower max_tokens",
        )


def strongest(task: Task, results: Mapping[str, dict[str, Any]]) -> str:
    """The name of the best result: by its rate, of equals by its mean F1, of equals the first."""
    return max(results, key=lambda name: task.headline(results[name]).rank)
