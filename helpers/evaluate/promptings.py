"""The ways in which the base model is asked. A tuned model is compared with the strongest of them.

    formats, left_out = base_formats(fmt, examples, test_set, max_tokens=96, context=8192)
    results = evaluate_formats(base_client, test_set, formats, …)
    results[strongest(task, results)]

A chat model in a format that is not its own does badly, and so does one that is not told what an answer looks
like. So it is asked in its own chat template, in the same after worked examples from the training data, and
in the format of training. To take the best of the three on the test set favours the base model, if anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from helpers.evaluate.score import Score
from helpers.evaluate.tasks import Task
from helpers.text import plural
from helpers.train.prompts import PromptFormat, as_messages, question_text

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


class ChatTemplate:
    """The chat template that came with a model, in the form of a renderer, after worked examples."""

    def __init__(self, tokenizer: Any, examples: Records = ()):
        self._tokenizer = tokenizer
        self._before = [turn for example in examples for turn in as_messages(example)]

    def build_generation_prompt(self, messages: list[dict[str, str]]) -> Any:
        """The prompt up to where the answer starts, as Tinker's `ModelInput`."""
        from tinker import types

        tokens = self._tokenizer.apply_chat_template(
            [*self._before, *messages], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return types.ModelInput.from_ints(tokens)

    def get_stop_sequences(self) -> list[int]:
        """The special token after an answer in the template, and the tokenizer's end of text."""
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "the-answer"}]
        after = self._tokenizer.apply_chat_template(turns, tokenize=False).rpartition("the-answer")[2]
        end = self._tokenizer.encode(after, add_special_tokens=False)[:1]
        special = [token for token in end if token in self._tokenizer.all_special_ids]
        return sorted({*special, self._tokenizer.eos_token_id} - {None})


def base_formats(
    fmt: PromptFormat, examples: Records, test_data: Records, max_tokens: int, context: int | None
) -> tuple[dict[str, PromptFormat], dict[str, str]]:
    """The formats in which to ask a base model, by name, and why others were left out.

    Args:
        fmt: the format of training.
        examples: records of the training part, EXAMPLES of them if there are as many.
        test_data: the problems to ask.
        max_tokens: longest answer.
        context: most tokens of prompt and answer together; None if it is not known.
    """
    formats, left_out = {}, {}
    for name, before in ((CHAT, ()), (f"{CHAT}, {len(examples)} examples", examples)):
        try:
            formats[name] = _chat_format(name, fmt.tokenizer, before, test_data, max_tokens, context)
        except _NotAskedSoError as reason:
            left_out[name] = str(reason)
    return formats | {TRAINING: fmt}, left_out


class _NotAskedSoError(Exception):
    """A format that a model can't be asked in, and why."""


def _chat_format(
    name: str, tokenizer: Any, examples: Records, test_data: Records, max_tokens: int, context: int | None
) -> PromptFormat:
    import jinja2

    if not getattr(tokenizer, "chat_template", None):
        raise _NotAskedSoError("the model has no chat template")
    renderer = ChatTemplate(tokenizer, examples)
    longest = max(test_data, key=lambda example: len(question_text(example, "chat")))
    try:
        fmt = PromptFormat(name, tokenizer, renderer.get_stop_sequences(), renderer)
        length = len(fmt.prompt_tokens(longest))
    except jinja2.TemplateError as error:
        raise _NotAskedSoError(f"the model's chat template refuses such turns: {error}") from error
    if context and length + max_tokens > context:
        raise _NotAskedSoError(
            f"{length} tokens of prompt and {max_tokens} of answer are more than its context of {context}"
        )
    return fmt


def strongest(task: Task, results: Mapping[str, dict[str, Any]]) -> str:
    """The name of the best result: by its rate, of equals by its mean F1, of equals the first."""
    return max(results, key=lambda name: task.headline(results[name]).rank)
