"""What several test files share. Keep it small."""

import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tinker
import torch
from nbval_beside import NOTEBOOK_TESTS, Nbval
from sdk_world import World
from stub import Remote, Server, remote
from tiny_models import save_llama

import helpers  # noqa: F401  (sets how idle threads wait, before torch is loaded)
from helpers.local_model import LOCAL_MODEL

# The SDK's clients of servers that a test has ended warn for minutes, into the output of whatever test is on.
for _module in ("internal_client_holder", "telemetry"):
    logging.getLogger(f"tinker.lib.{_module}").setLevel(logging.ERROR)


def pytest_addoption(parser: pytest.Parser) -> None:
    kit = parser.getgroup("conformance", "the tests of Tinker's protocol, on any server")
    kit.addoption(
        "--tinker-url", help="run tests/conformance, and nothing else, on the server at this address"
    )
    kit.addoption("--tinker-model", help="the base model to use (default: the only one that it offers)")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With --tinker-url, what is not of the kit."""
    kit = Path(__file__).with_name("conformance")
    if config.getoption("--tinker-url") and collection_path.is_file():
        return None if kit in collection_path.parents else True
    return None


@pytest.fixture(scope="session")
def base_model() -> Path:
    """The folder of the local base model, in its usual place; made once (about 15 s) if it is missing."""
    from helpers.local_model import local_base_model

    return local_base_model()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The notebooks run beside all other tests, and what came of them is looked at last."""
    items.sort(key=lambda item: item.path.name == NOTEBOOK_TESTS)


@pytest.fixture(scope="session", autouse=True)
def committed_notebooks(request, tmp_path_factory) -> Iterator[Nbval | None]:
    """They run by nbval, on half of the cores if there are other tests to run beside it. None if no test asks
    for them.
    """
    theirs = [item.path.name == NOTEBOOK_TESTS for item in request.session.items]
    if not any(theirs):
        yield None
        return
    cores = sorted(os.sched_getaffinity(0))
    half = cores if all(theirs) else cores[len(cores) // 2 :]
    model = request.getfixturevalue("base_model")
    with (
        course_home(tmp_path_factory, model) as env,
        Nbval(env, half) as run,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("OMP_NUM_THREADS", str(len(half)))  # of what the other tests start
        torch.set_num_threads(len(half))  # a second one waits for the notebooks' core at every product
        yield run


@pytest.fixture(scope="session")
def course_env(committed_notebooks, tmp_path_factory, base_model) -> Iterator[dict[str, str]]:
    """What `course_home` gives, for all tests that do not need one of their own."""
    with course_home(tmp_path_factory, base_model) as env:
        yield env


@contextlib.contextmanager
def course_home(tmp_path_factory, base_model: Path) -> Iterator[dict[str, str]]:
    """Environment of a user with an empty home for runs and the stub, and the base model. Ends the stub."""
    home = tmp_path_factory.mktemp("course-home")
    (home / "models").symlink_to(base_model.parent)
    env = {key: value for key, value in os.environ.items() if not key.startswith("TINKER_")}
    env |= {"TINKER_COURSE_HOME": str(home), "COURSE_RUNS_DIR": str(tmp_path_factory.mktemp("runs"))}
    yield env
    subprocess.run(
        [sys.executable, "-m", "helpers.course", "stub", "stop"],
        env=env,
        check=True,
        stdout=subprocess.DEVNULL,
    )


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A runs folder that does not exist yet, and no key: what `course` finds for the length of a test."""
    monkeypatch.setenv("COURSE_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(os, "fsync", lambda _: None)  # several seconds otherwise
    for name in ("TINKER_API_KEY", "TINKER_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "runs"


@pytest.fixture
def small_data(tmp_path) -> Path:
    """40 records; each prompt has 40 characters, each answer 20."""
    rows = [
        {"instruction": f"{i:03} " + chr(97 + i % 26) * 4, "output": f"Final answer: {i:03}"}
        for i in range(40)
    ]
    path = tmp_path / "small.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def notebooks(monkeypatch, folder):
    """Runs of a sweep whose notebooks are done at once, and results without plot and page."""
    from sweeps_for_tests import Notebooks, write_table

    made = Notebooks()
    monkeypatch.setattr("helpers.runs.sweep.run.write_results", write_table)
    monkeypatch.setattr("helpers.runs.sweep.run.course_run", made)
    monkeypatch.setattr("helpers.runs.sweep.progress.POLL_SECONDS", 0.01)
    return made


@pytest.fixture(scope="session")
def small_model(tmp_path_factory, base_model) -> Path:
    """A two-layer llama with the vocabulary and tokenizer of the local base model."""
    return save_llama(tmp_path_factory.mktemp("models") / "deep" / "small", base_model, initializer_range=0.2)


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory, base_model) -> Path:
    """Two narrow layers with large weights: its loss falls by a third in twelve quick steps."""
    folder = tmp_path_factory.mktemp("toys") / "models" / LOCAL_MODEL
    return save_llama(folder, base_model, initializer_range=1.0, max_position_embeddings=2048)


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory, base_model) -> Path:
    """A model whose rank-64 LoRA shows in the memory of a process, and whose own weights are larger."""
    return save_llama(
        tmp_path_factory.mktemp("wide") / "deep" / "model",
        base_model,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
    )


@pytest.fixture(scope="session")
def server(request, tmp_path_factory) -> Iterator[Remote]:
    """A stub on the small model, for all tests that do not end it or count what it holds; with --tinker-url,
    the server there.
    """
    if url := request.config.getoption("--tinker-url"):
        yield remote(url, request.config.getoption("--tinker-model"))
        return
    server = Server(request.getfixturevalue("small_model"), tmp_path_factory.mktemp("stub"))
    yield server
    server.stop()
    assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="session")
def closeness(server) -> float:
    """How close two computations of the same loss must be, relative: our stub repeats them exactly."""
    return 1e-6 if isinstance(server, Server) else 0.02


@pytest.fixture(scope="session")
def world(server, closeness) -> Iterator[World]:
    """A run on it, and what else the SDK's methods are tried on."""
    own = isinstance(server, Server)
    project = "lab" if own else os.environ.get("TINKER_PROJECT_ID")
    world = World(server, ("tml-first", "tml-other") if own else server.keys, project, closeness)
    yield world
    world.close()


@pytest.fixture(scope="module")
def service(server) -> Iterator[tinker.ServiceClient]:
    """A client of it, of this file's own."""
    client = server.connect()
    yield client
    client.close("success").result()


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> dict[str, Any]:
    """Base, adapter, PEFT form, merged model, and the score of the model merged by hand."""
    from tiny_models import PAIRS, by_hand, make_adapter, make_base

    from helpers.weights import adapter_to_peft, merge_adapter, score_with_transformers

    folder = tmp_path_factory.mktemp("merge")
    base = make_base(folder / "base")
    adapter = make_adapter(folder / "adapter", base)
    adapter_to_peft(base, adapter, folder / "peft")
    report = merge_adapter(base, adapter, folder / "merged")
    return {
        "folder": folder,
        "base": base,
        "adapter": adapter,
        "peft": folder / "peft",
        "merged": folder / "merged",
        "report": report,
        "scores": score_with_transformers(by_hand(base, adapter), PAIRS, "by hand"),
    }
