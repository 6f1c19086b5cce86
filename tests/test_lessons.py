"""Long notebooks of Parts 2 and 3: at small settings, where they must show the right directions, and at the
defaults.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs_for_tests import make_run
from texts import code_cells, source
from tinker import types

from helpers.files import read_json, read_jsonl, write_json
from helpers.paths import ROOT
from helpers.runs.like import settings_used
from helpers.runs.run import Run, point_latest_at
from helpers.runs.sweep import plan_sweep
from helpers.train import build_datum, connect, get_renderer, plan_steps
from helpers.train.backend import Backend
from helpers.train.sft import sft

BREAK_IT = ROOT / "notebooks" / "09_break_it.ipynb"
SMALL = {  # about a minute on two cores each
    "09_break_it": {"examples": 16, "many_epochs": 5.0, "problems": 4, "jobs": 2},
    "10_reinforcement_learning": {
        "problems_a_step": 6,
        "steps": 4,
        "learning_rate": 6e-4,
        "held_out_problems": 6,
        "max_tokens": 32,
    },
    "11_preferences": {
        "mixed_steps": 12,
        "examples_a_step": 8,
        "mixed_learning_rate": 3e-3,
        "problems": 24,
        "pairs_a_step": 4,
        "steps": 2,
        "learning_rate": 1e-3,
        "max_tokens": 10,
        "test_problems": 8,
    },
    "13_distillation": {
        "start_examples": 16,
        "problems": 12,
        "prompts_a_step": 4,
        "learning_rate": 1e-3,
        "max_tokens": 10,
        "new_examples": 8,
        "test_problems": 8,
        "kl_problems": 8,
    },
}


def run(command: list[str], env: dict[str, str], runs: Path, timeout: int) -> None:
    """Run a command in the folder of the notebooks, with a runs folder of its own."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT / "notebooks",
        env=env | {"COURSE_RUNS_DIR": str(runs)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def run_small(name: str, env: dict[str, str], runs: Path) -> None:
    settings = [word for key, value in SMALL[name].items() for word in ("-p", key, str(value))]
    run(["papermill", f"{name}.ipynb", str(runs / f"{name}.ipynb"), *settings], env, runs, timeout=600)


def test_reinforcement_learning_raises_the_reward(course_env, tmp_path):
    name, runs = "10_reinforcement_learning", tmp_path
    run_small(name, course_env, runs)
    measured = {
        f"{who} T={T} {what}"
        for who in ("before", "count", "repaired")
        for T in (0, 1)
        for what in ("count", "sense")
    }
    assert read_json(runs / name / "scores.json").keys() == measured | {"repaired KL"}
    for loop in ("count", "repaired"):
        rewards = [row["reward"] for row in read_jsonl(runs / name / loop / "metrics.jsonl")]
        assert sum(rewards[2:]) / 2 > rewards[0], loop


def short_sums(count: int) -> list[dict[str, str]]:
    """Records of one small addition each."""
    asked = "Ana has {0} {2} and gets {1}. How many {2} are there?"
    sums = [(a, b, thing) for a in range(2, 6) for b in range(2, 6) for thing in ("cards", "pears", "coins")]
    return [
        {
            "instruction": asked.format(*row),
            "input": "",
            "output": f"Final answer: {row[0] + row[1]}",
            "answer": str(row[0] + row[1]),
        }
        for row in random.Random(1).sample(sums, count)
    ]


@pytest.fixture
def stub_backend(course_env, tmp_path, monkeypatch):
    """The tests' stub, and a runs folder of this test's own."""
    monkeypatch.setenv("TINKER_COURSE_HOME", course_env["TINKER_COURSE_HOME"])
    monkeypatch.setenv("COURSE_RUNS_DIR", str(tmp_path))
    return connect("stub")


@pytest.fixture
def started_run(stub_backend):
    """A run whose best checkpoint is the base model itself."""
    service, base = stub_backend.service_client, stub_backend.base_model()
    started = make_run("started", done=("split", "train"), manifest={"base_model": base})
    client = service.create_lora_training_client(base, rank=16, seed=1, train_unembed=False).result()
    best = {"step": 0, "state_path": client.save_state("start").result().path}
    write_json(started.file("train/best_checkpoint.json"), best)
    rows = short_sums(48)
    write_json(started.file("split/train.json"), rows[:40])
    write_json(started.file("split/test_set.json"), rows[40:])
    return started


@pytest.fixture
def taught_run(stub_backend, tmp_path):
    """A run on short sums."""
    write_json(tmp_path / "sums.json", short_sums(48))
    chosen = {"data_files": str(tmp_path / "sums.json"), "validation_size": 0.25, "batch_size": 2}
    return taught("taught", stub_backend, short_sums(48), chosen)


@pytest.fixture
def broken_runs(stub_backend, taught_run):
    """The runs of notebook 09, without the last, trained here: its sweep would start a notebook for each."""
    names: dict[str, Any] = {"trained": taught_run.stage("train").settings, "backend_name": "auto"}
    names |= SMALL["09_break_it"]
    [cell] = [text for text in map(source, code_cells(BREAK_IT)) if text.startswith("changes = {")]
    exec(cell, names)
    every = settings_used(taught_run.manifest)[0] | names["common"]
    sweep = plan_sweep("break-it", list(names["changes"].values()), every, until="train")
    few = short_sums(48)[: names["examples"]] + short_sums(48)[40:]
    return [taught(name, stub_backend, few, sweep.settings[name]) for name in list(sweep.settings)[:-1]]


def taught(name: str, backend: Backend, rows: list[dict[str, str]], chosen: dict[str, Any]) -> Run:
    """A run that is trained here, all but its last eight rows, by the settings of notebook 02."""
    service, base = backend.service_client, backend.base_model()
    run = make_run(name, done=("split", "train"), manifest={"base_model": base}, **chosen)
    own, renderer = run.stage("train").settings, get_renderer("guide", base)
    client = service.create_lora_training_client(base, own.rank, seed=own.seed, train_unembed=False).result()
    datums = [build_datum(row, renderer, 512, own.train_on) for row in rows]
    new, metrics, looks = datums[-8:], [], []

    def look(step: int, epoch: float) -> None:
        loss = mean_nll(client.forward(new, "cross_entropy").result(), new)
        path = client.save_weights_for_sampler(f"{name}-{step}").result().path
        row = {"step": step, "epoch": epoch, "loss": loss, "correct": 4, "total": 8, "sampler_path": path}
        looks.append(row | {"accuracy": 0.5, "state_path": path})

    look(0, 0.0)
    how = own.batch_size, own.epochs, own.learning_rate, own.seed
    for step in plan_steps(len(rows) - 8, *how, eval_every=1, eval_every_epochs=own.eval_every_epochs or 9):
        batch = [datums[i] for i in step.examples]
        forward = client.forward_backward(batch, "cross_entropy")
        client.optim_step(types.AdamParams(learning_rate=step.learning_rate)).result()
        metrics.append({"epoch": step.epoch, "train_nll": mean_nll(forward.result(), batch)})
        if step.evaluate:
            look(step.number, step.epoch)
    for file, lines in {"metrics.jsonl": metrics, "checkpoints.jsonl": looks}.items():
        run.file(f"train/{file}").write_text("".join(json.dumps(row) + "\n" for row in lines))
    write_json(run.file("train/best_checkpoint.json"), looks[-1])
    for part, some in {"train": rows[:-8], "validation": rows[-8:]}.items():
        write_json(run.file(f"split/{part}.json"), some)
    return run


def mean_nll(output: types.ForwardBackwardOutput, datums: list[types.Datum]) -> float:
    """In nats per weighted token."""
    weights = np.concatenate([datum.loss_fn_inputs["weights"].to_numpy() for datum in datums])
    logprobs = np.concatenate([one["logprobs"].to_numpy() for one in output.loss_fn_outputs])
    return float(-(logprobs * weights).sum() / weights.sum())


def test_preferences_raise_the_margin(course_env, tmp_path, started_run):
    run_small("11_preferences", course_env, tmp_path)
    scores = read_json(started_run.file("11_preferences/scores.json"))
    measured = ("right", "unit", "gain", "win_rate")
    assert list(scores) == [f"{who} {what}" for who in ("SFT", "DPO", "small beta") for what in measured]
    assert scores["SFT win_rate"]["value"] == 0.5
    for loop, beta in (("dpo", 0.5), ("small_beta", 0.005)):
        margins = [
            row["margin"] / beta
            for row in read_jsonl(started_run.file(f"11_preferences/{loop}/metrics.jsonl"))
        ]
        assert abs(margins[0]) < 0.5 and margins[-1] > 1, loop  # nats


def test_distillation_comes_nearer_to_the_teacher(course_env, tmp_path, stub_backend, started_run):
    """The teacher learns the form of answers here; the student sees it twice, then only its own samples."""
    best = read_json(started_run.file("train/best_checkpoint.json"))
    client = stub_backend.service_client.create_training_client_from_state(best["state_path"]).result()
    rows, renderer = short_sums(48)[:40], get_renderer("guide", stub_backend.base_model())
    sft(client, [rows[n : n + 8] for n in range(0, 40, 8)], renderer, 3e-3)
    sampler = client.save_weights_for_sampler("teacher").result().path
    write_json(started_run.file("train/best_checkpoint.json"), best | {"sampler_path": sampler})
    run_small("13_distillation", course_env, tmp_path)
    scores = read_json(started_run.file("13_distillation/scores.json"))
    kl = {
        name: scores[f"{name} KL"]["value"] for name in ("start", "on-policy", "copying", "SFT", "teacher")
    }  # nats an answer
    assert abs(kl["teacher"]) < 0.5 < kl["start"]
    assert all(kl[name] < kl["start"] for name in ("on-policy", "copying", "SFT"))
    steps = read_jsonl(started_run.file("13_distillation/weak/metrics.jsonl"))
    assert len(steps) == 3 and steps[-1]["teacher_kl"] < steps[0]["teacher_kl"]
    assert {f"bookings {name}" for name in ("learned", "recovered", "SFT again")} <= scores.keys()


def run_as_committed(name: str, env: dict[str, str], runs: Path) -> None:
    nbval = ["pytest", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=1800", "-q"]
    more = [f"--nbval-sanitize-with={ROOT}/tests/nbval_sanitize.cfg", "-p", "no:cacheprovider"]
    run([*nbval, *more, f"{name}.ipynb"], env, runs, timeout=3600)


@pytest.mark.soak  # 10 minutes
def test_reinforcement_learning_at_the_defaults(course_env, tmp_path):
    name, runs = "10_reinforcement_learning", tmp_path
    run_as_committed(name, course_env, runs)
    scores = {key: score["value"] for key, score in read_json(runs / name / "scores.json").items()}
    right, sense = (
        [scores[f"{who} T=1 {what}"] for who in ("before", "count", "repaired")]
        for what in ("count", "sense")
    )
    assert right[1] - right[0] >= 0.3 and right[2] - right[0] >= 0.2  # of 216
    assert sense[1] < sense[0] < sense[2]
    assert scores["repaired T=0 count"] >= scores["before T=0 count"]


@pytest.mark.soak  # 15 minutes, 5 of them for the run
def test_preferences_at_the_defaults(course_env, tmp_path):
    run(["helpers.course", "run", "--until", "train"], course_env, tmp_path, timeout=1800)
    run_as_committed("11_preferences", course_env, tmp_path)
    scores = read_json(tmp_path / "latest/11_preferences/scores.json")
    won = scores["DPO win_rate"]
    assert won["value"] >= 0.6 and won["ci95"][0] > 0.5
    assert scores["DPO gain"]["ci95"][1] >= 0  # the interval's upper end: no loss of right answers is shown
    loops = {"dpo": 0.5, "small_beta": 0.005}
    nats = {
        loop: read_jsonl(tmp_path / f"latest/11_preferences/{loop}/metrics.jsonl")[-1]["margin"] / beta
        for loop, beta in loops.items()
    }
    assert nats["small_beta"] > nats["dpo"]  # it has no reason to stop


@pytest.mark.soak  # 15 minutes, 5 of them for the run
def test_distillation_at_the_defaults(course_env, tmp_path):
    run(["helpers.course", "run", "--until", "train"], course_env, tmp_path, timeout=1800)
    run_as_committed("13_distillation", course_env, tmp_path)
    scores = read_json(tmp_path / "latest/13_distillation/scores.json")
    kl, right = (
        {name.removesuffix(what): score["value"] for name, score in scores.items() if name.endswith(what)}
        for what in (" KL", " right")
    )
    assert kl["SFT"] < kl["start"] and kl["copying"] < kl["start"]  # nats an answer
    for loop in ("weak", "lost"):
        steps = read_jsonl(tmp_path / f"latest/13_distillation/{loop}/metrics.jsonl")
        assert steps[-1]["teacher_kl"] < steps[0]["teacher_kl"], loop  # nats a token
    assert right["learned"] < 0.7 * right["teacher"] and right["recovered"] > right["learned"]
    assert scores["bookings recovered"]["value"] > 0.8 * scores["bookings learned"]["value"]


@pytest.mark.soak  # 4 minutes
def test_the_checklist_for_own_data_at_its_defaults(course_env, tmp_path):
    run_as_committed("12_your_own_data", course_env, tmp_path)
    made = tmp_path / "12_your_own_data/latest"
    assert (made / "report.html").is_file() and (made / "merge/merged_model/README.md").is_file()
    assert read_json(made / "evaluate/model_evaluation.json")["test_correct"] >= 12


@pytest.fixture(scope="module")
def own_run(course_env, tmp_path_factory) -> Path:
    """A runs folder with a short run of notebooks 01 and 02."""
    runs = tmp_path_factory.mktemp("own")
    settings = {"max_train": 96, "max_validation": 16, "max_tokens": 48}
    chosen = [word for key, value in settings.items() for word in ("-p", f"{key}={value}")]
    run(["helpers.course", "run", "--until", "train", *chosen], course_env, runs, timeout=600)
    return runs


def test_broken_runs_show_what_is_wrong_with_them(course_env, tmp_path, taught_run, broken_runs):
    point_latest_at(taught_run.path)
    run_small("09_break_it", course_env, tmp_path)
    check_broken_runs(tmp_path, SMALL["09_break_it"]["problems"])
    assert os.readlink(tmp_path / "latest") == taught_run.name


@pytest.mark.soak  # 8 minutes
def test_broken_runs_at_the_defaults(own_run, course_env):
    run_as_committed("09_break_it", course_env, own_run)
    check_broken_runs(own_run, 16)


def check_broken_runs(runs: Path, asked: int) -> None:
    """The directions that the text of notebook 09 states.

    Args:
        asked: capitals.
    """
    results, histories, prompts = read_json(runs / "break-it/measured.json")
    loss, capitals = ({name: values[i] for name, values in results.items()} for i in (1, 2))
    assert loss["rate ÷ 10"] > 1.5 * loss["baseline"] and loss["rate × 10"] > loss["baseline"]
    assert capitals["rate × 10"] < capitals["baseline"] <= capitals["rate ÷ 10"] + max(1, asked // 5)
    for rank in ("rank 1", "rank 8"):
        assert loss[rank] < 0.7 * loss["rate ÷ 10"]
    assert loss["mask off"] > loss["baseline"]  # it counts the questions too
    _, then, _ = histories["ten epochs"][-3]
    assert loss["ten epochs"] > 0.8 * then  # the last passes bring nothing on new answers
    trained = read_jsonl(runs / "break-it-02/train/metrics.jsonl")[-4:]
    assert sum(row["train_nll"] for row in trained) / 4 < 0.5 * loss["ten epochs"]
    assert prompts["space at the end"] > prompts["as trained"]
