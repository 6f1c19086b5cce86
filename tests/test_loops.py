"""Reinforcement learning and preferences: each step against plain torch and against the cookbook, and loops
that go on where they were interrupted.
"""

import asyncio
import importlib
import itertools
import math
import re
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from stub_reference import Stub, assert_close
from texts import code_cells, source
from tinker import types

from helpers.data.lists import HELD_OUT, is_known, known_members, list_problems, read_items
from helpers.data.units import names_unit, unit_of, with_unit
from helpers.errors import DataError
from helpers.evaluate.grading import Verdict
from helpers.loop_plots import DISTILLATION_PANELS, DPO_PANELS, RL_PANELS, gains, opinions, step_panels
from helpers.paths import ROOT
from helpers.train import get_renderer
from helpers.train.distillation import distill_loop, distillation_data
from helpers.train.loop_log import LoopLog
from helpers.train.preferences import dpo_loop, dpo_loss, reference_logprobs
from helpers.train.rl import (
    Group,
    as_number,
    kl_penalties,
    logprob_differences,
    policy_data,
    policy_datum,
    rl_loop,
    sample_groups,
    step_metrics,
    token_logprobs,
)

PROMPTS = [[5, 8, 13, 21], [34, 55, 89, 7, 3]]
DPO_ROW = {"step": 1, "dpo_loss": 0.6, "accuracy": 1.0, "chosen_reward": 0.1, "rejected_reward": -0.4}
REWARDS = [[1.0, 0.0, 0.25], [0.0, 0.0, 0.5], [1.0, 1.0, 1.0]]


@pytest.fixture(scope="module")
def stub(server, small_model):
    made = Stub(server, {"llama": str(small_model)})
    yield made
    made.service.close("success").result()


@pytest.fixture(scope="module")
def groups(stub):
    """Samples of the base model; of the last prompt all with one reward."""
    client = stub.service.create_sampling_client(base_model=stub.models["llama"]).result()
    params = types.SamplingParams(max_tokens=6, temperature=1.0, seed=3, stop=[])
    made = sample_groups(client, [*PROMPTS, [1, 2]], 3, params)
    for group, rewards in zip(made, REWARDS, strict=True):
        group.rewards = rewards
    return client, made


def pair_data(prompt: list[int], *answers: list[int]) -> list[types.Datum]:
    """A datum an answer, as `build_datum` makes them of records."""
    return [
        types.Datum(
            model_input=types.ModelInput.from_ints(prompt + answer[:-1]),
            loss_fn_inputs={
                "target_tokens": prompt[1:] + answer,
                "weights": [0.0] * (len(prompt) - 1) + [1.0] * len(answer),
            },
        )
        for answer in answers
    ]


def answer_logprobs(reference, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """Logprobs of an answer's tokens, from a whole forward pass and no datum."""
    logits = reference.logits(prompt + tokens)[len(prompt) - 1 : -1]
    return torch.log_softmax(logits, -1)[range(len(tokens)), tokens]


def test_the_policy_gradient_is_the_one_of_the_formula(stub, groups):
    """Σ over tokens of ratio · (reward − mean + kl · (mean difference − difference)), by hand."""
    client, reference = stub.pair("llama")
    start, made = groups
    differences = logprob_differences(made, token_logprobs(start, made))
    other = [[[v - 0.3 * i for i, v in enumerate(s)] for s in rows] for rows in differences]
    client.forward_backward(policy_data(made, kl_penalties(other, 0.2)), "importance_sampling").result()
    flat = [value for rows in other for row in rows for value in row]
    loss = 0
    for group, rows in zip(made, other, strict=True):  # the one of equal rewards, too: it pays for divergence
        mean = sum(group.rewards) / 3
        for tokens, q, reward, row in zip(group.tokens, group.logprobs, group.rewards, rows, strict=True):
            ratio = torch.exp(answer_logprobs(reference, group.prompt, tokens) - torch.tensor(q))
            penalty = 0.2 * (sum(flat) / len(flat) - torch.tensor(row))
            loss = loss - (ratio * (reward - mean + penalty)).sum()
    loss.backward()
    assert_close(stub.gradients(client), reference.gradients())


def test_the_dpo_gradient_is_the_one_of_the_formula(stub, groups):
    client, reference = stub.pair("llama")
    start, made = groups
    pairs = [(group.prompt, *group.tokens[:2]) for group in made]
    data = [datum for pair in pairs for datum in pair_data(*pair)]
    base = reference_logprobs(start, data)
    output = client.forward_backward_custom(data, dpo_loss(base, dpo_beta=0.3)).result()
    losses = []
    for number, (prompt, chosen, rejected) in enumerate(pairs):
        gap = answer_logprobs(reference, prompt, chosen).sum() - base[2 * number]
        gap = gap - answer_logprobs(reference, prompt, rejected).sum() + base[2 * number + 1]
        losses.append(torch.log1p(torch.exp(-0.3 * gap)))
    loss = sum(losses) / len(losses)
    loss.backward()
    assert output.metrics["dpo_loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert_close(stub.gradients(client), reference.gradients())


def test_the_distillation_gradient_is_the_one_of_the_formula(stub, groups):
    """That of the reverse KL divergence, estimated from the samples: (student − teacher) · ∇ log student."""
    client, reference = stub.pair("llama")
    start, made = groups
    teacher = token_logprobs(start, made)
    differences = [[[v + 0.1 * i for i, v in enumerate(s)] for s in rows] for rows in teacher]
    client.forward_backward(distillation_data(made, differences), "importance_sampling").result()
    loss = 0
    for group, rows in zip(made, differences, strict=True):
        for tokens, q, row in zip(group.tokens, group.logprobs, rows, strict=True):
            own = answer_logprobs(reference, group.prompt, tokens)
            loss = loss + (torch.exp(own - torch.tensor(q)) * torch.tensor(row)).sum()
    loss.backward()
    assert_close(stub.gradients(client), reference.gradients())


def test_the_step_written_out_in_notebook_10_sends_the_same_datums(groups):
    sent: list[types.Datum] = []
    done = SimpleNamespace(result=lambda: None)
    client = SimpleNamespace(
        forward_backward=lambda data, loss_fn: sent.extend(data) or done, optim_step=lambda params: done
    )
    written = {"types": types, "loss_fn": "importance_sampling", "learning_rate": 1e-3}
    notebook = ROOT / "notebooks/10_reinforcement_learning.ipynb"
    for code in map(source, code_cells(notebook)):
        for function in re.findall(r"(?ms)^def (?:advantages_of|train_on)\(.*?(?=^\S|\Z)", code):
            exec(function, written)
    written["train_on"](client, groups[1])
    wanted = [datum for datum in policy_data(groups[1]) if any(datum.loss_fn_inputs["advantages"].tolist())]
    assert len(sent) == len(wanted) > 3
    for own, other in zip(sent, wanted, strict=True):
        assert own.model_input.to_ints() == other.model_input.to_ints()
        for name, value in other.loss_fn_inputs.items():
            assert own.loss_fn_inputs[name].tolist() == pytest.approx(value.tolist()), name


def test_the_start_has_no_divergence_and_half_of_all_pairs(groups):
    """The base model's own samples: what it says of them is what the sampler said."""
    start, made = groups
    differences = logprob_differences(made, token_logprobs(start, made))
    metrics = step_metrics(made, differences)
    assert metrics["kl"] == pytest.approx(0, abs=1e-4) and metrics["useless"] == pytest.approx(1 / 3)
    assert metrics["length"] == 6 and 0 < metrics["entropy"] <= math.log(49152)
    assert metrics["reward"] == pytest.approx(4.75 / 9)
    assert len(policy_data(made)) == 6  # the group of equal rewards is left out
    data = pair_data(made[0].prompt, *made[0].tokens[:2])
    assert reference_logprobs(start, data) == pytest.approx([sum(q) for q in made[0].logprobs[:2]], abs=1e-3)


def test_datums_and_penalties_are_the_cookbooks(groups):
    from tinker_cookbook.completers import TokensWithLogprobs
    from tinker_cookbook.rl.data_processing import compute_advantages, trajectory_to_data
    from tinker_cookbook.rl.metrics import incorporate_kl_penalty
    from tinker_cookbook.rl.types import Trajectory, TrajectoryGroup, Transition

    start, made = groups
    differences = logprob_differences(made, token_logprobs(start, made))
    ours = [
        policy_datum(g.prompt, t, q, [a + p for p in row])
        for g, rows in zip(made, kl_penalties(differences, 0.5), strict=True)
        for t, q, a, row in zip(g.tokens, g.logprobs, g.advantages, rows, strict=True)
    ]
    theirs = []
    for group in made:
        actions = [TokensWithLogprobs(t, q) for t, q in zip(group.tokens, group.logprobs, strict=True)]
        prompt = types.ModelInput.from_ints(group.prompt)
        paths = [Trajectory([Transition(prompt, a, 0.0, True)], types.ModelInput.empty()) for a in actions]
        whole = TrajectoryGroup(paths, group.rewards, [{}] * len(paths))
        [advantages] = compute_advantages([whole])
        for path, advantage in zip(paths, advantages, strict=True):
            theirs += trajectory_to_data(path, advantage.item(), include_provenance=False)
    asyncio.run(incorporate_kl_penalty(theirs, start, 0.5, 0.0))
    for own, other in zip(ours, theirs, strict=True):
        assert own.model_input.to_ints() == other.model_input.to_ints()
        for name, value in own.loss_fn_inputs.items():
            wanted = other.loss_fn_inputs[name].to_torch()
            torch.testing.assert_close(value.to_torch(), wanted, rtol=1e-4, atol=1e-4)


def a_loop(kind: str, service, log: LoopLog, base: str):
    """A small loop of five steps; the reward is the share of capital letters."""
    backend = SimpleNamespace(service_client=service, kind="url")
    client = log.training_client(backend, base, 4, 1)
    start = service.create_sampling_client(base_model=base).result()
    if kind == "dpo":
        pairs = [pair_data(prompt, [7, 9, 2], [11, 2]) for prompt in PROMPTS]
        return dpo_loop(client, start, log, [pairs] * 5, dpo_beta=0.5, learning_rate=1e-2, save_every=2)
    records = [{"instruction": word, "input": "", "output": word} for word in ("yes", "no")]
    options = {"group_size": 4, "max_tokens": 5, "learning_rate": 1e-2, "seed": 1, "save_every": 2}
    renderer = get_renderer("guide", base)
    if kind == "distillation":
        return distill_loop(client, start, log, [records] * 5, renderer, **options)

    def reward(text: str, reference: str) -> float:
        assert reference in ("yes", "no")
        return sum(letter.isupper() for letter in text) / max(1, len(text))

    return rl_loop(client, start, log, [records] * 5, reward, renderer, kl=0.1, **options)


@pytest.mark.parametrize("kind", ["rl", "dpo", "distillation"])
def test_a_loop_goes_on_where_it_was_interrupted(kind, service, server, small_model, tmp_path, capsys):
    base, settings = str(small_model), {"a": 1, "renderer_name": "guide", "steps": 5}
    whole = list(a_loop(kind, service, LoopLog(tmp_path / "whole", settings), base))
    log = LoopLog(tmp_path / "parts", settings)
    list(itertools.islice(a_loop(kind, service, log, base), 3))
    log = LoopLog(tmp_path / "parts", settings)
    assert log.last_step == 2 and [row["step"] for row in log.metrics] == [1, 2]
    assert [row["step"] for row in a_loop(kind, service, log, base)] == [3, 4, 5]
    log = LoopLog(tmp_path / "parts", settings)
    assert log.metrics == whole and capsys.readouterr().out == ""
    saved = log.checkpoints
    log.save(None, 5)  # a notebook that saves after its loop is run again
    assert log.checkpoints == saved and [row["batch"] for row in saved] == [2, 4, 5]
    run = urlsplit(log.checkpoints[-1]["state_path"]).netloc
    told = server.rest().get_training_run(run).result().user_metadata
    assert told == {"renderer_name": "guide"}  # of the run that was gone on with, too
    assert LoopLog(tmp_path / "parts", settings | {"a": 2}).metrics == []  # other settings begin anew
    assert "parts: a was 1 and is 2. It begins anew" in capsys.readouterr().out
    if kind == "dpo":
        assert whole[0]["dpo_loss"] == pytest.approx(math.log(2), abs=1e-3)
        assert whole[-1]["margin"] > 0.1 and whole[-1]["accuracy"] == 1


def test_figures_of_loops_draw_what_the_loops_record(groups):
    """Each axis holds 0, and a panel of two measures has a legend; the arrows are as long as the gains."""
    _, made = groups
    row = step_metrics(made, [group.logprobs for group in made])
    told = {"step": 1, "teacher_kl": 0.4, "length": 6.0}
    known = (([{"step": 1} | row], RL_PANELS), ([DPO_ROW], DPO_PANELS), ([told], DISTILLATION_PANELS))
    for rows, panels in (([], RL_PANELS), *known):
        axes = step_panels(rows, panels).axes
        assert [ax.get_title() for ax in axes] == list(panels)
        assert all(ax.get_ylim()[0] <= 0 < ax.get_ylim()[1] for ax in axes)
        assert [ax.get_legend() is not None for ax in axes] == [len(lines) > 1 for lines in panels.values()]
    axes = gains([-2.0, -1.0], [-1.5, -4.0]).axes[0]
    assert axes.get_title() == "difference of the gains: +3.50 nats"
    assert {text.get_text() for text in axes.texts} >= {"gain +0.50", "gain -3.00"}
    axes = opinions(["7", " cards\n"], [-0.1, -0.4], [-3.2, -0.3]).axes[0]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([-3.1, 0.1])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["7", "·cards\\n"]


def test_a_group_of_one_is_refused():
    nothing: Any = None
    loop = rl_loop(*[nothing] * 6, group_size=1, max_tokens=1, learning_rate=1, seed=1)
    with pytest.raises(DataError, match="group_size=1"):
        next(loop)
    assert Group([1], [], [], [2.0, 4.0]).advantages == [-1, 1]


def test_lists_are_read_as_people_write_them():
    train, held_out = list_problems()
    assert len(train) == 450 and len(held_out) == 216 and set(HELD_OUT) < known_members().keys()
    assert not {row["category"] for row in train} & {row["category"] for row in held_out}
    items = read_items("Robin, Owls,  the  Goose, a butterfly, and cherries.")
    assert items == ["robin", "owls", "goose", "butterfly", "cherries"]
    assert [is_known(item, "birds") for item in items] == [True, True, True, False, False]
    assert is_known("cherries", "fruits") and is_known("scarves", "pieces of clothing")
    assert read_items("") == [""] and not is_known("", "birds")


def test_units_are_read_from_the_question():
    questions = {
        "How many more beads does Ana have?": "beads",
        "Ana has 3 cards. How many cards are there?": "cards",
        "How many good plums are left?": "plums",
        "How many are left?": None,
        "What is the bill in dollars?": None,
    }
    assert {question: unit_of(question) for question in questions} == questions
    record = with_unit({"instruction": "How many km remain?", "output": "Final answer: 6"})
    assert record["output"] == "Final answer: 6 km" and names_unit(
        record["output"] + "\n", "How many km remain?"
    )
    assert not names_unit("Final answer: 6", "How many km remain?")
    assert not names_unit("Final answer: None", "How many are left?")
    with pytest.raises(DataError, match="no unit is in 'How many are left"):
        with_unit({"instruction": "How many are left?", "output": "Final answer: 6"})


def test_the_diagrams_are_those_of_the_script(monkeypatch):
    folder = ROOT / "notebooks/images"
    monkeypatch.syspath_prepend(str(folder))
    diagrams = importlib.import_module("make_diagrams")
    for name, diagram in diagrams.DIAGRAMS.items():
        assert (folder / name).read_text(encoding="utf-8") == diagrams.draw(*diagram)
        for _, _, width, _, lines, *_ in diagram[1]:  # a letter is about half as wide as high
            for line, size in zip(lines, (diagrams.FONT, *[diagrams.FONT - 2] * 2), strict=False):
                assert len(line) * size / 2 <= width + 5, f"{name}: {line} is wider than its box"
    assert {path.name for path in folder.glob("*.svg")} == diagrams.DIAGRAMS.keys()


@pytest.mark.parametrize("reward", ["0", "bad", None, [1.0]])
def test_a_reward_that_is_no_number_is_refused(reward):
    with pytest.raises(DataError, match="a reward is"):
        as_number(reward)


def test_numbers_and_verdicts_are_rewards():
    rewards = (True, np.bool_(True), 0.5, np.float32(0.25), Verdict(False, "no"))
    assert [as_number(reward) for reward in rewards] == [1, 1, 0.5, 0.25, 0]
