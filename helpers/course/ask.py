"""`course ask`: a question to a run's model, from a terminal, in the format of its training."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from helpers.course import completers
from helpers.course.arguments import add_command
from helpers.errors import BackendError, UsageError
from helpers.text import printable

if TYPE_CHECKING:
    from helpers.runs.run import Run

MODELS = ("trained", "merged", "base")
Sampler = Callable[[list[int]], tuple[list[int], str]]  # tokens of a prompt to an answer's, and why it ended


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "ask",
        run,
        "ask a run's model a question, or talk to it",
        "The question is put as in training, the answer ends as in training, and the most likely token is "
        "taken each time, as for the scores. If the run has one instruction for all records, the first "
        "question is its input; what follows in a chat is put as you type it.",
        'course ask latest "What is 7 + 5?"',
        'course ask my-run "What is 7 + 5?" --model base    # what did training change?',
        'course ask reviews "评价是好评还是差评？" --input "很好用"',
        'course ask support --chat --system "You help users of a hotel booking site."',
    )
    name = parser.add_argument("run", metavar="RUN", help="its name, or latest")
    parser.add_argument("question", nargs="?", metavar="QUESTION", help="with --chat: the first one")
    parser.add_argument(
        "--input",
        default="",
        metavar="TEXT",
        help="what the question is about; QUESTION then stands in place of the run's instruction",
    )
    parser.add_argument("--system", default="", metavar="TEXT", help="a system message")
    parser.add_argument("--chat", action="store_true", help="a conversation; Ctrl-D ends it")
    parser.add_argument(
        "--model",
        choices=MODELS,
        default="trained",
        help="trained: the checkpoint, on the run's service (the default); merged: notebook 05's, on this "
        "machine; base: before training, on the run's service",
    )
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="longest answer (default: as in training's evaluations)"
    )
    completers.offer(name, completers.runs)


def run(options: argparse.Namespace) -> int:
    from helpers.runs.run import open_run
    from helpers.train import get_renderer

    if not options.chat and not (options.question or "").strip():
        raise UsageError("there is no question", 'course ask RUN "…", or course ask RUN --chat')
    if options.input and not options.question:
        raise UsageError("--input goes with a QUESTION", 'course ask RUN "…" --input "…" --chat')
    if options.max_tokens is not None and options.max_tokens < 1:
        raise UsageError(f"--max-tokens {options.max_tokens} leaves no room for an answer", "give 1 or more")
    found = open_run(options.run)
    settings = found.stage("train").settings
    renderer = get_renderer(settings.prompt_format, found.manifest.base_model or "")
    sampler = _merged if options.model == "merged" else _service
    sample = sampler(found, options.model, renderer, options.max_tokens or settings.max_tokens)
    instruction = found.stage("split").settings.instruction
    conversation = Conversation(renderer, sample, options.system, instruction)
    if options.question:
        conversation.ask(options.question, options.input)
    while options.chat and (question := _typed()) is not None:
        if question.strip():
            conversation.ask(question)
    return 0


def _typed() -> str | None:
    """The next line; None at the end of the input."""
    import readline  # noqa: F401  (arrow keys and history in input())

    try:
        return input("you: " if sys.stdin.isatty() else "")
    except EOFError:
        if sys.stdin.isatty():
            print()
        return None


class Conversation:
    """What was said so far.

    Args:
        renderer: of training.
        sample: asks the model.
        system: a system message; may be empty.
        instruction: the run's one for all records; may be empty. The first question is its input.
    """

    def __init__(self, renderer: Any, sample: Sampler, system: str, instruction: str):
        self.renderer, self.sample, self.instruction = renderer, sample, instruction
        self.messages: list[Any] = [{"role": "system", "content": system}] if system.strip() else []

    def ask(self, question: str, more: str = "") -> None:
        """Ask, and print the answer."""
        from helpers.train.messages import messages_before_answer
        from helpers.train.renderers import answer_text, prompt_tokens

        if self.instruction.strip() and not more:
            question, more = self.instruction, question
        self.instruction = ""  # it is said once: later turns have it before them
        record = {"instruction": question, "input": more}
        self.messages += messages_before_answer(record, self.renderer)
        tokens, ended = self.sample(prompt_tokens({**record, "messages": self.messages}, self.renderer))
        text = answer_text(tokens, self.renderer)
        self.messages.append({"role": "assistant", "content": text})
        print(printable(text), flush=True)
        if ended == "length":
            print(f"(cut off after {len(tokens)} tokens: --max-tokens)", file=sys.stderr)


def _service(run: "Run", model: str, renderer: Any, max_tokens: int) -> Sampler:
    """Sampling on the service that trained the run: its best checkpoint, or its base model."""
    from tinker import TinkerError, types

    from helpers.files import read_json
    from helpers.runs.manifest import BackendUsed
    from helpers.train import connect

    # At the end of so short a process it warns, with a traceback, that it could not send its telemetry.
    logging.getLogger("tinker.lib.internal_client_holder").setLevel(logging.ERROR)
    best = read_json(run.file("train/best_checkpoint.json"))["sampler_path"]
    which = {"base_model": run.manifest.base_model} if model == "base" else {"model_path": best}
    used = run.manifest.backend or BackendUsed(kind="stub", url=None)
    if used.url and used.kind == "url" and os.environ.get("TINKER_BASE_URL", "").rstrip("/") != used.url:
        raise UsageError(
            f"the run was trained on {used.url}, which would get your key for it",
            f"if you trust that server: export TINKER_BASE_URL={used.url}",
        )
    backend = connect(used.name)
    params = types.SamplingParams(max_tokens=max_tokens, temperature=0.0, stop=renderer.get_stop_sequences())

    clients: list[Any] = []

    def sample(tokens: list[int]) -> tuple[list[int], str]:
        prompt = types.ModelInput.from_ints(tokens)
        try:
            if not clients:
                clients.append(backend.service_client.create_sampling_client(**which).result())
            [found] = clients[0].sample(prompt, 1, params).result().sequences
        except TinkerError as error:
            raise BackendError(
                f"the service did not answer with {next(iter(which.values()))}: {error}",
                "if the checkpoint is gone there, ask the merged model (--model merged), or train again",
            ) from error
        return list(found.tokens), found.stop_reason

    return sample


def _merged(run: "Run", model: str, renderer: Any, max_tokens: int) -> Sampler:
    """Sampling with the merged model in `transformers`, in this process."""
    from helpers.runs.card import merged_folder
    from helpers.serve import generate_with_transformers
    from helpers.weights.base_model import load_base

    loaded = load_base(merged_folder(run))

    def sample(tokens: list[int]) -> tuple[list[int], str]:
        [found] = generate_with_transformers(loaded, renderer, [tokens], max_tokens, progress=False)
        return found.tokens, found.stop_reason

    return sample
