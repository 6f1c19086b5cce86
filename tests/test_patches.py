"""Each patch of another package: still needed (the package has no way of its own), and still fits."""

import inspect
import time
from concurrent.futures import TimeoutError as StillWaiting

import pytest
from inspect_ai.hooks import Hooks, hooks
from stub import Server
from test_benchmarks import Answers

from helpers.data.patches import only_the_cache
from helpers.errors import BackendError
from helpers.evaluate import run_inspect_eval
from helpers.evaluate.benchmark_files import BENCHMARKS
from helpers.evaluate.patches import counted, records_from
from helpers.train.patches import stop_waiting_when_ended

FAILS_AT_ONCE = 20  # seconds, on a busy machine


def test_the_sdk_still_waits_for_a_server_that_has_ended_and_with_the_patch_does_not(small_model, tmp_path):
    server = Server(small_model, tmp_path / "stub")
    plain, patched = server.rest("tml-plain"), server.rest("tml-patched")
    for client in (plain, patched):
        client.get_server_capabilities().result()
    stop_waiting_when_ended(server.url, patched.holder)
    assert patched.get_server_capabilities().result().supported_models
    server.kill()
    started, waiting = time.monotonic(), plain.get_server_capabilities()
    with pytest.raises(BackendError, match="has ended") as caught:
        patched.get_server_capabilities().result(timeout=60)
    assert time.monotonic() - started < FAILS_AT_ONCE and "course run --resume" in caught.value.fix
    with pytest.raises(StillWaiting):
        waiting.result(timeout=3)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_tasks_still_read_from_the_hub_alone_and_take_records_from_the_patch(name):
    known = BENCHMARKS[name]
    module = __import__(known.module, fromlist=["*"])
    task = getattr(module, known.task)
    assert not {"dataset", "records"} & set(inspect.signature(task).parameters), (
        "it has a door of its own now"
    )
    rows = {
        "gsm8k": [{"question": "1 + 1?", "answer": "1 + 1 = 2\n#### 2"}],
        "mmlu": [{"question": "1 + 1?", "choices": ["2", "3", "4", "5"], "answer": 0, "subject": "sums"}],
        "hellaswag": [
            {"ctx": "A man", "endings": ["eats.", "is.", "no.", "x."], "label": "0", "source_id": "1"}
        ],
    }[name]
    before = module.hf_dataset
    with records_from(module, {"train": rows, "validation": rows, "test": rows}):
        assert len(task().dataset) == 1
    assert module.hf_dataset is before


class Ending(Hooks):
    """Tries to end a run after its first answer, by the door that Inspect has."""

    on, heard = False, 0

    def enabled(self):
        return Ending.on

    async def on_model_usage(self, data):
        Ending.heard += 1
        raise InterruptedError("the reader has left")


def test_inspects_own_hooks_still_cannot_end_a_run(base_model, tmp_path, monkeypatch):
    hooks("course_test_ending", "raises")(Ending)
    monkeypatch.setattr(Ending, "on", True)
    client = Answers(base_model, lambda prompt: " Final answer: 2\n\n")
    rows = [{"instruction": f"What is {n} + 1?", "output": "2"} for n in range(3)]
    results = run_inspect_eval(client, rows, renderer="guide", log_dir=tmp_path)
    assert Ending.heard == results["samples"] == 3, (
        "a hook can end a run now: it can take the place of the patch"
    )


def test_a_counted_model_tells_of_each_answer():
    class Api:
        async def generate(self, question):
            return f"answer to {question}"

    class Asked:
        api = Api()

    heard = []
    model = counted(Asked(), lambda: heard.append("one"))
    with pytest.raises(StopIteration) as done:
        model.api.generate("it").send(None)
    assert done.value.value == "answer to it" and heard == ["one"]


def test_datasets_still_asks_the_hub_when_told_not_to_and_with_the_patch_does_not(monkeypatch):
    """Only the switch of the whole process keeps `load_dataset_builder` from the network."""
    import datasets
    import huggingface_hub

    asked = []

    def ask(*arguments, **more):
        asked.append(arguments)
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network in this test")

    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", ask)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", ask)
    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)

    def build():
        local = datasets.DownloadConfig(local_files_only=True)
        with pytest.raises(Exception, match=r"(?i)no network|not cached|couldn't|offline|exist"):
            datasets.load_dataset_builder("no-owner/no-such-data", download_config=local)

    build()
    assert asked, "datasets heeds local_files_only now"
    asked.clear()
    with only_the_cache():
        build()
    assert not asked and not datasets.config.HF_HUB_OFFLINE and not huggingface_hub.constants.HF_HUB_OFFLINE
