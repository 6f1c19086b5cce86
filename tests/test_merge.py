"""From Tinker's adapter to a merged model that is the trained model, on small models made on the spot.

The reference is independent of PEFT and the cookbook: each weight matrix is replaced by W + (alpha / r)·B·A by hand.
"""

import json
import math
from pathlib import Path

import pytest
import torch

from helpers.errors import ModelError, RunError
from helpers.export import fresh_folder
from helpers.merge import adapter_to_peft, base_folder, load_base, load_peft, merge_adapter
from helpers.parity import Scores, compare_logprobs, logit_noise, measured_noise, score_with_sampler, score_with_transformers

LAYERS, HIDDEN, VOCABULARY = 3, 32, 64
MODULES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
PAIRS = [(list(range(3, 9)), [9, 11, 40]), ([5, 60, 2, 33], [7, 8, 1, 12, 30]), ([1], [2, 3]), (list(range(20, 45)), [50])] * 4


def make_base(folder: Path, tied: bool = True, seed: int = 0, dtype: torch.dtype = torch.bfloat16, head_dim: int = 8) -> Path:
    """A tiny llama with grouped-query attention, logits as wide as a real model's, and a tokenizer with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config = LlamaConfig(hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2, head_dim=head_dim,
                         vocab_size=VOCABULARY, max_position_embeddings=128, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.5 if "embed" in name or "lm_head" in name else 0.2)
    model.to(dtype).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2", unk_token="w0")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(folder: Path, base: Path, rank: int = 4, alpha: float = 16, seed: int = 1, layers: int = LAYERS, only=MODULES, extra=None) -> Path:
    """A random adapter in Tinker's naming."""
    from safetensors.torch import save_file

    from helpers.merge import weight_shapes

    generator = torch.Generator().manual_seed(seed)
    shapes, tensors = weight_shapes(base), {}
    for layer in range(layers):
        for module in only:
            out, width = shapes[f"model.layers.{min(layer, LAYERS - 1)}.{module}.weight"]
            key = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, width, generator=generator) * 0.2
            tensors[f"{key}.lora_B.weight"] = torch.randn(out, rank, generator=generator) * 0.1
    tensors.update(extra or {})
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": alpha}))
    return folder


def by_hand(base: Path, adapter: Path, scale: float | None = None, skip=(), dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The trained model, without PEFT: W + scale·B·A, with faults on request."""
    from safetensors.torch import load_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"] if scale is None else scale
    model = load_base(base).to(dtype)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for key in tensors:
            if ".lora_A" in key and not any(part in key for part in skip):
                module = key.split(".lora_A")[0].removeprefix("base_model.model.").replace("model.unembed_tokens", "lm_head")
                weights[f"{module}.weight"] += scale * tensors[key.replace("lora_A", "lora_B")].to(dtype) @ tensors[key].to(dtype)
    return model


def furthest(left: Scores, right: Scores) -> float:
    return max(abs(a - b) for x, y in zip(left.logprobs, right.logprobs) for a, b in zip(x, y))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Base, adapter, PEFT form, merged model, and the score of the model merged by hand."""
    folder = tmp_path_factory.mktemp("merge")
    base = make_base(folder / "base")
    adapter = make_adapter(folder / "adapter", base)
    adapter_to_peft(base, adapter, folder / "peft")
    report = merge_adapter(base, adapter, folder / "merged")
    return {"folder": folder, "base": base, "adapter": adapter, "peft": folder / "peft", "merged": folder / "merged", "report": report,
            "scores": score_with_transformers(by_hand(base, adapter), PAIRS, "by hand")}


@pytest.mark.parametrize("rank,alpha", [(4, 4), (4, 16), (8, 2), (1, 32)])
@pytest.mark.parametrize("tied", [True, False])
def test_peft_and_merged_are_the_trained_model(tmp_path, rank, alpha, tied):
    base = make_base(tmp_path / "base", tied)
    adapter = make_adapter(tmp_path / "adapter", base, rank, alpha)
    trained = score_with_transformers(by_hand(base, adapter, dtype=torch.float64), PAIRS)
    adapter_to_peft(base, adapter, tmp_path / "peft")
    merge_adapter(base, adapter, tmp_path / "merged")
    assert furthest(trained, score_with_transformers(load_peft(base, tmp_path / "peft").double(), PAIRS)) < 1e-5
    assert furthest(trained, score_with_transformers(load_base(tmp_path / "merged"), PAIRS)) < 1e-4
    assert furthest(trained, score_with_transformers(load_base(base), PAIRS)) > 0.1


def test_an_output_layer_of_its_own_is_merged(tmp_path):
    base = make_base(tmp_path / "base", tied=False)
    key = "base_model.model.model.unembed_tokens"
    extra = {f"{key}.lora_A.weight": torch.randn(4, HIDDEN) * 0.2, f"{key}.lora_B.weight": torch.randn(VOCABULARY, 4) * 0.1}
    adapter = make_adapter(tmp_path / "adapter", base, extra=extra)
    merge_adapter(base, adapter, tmp_path / "merged")
    trained = score_with_transformers(by_hand(base, adapter), PAIRS)
    assert furthest(trained, score_with_transformers(load_base(tmp_path / "merged"), PAIRS)) < 1e-4


def test_a_trained_output_layer_that_is_tied_is_refused(tmp_path):
    base = make_base(tmp_path / "base", tied=True)
    key = "base_model.model.model.unembed_tokens"
    extra = {f"{key}.lora_A.weight": torch.zeros(4, HIDDEN), f"{key}.lora_B.weight": torch.zeros(VOCABULARY, 4)}
    with pytest.raises(ModelError, match="train_unembed=False"):
        merge_adapter(base, make_adapter(tmp_path / "adapter", base, extra=extra), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_merged_folder_is_complete(made):
    from transformers import AutoTokenizer

    names = {p.name for p in made["merged"].iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not any(name.startswith(".") for name in names)
    tokenizer, before = AutoTokenizer.from_pretrained(made["merged"]), AutoTokenizer.from_pretrained(made["base"])
    assert tokenizer.encode("w3 w9 w63") == before.encode("w3 w9 w63") and tokenizer.chat_template == before.chat_template
    assert json.loads((made["merged"] / "config.json").read_text())["dtype"] == "float32"
    assert made["report"]["changed"] == LAYERS * len(MODULES) and made["report"]["rounding"] == 0


def test_bfloat16_rounds_once_and_the_report_says_how_far(made, tmp_path):
    report = merge_adapter(made["base"], made["adapter"], tmp_path / "merged", dtype="bfloat16")
    exact, rounded = by_hand(made["base"], made["adapter"]).state_dict(), load_base(tmp_path / "merged").state_dict()
    worst = max(float((exact[key] - rounded[key]).abs().max()) for key in exact)
    assert worst == pytest.approx(report["rounding"], abs=1e-6) and worst > 0
    assert max(float(((exact[k] - rounded[k]).abs() / exact[k].abs().clamp(min=1e-3)).max()) for k in exact) <= 2**-8
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


def test_an_interrupted_merge_leaves_no_folder(made, tmp_path, monkeypatch):
    from transformers import LlamaForCausalLM

    save = LlamaForCausalLM.save_pretrained

    def cut(self, folder, **kwargs):
        save(self, folder, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", cut)
    with pytest.raises(KeyboardInterrupt):
        merge_adapter(made["base"], made["adapter"], tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_merge_is_replaced_only_when_asked(made, tmp_path):
    with fresh_folder(tmp_path / "merged") as folder:
        (folder / "mine").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        merge_adapter(made["base"], made["adapter"], tmp_path / "merged")
    assert (tmp_path / "merged" / "mine").exists()
    merge_adapter(made["base"], made["adapter"], tmp_path / "merged", overwrite=True)
    assert not (tmp_path / "merged" / "mine").exists()


def test_what_does_not_belong_together_is_refused(made, tmp_path):
    deeper = make_adapter(tmp_path / "deeper", made["base"], layers=LAYERS + 1)
    with pytest.raises(ModelError, match=r"layers\.3\..*does not exist"):
        merge_adapter(made["base"], deeper, tmp_path / "merged")
    from safetensors.torch import load_file, save_file

    wide = load_file(made["adapter"] / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    wide[key] = torch.cat([wide[key], wide[key]], dim=1)
    (tmp_path / "wide").mkdir()
    save_file(wide, tmp_path / "wide" / "adapter_model.safetensors")
    (tmp_path / "wide" / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 4}')
    with pytest.raises(ModelError, match="was not trained on"):
        merge_adapter(made["base"], tmp_path / "wide", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_missing_or_damaged_parts(made, tmp_path):
    with pytest.raises(ModelError, match="no base model at"):
        merge_adapter(tmp_path / "nowhere", made["adapter"], tmp_path / "merged")
    with pytest.raises(ModelError, match="04_export"):
        merge_adapter(made["base"], tmp_path / "nowhere", tmp_path / "merged")
    with pytest.raises(ModelError, match="float64"):
        merge_adapter(made["base"], made["adapter"], tmp_path / "merged", dtype="float64")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="not a whole model"):
        base_folder(tmp_path / "empty")


def test_weights_that_are_not_finite_are_refused(made, tmp_path):
    key = "base_model.model.model.layers.0.self_attn.q_proj"
    extra = {f"{key}.lora_B.weight": torch.full((HIDDEN, 4), math.inf)}
    adapter = make_adapter(tmp_path / "adapter", made["base"], extra=extra)
    with pytest.raises(ModelError, match="finite"):
        merge_adapter(made["base"], adapter, tmp_path / "merged")


# ---- the parity check: right models pass, wrong ones fail


def noise_for(scores: Scores, *precisions: str) -> float:
    return logit_noise(*precisions, layers=LAYERS, hidden=HIDDEN, logit_std=scores.logit_std)


def test_parity_passes_for_peft_and_merged(made):
    for model in (load_peft(made["base"], made["peft"]), load_base(made["merged"])):
        result = compare_logprobs(made["scores"], score_with_transformers(model, PAIRS), noise_for(made["scores"], "float32", "float32"))
        assert result["passed"] and result["token_agreement"] == 1.0
        assert result["prompts"] == len(PAIRS) and result["tokens"] == sum(len(c) for _, c in PAIRS)


def test_parity_passes_for_bfloat16_under_its_own_bound_only(made):
    scores = score_with_transformers(load_base(made["merged"], "bfloat16"), PAIRS)
    assert compare_logprobs(made["scores"], scores, noise_for(made["scores"], "float32", "bfloat16"))["passed"]
    assert not compare_logprobs(made["scores"], scores, noise_for(made["scores"], "float32", "float32"))["passed"]


def test_noise_measured_on_equal_models_passes_them_and_not_the_base(made):
    rounded = score_with_transformers(load_base(made["merged"], "bfloat16"), PAIRS)
    noise = max(noise_for(made["scores"], "float32", "bfloat16"), measured_noise(made["scores"], rounded))
    assert 0.1 < measured_noise(made["scores"], rounded) / noise_for(made["scores"], "float32", "bfloat16") < 5
    assert compare_logprobs(made["scores"], rounded, noise)["passed"]
    assert not compare_logprobs(made["scores"], score_with_transformers(load_base(made["base"]), PAIRS), noise)["passed"]
    assert measured_noise(made["scores"], made["scores"]) == 0


WRONG = {
    "base model": lambda made: load_base(made["base"]),
    "double scale": lambda made: by_hand(made["base"], made["adapter"], scale=8.0),
    "scale 1 (alpha / r forgotten)": lambda made: by_hand(made["base"], made["adapter"], scale=1.0),
    "scale off by one percent": lambda made: by_hand(made["base"], made["adapter"], scale=4.04),
    "a layer dropped": lambda made: by_hand(made["base"], made["adapter"], skip=("layers.1.",)),
    "one matrix dropped": lambda made: by_hand(made["base"], made["adapter"], skip=("layers.2.mlp.up_proj",)),
    "another adapter": lambda made: by_hand(made["base"], make_adapter(made["folder"] / "other", made["base"], seed=7)),
    "another base": lambda made: by_hand(make_base(made["folder"] / "base2", seed=3), made["adapter"]),
}


@pytest.mark.parametrize("fault", WRONG)
def test_parity_fails_for_a_wrong_model(made, fault):
    scores = score_with_transformers(WRONG[fault](made), PAIRS)
    result = compare_logprobs(made["scores"], scores, noise_for(made["scores"], "float32", "float32"))
    assert not result["passed"], result


@pytest.mark.parametrize("fault", ["base model", "double scale", "scale 1 (alpha / r forgotten)", "a layer dropped"])
def test_gross_faults_fail_even_in_bfloat16(made, fault):
    scores = score_with_transformers(WRONG[fault](made), PAIRS)
    assert not compare_logprobs(made["scores"], scores, noise_for(made["scores"], "float32", "bfloat16"))["passed"]


def test_scores_agree_with_one_sequence_at_a_time(made):
    model = by_hand(made["base"], made["adapter"])
    for (prompt, continuation), row, chosen in zip(PAIRS[:4], made["scores"].logprobs, made["scores"].greedy):
        with torch.inference_mode():
            logprobs = torch.log_softmax(model(torch.tensor([prompt + continuation])).logits[0].float(), -1)
        places = range(len(prompt) - 1, len(prompt) + len(continuation) - 1)
        assert row == pytest.approx([float(logprobs[p, t]) for p, t in zip(places, continuation)], rel=1e-5, abs=1e-5)
        assert chosen == [int(logprobs[p].argmax()) for p in places]


def test_scoring_with_a_sampler_takes_the_continuation_only():
    from types import SimpleNamespace

    class Sampler:
        def __init__(self):
            self.waiting = 0

        def sample(self, prompt, count, params, include_prompt_logprobs, topk_prompt_logprobs):
            self.waiting += 1
            tokens = prompt.to_ints()
            sent = SimpleNamespace(prompt_logprobs=[None, *(-t / 10 for t in tokens[1:])],
                                   topk_prompt_logprobs=[None, *([(t, -0.1)] for t in tokens[1:])])

            def result():
                assert self.waiting == 2, "all requests are sent before the first is awaited"
                return sent

            return SimpleNamespace(result=result)

    scores = score_with_sampler(Sampler(), [([1, 2], [3, 4]), ([5], [6])])
    assert scores.logprobs == [[-0.3, -0.4], [-0.6]] and scores.greedy == [[3, 4], [6]]


def test_comparisons_that_make_no_sense_are_refused(made):
    scores = made["scores"]
    with pytest.raises(ModelError, match="same tokens"):
        compare_logprobs(scores, Scores("short", scores.logprobs[:-1]), 0.1)
    with pytest.raises(ModelError, match="not log-probabilities"):
        compare_logprobs(scores, Scores("nan", [[math.nan] * len(row) for row in scores.logprobs]), 0.1)
    with pytest.raises(ModelError, match="not log-probabilities"):
        compare_logprobs(Scores("none", []), Scores("none", []), 0.1)
    with pytest.raises(ModelError, match="int4"):
        logit_noise("int4", layers=1, hidden=1, logit_std=1.0)
    with pytest.raises(ModelError, match="hold tokens"):
        score_with_transformers(load_base(made["base"]), [([1], [])])


def test_scatter_draws_each_token(made):
    from helpers.plots import parity_scatter

    figure = parity_scatter(made["scores"], [made["scores"]])
    assert all(len(axes.collections[0].get_offsets()) == sum(len(c) for _, c in PAIRS) for axes in figure.axes)
