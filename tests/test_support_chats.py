"""The support chats: what the data hold, and the whole road with them. Conversations with system turns are
trained on through the model's own chat template, merged, and asked through vLLM's chat API.
"""

import json
import re
import shlex
from collections import Counter
from pathlib import Path

import openai
import pytest
from commands import real_course
from stub import train
from test_readme import command, examples
from tinker import types
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.data import load_data, split_data
from helpers.evaluate import check_answer, choose_task, score_outputs
from helpers.evaluate.promptings import base_formats
from helpers.files import read_json
from helpers.paths import ROOT
from helpers.serve import generate_with_transformers, serve_vllm
from helpers.train import answer_tokens, build_datum, get_renderer, prompt_tokens
from helpers.weights import download_checkpoint_archive, extract_archive, merge_adapter

DATA = ROOT / "data/support_chats.jsonl"
LESS = {  # of what the soak doesn't look at
    "parity_prompts": 8,
    "subset": 2,
    "sampled_problems": 1,
    "samples_each": 2,
    "throughput_tokens": 0,
    "serve_prompts": 0,
}


@pytest.fixture(scope="module")
def chats():
    return [json.loads(line) for line in DATA.read_text().splitlines()]


def test_the_ticket_follows_from_the_turns_before_it(chats):
    """By an independent reading: the rule from the system turn, the last number that the customer names."""
    for chat in chats:
        system, *turns, last = chat["messages"]
        reason, action, order, item = last["content"].removeprefix("Ticket: ").split(" | ")
        said = [turn["content"] for turn in turns if turn["role"] == "user"]
        rules = system["content"].partition("Rules: ")[2].partition(".")[0].split("; ")
        assert f"{reason} -> {action}" in rules and reason == chat["category"]
        assert order == f"order {re.findall(r'[0-9]{5}', ' '.join(said))[-1]}"
        assert any(f" {item}" in text for text in said)
        assert action not in said[-1] and item not in said[-1]  # the last question alone doesn't tell


def test_shops_turns_and_reasons_vary(chats):
    messages = [chat["messages"] for chat in chats]
    shops = {re.findall("(?:of|for) ([A-Z][^.]*)[.]", turns[0]["content"])[0] for turns in messages}
    orders = {re.findall(r"[0-9]{5}", turns[-1]["content"])[0] for turns in messages}
    assert len(chats) == len(shops) == len(orders) == 200
    for turns in messages:
        assert [turn["role"] for turn in turns] == ["system", *["user", "assistant"] * (len(turns) // 2)]
    assert {len(turns) for turns in messages} == {5, 7, 9}
    assert set(Counter(chat["category"] for chat in chats).values()) == {50}


@pytest.fixture(scope="module")
def parts():
    _, records = choose_task("text", load_data(str(DATA)).records)
    return split_data(records)


def test_all_answers_of_the_assistant_are_trained_on(parts, small_model):
    assert parts.report["sizes"] == {"train": 144, "validation": 16, "test": 40} and not parts.count_leaks()
    assert parts.report["duplicates"]["records"] == 0  # "Yes." ends many conversations, and repeats none
    renderer = get_renderer("template", small_model)
    for record in parts.test:
        datum = build_datum(record, renderer, train_on="all_assistant_messages")
        targets, weights = (datum.loss_fn_inputs[name].tolist() for name in ("target_tokens", "weights"))
        trained = renderer.tokenizer.decode([t for t, w in zip(targets, weights, strict=True) if w])
        answers = [turn["content"] for turn in record["messages"] if turn["role"] == "assistant"]
        assert trained == "".join(f"{answer}<|im_end|>" for answer in answers)
        whole = [*datum.model_input.to_ints(), targets[-1]]  # without the template's last line break
        assert whole == prompt_tokens(record, renderer) + answer_tokens(record, renderer)


def test_the_base_model_is_shown_the_rules_of_each_example(parts, small_model):
    renderer = get_renderer("template", small_model)
    ways, _ = base_formats(renderer, parts.train[:8], parts.test, max_tokens=32, context=8192)
    record, shown = parts.test[0], [turn for example in parts.train[:8] for turn in example["messages"]]
    turns = [*shown, *record["messages"][:-1]]
    asked = renderer.tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert prompt_tokens(record, ways["chat template, 8 examples"]) == asked


def test_the_merged_model_asks_and_answers_as_the_trained_one(parts, server, service, small_model, tmp_path):
    renderer = get_renderer("template", small_model)
    client = service.create_lora_training_client(server.model, rank=4, seed=1, train_unembed=False).result()
    datums = [build_datum(record, renderer, train_on="all_assistant_messages") for record in parts.train[:8]]
    losses = train(client, 6, datums)
    assert losses[-1] < 0.9 * losses[0]
    path = client.save_weights_external("chats").result().path
    sampler = client.save_weights_and_get_sampling_client().result()
    download_checkpoint_archive(service, path, tmp_path / "adapter.tar.gz", progress=False)
    extract_archive(tmp_path / "adapter.tar.gz", tmp_path / "adapter")
    merge_adapter(small_model, tmp_path / "adapter", tmp_path / "merged", renderer=renderer)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    prompts = [prompt_tokens(record, renderer) for record in parts.test]
    for record, prompt in zip(parts.test, prompts, strict=True):
        asked = tokenizer.apply_chat_template(record["messages"][:-1], add_generation_prompt=True)
        assert asked["input_ids"] == prompt
    params = types.SamplingParams(max_tokens=8, temperature=0.0, stop=renderer.get_stop_sequences())
    futures = [sampler.sample(types.ModelInput.from_ints(prompt), 1, params) for prompt in prompts[:8]]
    sampled = [future.result().sequences[0].tokens for future in futures]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="float32")
    answers = generate_with_transformers(merged, renderer, prompts[:8], 8, progress=False)
    assert [answer.tokens for answer in answers] == sampled


@pytest.mark.soak  # 20 minutes on one core
def test_support_chats_are_learned_and_reach_the_chat_api(course_env):
    """The command in docs/conversations.md, with less of what this doesn't look at."""
    [line] = [command(line) for line in examples() if command(line).startswith("course run --name support ")]
    less = [word for name, value in LESS.items() for word in ("-p", f"{name}={value}")]
    done = real_course(*shlex.split(line)[1:], *less, timeout=2400, env=course_env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = Path(course_env["COURSE_RUNS_DIR"]) / "support"
    evaluation = read_json(run / "evaluate/model_evaluation.json")
    assert evaluation["test_size"] == 40
    assert evaluation["test_correct"] >= evaluation["base_correct"] + 16
    assert evaluation["base_accuracy_ci95"][1] < evaluation["test_accuracy_ci95"][0]
    assert all(read_json(run / f"{stage}/parity.json")["passed"] for stage in ("merge", "vllm"))
    score = chat_score(run / "merge/merged_model", read_json(run / "split/test_set.json"))
    assert abs(score["correct"] - read_json(run / "vllm/evaluation.json")["correct"]) <= 1


def chat_score(merged: Path, test_set: list[dict]) -> dict:
    """Ask a plain server of the merged model as any client of its chat API does. Its prompts must be those of
    training.
    """
    renderer, answers = get_renderer("template", merged), []
    with serve_vllm(merged, dtype="float32") as server:
        client = openai.OpenAI(base_url=server.url, api_key=server.api_key)
        for record in test_set:
            asked = client.chat.completions.create(
                model=server.model,
                messages=record["messages"][:-1],
                temperature=0,
                max_tokens=32,
                extra_body={"return_token_ids": True},
            ).model_dump()
            assert asked["prompt_token_ids"] == prompt_tokens(record, renderer)
            answers.append(asked["choices"][0]["message"]["content"])
    return score_outputs(test_set, answers, check_answer)
