"""Answers from the merged model with `transformers`, under the same prompts and stop rule as the sampler's.

    answers = generate_with_transformers(model, renderer, prompts, max_tokens=96)

An answer keeps the stop text in its tokens, as Tinker's samples do, and `answer_text` takes it off, so
that the sampler, `transformers` and vLLM are read by the same code. Here and in vLLM the model's end-of-text
token ends an answer, too.
"""

import sys
from dataclasses import dataclass
from typing import Any

from helpers.clock import worked
from helpers.errors import ModelError
from helpers.train.renderers import answer_text


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    Attributes:
        text: without the stop text, stripped.
        tokens: what the model wrote, the stop text included.
        stop_reason: `stop`, or `length` when max_tokens came first.
    """

    text: str
    tokens: list[int]
    stop_reason: str


@worked("merging")
def generate_with_transformers(
    model: Any,
    renderer: Any,
    prompts: list[list[int]],
    max_tokens: int,
    batch_size: int = 32,
    progress: bool = True,
) -> list[Answer]:
    """Greedy answers from a `transformers` or PEFT model.

    Prompts are sorted by length, so that a batch is padded little; the answers come in the order of
    `prompts`.

    Args:
        model: a causal language model.
        renderer: from `helpers.train.get_renderer`: its tokenizer and stop rule are used.
        prompts: token ids of each prompt.
        max_tokens: longest answer.
        batch_size: prompts at once.

    Raises:
        ModelError: a prompt is empty, or leaves no room for `max_tokens` in the model's context.
    """
    from tqdm import tqdm

    room = getattr(model.config, "max_position_embeddings", None)
    check_prompts(prompts, max_tokens, room)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list = [None] * len(prompts)
    with tqdm(
        total=len(prompts),
        desc="transformers",
        file=sys.stdout,
        mininterval=1,
        ncols=90,
        disable=not progress,
    ) as bar:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = _generate_batch(model, renderer, [prompts[i] for i in rows], max_tokens)
            for i, answer in zip(rows, batch, strict=True):
                answers[i] = answer
            bar.update(len(rows))
    return answers


def check_prompts(prompts: list[list[int]], max_tokens: int, room: int | None) -> None:
    """Raises ModelError for an empty prompt, for max_tokens below 1, and for a prompt too long for the
    model's context.
    """
    if max_tokens < 1:
        raise ModelError(f"max_tokens is {max_tokens}", "give at least 1")
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise ModelError(f"prompt {number} has no tokens", "check the test set")
        if room is not None and len(prompt) + max_tokens > room:
            raise ModelError(
                f"prompt {number} has {len(prompt)} tokens; with max_tokens={max_tokens} it exceeds the "
                f"context of {room}",
                "lower max_tokens, raise max_model_len, or leave long examples out",
            )


def _generate_batch(model: Any, renderer: Any, prompts: list[list[int]], max_tokens: int) -> list[Answer]:
    import torch
    from transformers import GenerationConfig, StoppingCriteriaList

    ends = _end_tokens(renderer)
    pad_token = renderer.tokenizer.pad_token_id
    pad = pad_token if pad_token is not None else ends[0]
    longest = max(len(p) for p in prompts)
    tokens = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    stopper = _StopRule(renderer, longest, len(prompts), ends)
    config = GenerationConfig(max_new_tokens=max_tokens, do_sample=False, pad_token_id=pad, eos_token_id=ends)
    with torch.inference_mode():
        out = model.generate(
            input_ids=tokens,
            attention_mask=mask,
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([stopper]),
        )
    answers = []
    for row, end in zip(out[:, longest:].tolist(), stopper.ends, strict=True):
        kept = row if end is None else row[:end]
        answers.append(Answer(answer_text(kept, renderer), kept, "length" if end is None else "stop"))
    return answers


def _end_tokens(renderer: Any) -> list[int]:
    ends = [token for token in renderer.get_stop_sequences() if isinstance(token, int)]
    end_of_text = renderer.tokenizer.eos_token_id
    if end_of_text is not None and end_of_text not in ends:
        ends.append(end_of_text)
    return ends


class _StopRule:
    """Called after each token: which rows have written a stop text or an end token, and where."""

    def __init__(self, renderer: Any, start: int, rows: int, end_tokens: list[int]):
        self.tokenizer, self.start, self.end_tokens = renderer.tokenizer, start, set(end_tokens)
        self.texts = [text for text in renderer.get_stop_sequences() if isinstance(text, str)]
        self.ends: list[int | None] = [None] * rows

    def __call__(self, tokens: Any, scores: Any, **_: Any) -> Any:
        import torch

        for row, written in enumerate(tokens[:, self.start :].tolist()):
            if self.ends[row] is None:
                # The last dozen tokens are enough: a stop text is shorter, and it was not there one token
                # ago.
                tail = self.tokenizer.decode(written[-12:], skip_special_tokens=False) if self.texts else ""
                if written[-1] in self.end_tokens or any(text in tail for text in self.texts):
                    self.ends[row] = len(written)
        return torch.tensor([end is not None for end in self.ends], device=tokens.device)
