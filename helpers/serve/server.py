"""vLLM's server for as long as a `with` block lasts: an OpenAI-compatible server on this machine, and nothing
left of it after.

    with serve_vllm("merged_model") as server:
        answers = server.ask(test_set, renderer, max_tokens=96)
        client = openai.OpenAI(base_url=server.url, api_key=server.api_key)         # or as any client does
"""

import collections
import contextlib
import ctypes
import importlib.util
import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.clock import worked
from helpers.errors import BackendError, ModelError
from helpers.net import free_port, get
from helpers.serve.engine import (
    NOT_INSTALLED,
    check_served_folder,
    vllm_advice,
    vllm_is_for_cpu,
    vllm_settings,
)
from helpers.train.chat_template import chat_template
from helpers.train.renderers import answer_text, prompt_tokens
from helpers.weights.peft_form import check_peft_adapter

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes; 1 saves nothing


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        url: its address, with `/v1`.
        api_key: made for it alone.
        model: the name to ask for.
        command: the line that started it, folders by their last names. Its key isn't in it.
        pid: of its first process.
        seconds: that it took to start.
    """

    url: str
    api_key: str
    model: str
    command: str
    pid: int
    seconds: float

    def __repr__(self) -> str:
        return f"Server(url={self.url!r}, model={self.model!r})"  # without its key

    @worked("vllm")
    def ask(
        self,
        examples: Sequence[dict[str, Any]],
        renderer: Any,
        max_tokens: int,
        model: str | None = None,
        at_once: int = 64,
    ) -> list[dict[str, Any]]:
        """Greedy answers, through the OpenAI client, `at_once` at a time.

        The prompts are sent as token ids, which any format of training can be. The server makes the same
        tokens of a chat, as long as its template doesn't refuse it.

        Args:
            examples: records; of a conversation, the turns before its last answer are sent.
            renderer: the one of training; its stop rule is used.
            max_tokens: longest answer.
            model: the model or adapter to ask; the server's own by default.

        Returns:
            `text` (stripped), `stop_reason` (`stop` or `length`) and `tokens` (a count), in the order of the
            examples.

        Raises:
            BackendError: the server refused a request, or is gone.
        """
        import openai

        client = openai.OpenAI(base_url=self.url, api_key=self.api_key, max_retries=1, timeout=600)
        stops = renderer.get_stop_sequences()
        ends = [token for token in stops if isinstance(token, int)]

        def ask_one(example: dict[str, Any]) -> dict[str, Any]:
            answer = client.completions.create(
                model=model or self.model,
                prompt=prompt_tokens(example, renderer),
                temperature=0,
                max_tokens=max_tokens,
                stop=[text for text in stops if isinstance(text, str)] or None,
                extra_body={"stop_token_ids": ends, "return_token_ids": True},
            )
            choice: Any = answer.choices[0]
            return {
                "text": answer_text(choice.token_ids, renderer),
                "stop_reason": choice.finish_reason,
                "tokens": answer.usage.completion_tokens if answer.usage else 0,
            }

        try:
            with ThreadPoolExecutor(at_once) as pool:
                return list(pool.map(ask_one, examples))
        except openai.OpenAIError as error:
            raise BackendError(
                f"{self.url} did not answer: {error}",
                "is the server still running? Its `with` block must be open",
            ) from error


@contextlib.contextmanager
def serve_vllm(
    model_folder: str | Path,
    *,
    renderer: Any = None,
    name: str = "merged",
    adapters: dict[str, str | Path] | None = None,
    dtype: str = "bfloat16",
    max_model_len: int = 1024,
    tensor_parallel_size: int = 1,
    gpu_memory_utilization: float = 0.9,
    kv_cache_gib: int = 1,
    patience: float = 600,
    options: Sequence[str] = (),
) -> Iterator[Server]:
    """Start vLLM's server on loopback, wait until it answers, and end it with the block.

    It is what `vllm serve` starts. The command itself fails with the build for CPUs, which has another name.

    Args:
        model_folder: the model: a Hugging Face folder, or its name on the hub.
        renderer: the one of training, whose chat template the server gets; None leaves it the one in the
            model's folder, which in a merged model is that of training.
        name: what clients ask for.
        adapters: PEFT adapters to serve beside the model without merging, by the name to ask for.
        dtype, max_model_len, tensor_parallel_size, gpu_memory_utilization, kv_cache_gib: as in notebook 06.
        patience: seconds to wait for it; a large model loads for minutes.
        options: anything else for the command line of `vllm serve`.

    Raises:
        ModelError: the model is not there or damaged, an adapter is refused, vLLM is not installed, or the
            server ended or did not answer in time, with the end of its log.
    """
    _check_what_is_served(model_folder, dtype, adapters)
    environment = vllm_settings(kv_cache_gib) | os.environ
    key, port = secrets.token_urlsafe(16), free_port()
    arguments = {
        "model": model_folder,
        "host": "127.0.0.1",
        "port": port,
        "served-model-name": name,
        "dtype": dtype,
        "max-model-len": max_model_len,
        "tensor-parallel-size": tensor_parallel_size,
    }
    if not vllm_is_for_cpu():
        arguments["gpu-memory-utilization"] = gpu_memory_utilization
    with worked("vllm"), tempfile.TemporaryDirectory() as scratch:
        if renderer is not None:
            arguments["chat-template"] = template = Path(scratch) / "chat_template.jinja"
            template.write_text(chat_template(renderer), encoding="utf-8")
        command = [*_command(arguments), *_adapter_options(model_folder, adapters or {}), *options]
        log, started = Path(scratch) / "vllm.log", time.monotonic()
        process = _start(command, environment | {"VLLM_API_KEY": key}, log)
        try:
            _wait(process, port, patience, log)
            seconds = time.monotonic() - started
            yield Server(f"http://127.0.0.1:{port}/v1", key, name, _shown(command), process.pid, seconds)
        finally:
            _end(process)


def _check_what_is_served(model_folder: str | Path, dtype: str, adapters: dict[str, Any] | None) -> None:
    folder = Path(model_folder)
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", str(model_folder)) and not folder.exists()
    if not on_hub:
        check_served_folder(folder)
    if importlib.util.find_spec("vllm") is None:
        raise ModelError("vLLM is not installed", NOT_INSTALLED)
    # vLLM's kernels for adapters on a GPU refuse float32, but after a minute and without naming the cause.
    if adapters and dtype in ("float32", "float") and not vllm_is_for_cpu():
        raise ModelError(
            "on a GPU vLLM serves adapters in 16 bits only, not in float32",
            'use dtype="bfloat16", or merge the adapter and serve the merged model',
        )


def _command(arguments: dict[str, Any]) -> list[str]:
    options = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    eager = ["--enforce-eager"] if vllm_is_for_cpu() else []
    safe = ["--no-trust-remote-code"]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options, *safe, *eager]


def _shown(command: list[str]) -> str:
    """As it is typed, without the folders of absolute paths."""
    return shlex.join(re.sub(r"(^|=)/.*/(?=[^/])", r"\1", word) for word in command)


def _adapter_options(model_folder: str | Path, adapters: dict[str, str | Path]) -> list[str]:
    """Checked first: vLLM leaves out what it doesn't find in the model, and answers as the model alone."""
    if not adapters:
        return []
    checked = [check_peft_adapter(model_folder, path) for path in adapters.values()]
    rank = max(a.shape[0] for adapter in checked for a, _ in adapter.pairs.values())
    if rank > VLLM_RANKS[-1]:
        raise ModelError(
            f"an adapter has rank {rank}: vLLM serves up to {VLLM_RANKS[-1]}", "merge it instead"
        )
    modules = [f"{name}={Path(path).resolve()}" for name, path in adapters.items()]
    room = next(room for room in VLLM_RANKS if room >= rank)
    return ["--enable-lora", "--max-lora-rank", str(room), "--lora-modules", *modules]


def _start(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen:
    """Start the server. Its key is in the environment, since a command line is for everybody to read."""
    with open(log, "wb") as file:
        return subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )


def _end_with_parent() -> None:
    """Ask the kernel to end the server if this Python process dies without a chance to do it."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _wait(process: subprocess.Popen, port: int, patience: float, log: Path) -> None:
    from tqdm import tqdm

    started = time.monotonic()
    with tqdm(
        desc="Starting vllm serve", bar_format="{desc}: {elapsed}", file=sys.stdout, mininterval=1, position=0
    ) as bar:
        while time.monotonic() - started < patience:
            if process.poll() is not None:
                raise ModelError(
                    f"vllm serve ended at its start:\n{_tail(log)}", vllm_advice(vllm_is_for_cpu())
                )
            with contextlib.suppress(OSError):
                get(f"http://127.0.0.1:{port}/health", seconds=5)
                return
            time.sleep(0.25)
            bar.update()
    raise ModelError(
        f"vllm serve did not answer in {patience:.0f} s:\n{_tail(log)}",
        "raise patience=, or use a smaller model",
    )


def _tail(log: Path) -> str:
    with open(log, encoding="utf-8", errors="replace") as file:
        lines = collections.deque((line.rstrip() for line in file), maxlen=200)
    errors = [line for line in lines if "Error" in line]
    return "\n".join((errors or list(lines))[-5:])


def _end(process: subprocess.Popen) -> None:
    """End the server and all that it started: they are one process group."""
    for sign, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            break
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
