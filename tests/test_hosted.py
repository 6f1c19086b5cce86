"""Hosted Tinker, played by a server: models come and go, and what the user leaves open is filled in."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from browser_attack import Answering, serving
from commands import assert_one_message, course
from runs_for_tests import make_run
from test_run_command import started  # noqa: F401  (a fixture)
from texts import NOTEBOOKS, cells, source

from helpers.errors import BackendError
from helpers.paths import ROOT
from helpers.runs.chosen import profiles
from helpers.runs.manifest import BackendUsed
from helpers.runs.settings import settings_of
from helpers.train import connect, keys, lineup

pytestmark = pytest.mark.usefixtures("folder")
RETIRED, NEW, OTHER = "Qwen/Qwen3-30B-A3B-Instruct-2507", "Qwen/Qwen3.6-35B-A3B", "openai/gpt-oss-20b"


@pytest.fixture
def hosted(monkeypatch) -> Iterator[list[dict[str, Any]]]:
    """What the service offers, in the form of the protocol: a list to change."""
    models = [{"model_name": name, "max_context_length": 2048, "trainable": True} for name in (NEW, OTHER)]

    class Service(Answering):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            bodies: dict[str, Any] = {"get_server_capabilities": {"supported_models": models}}
            bodies["create_session"] = {"type": "create_session", "session_id": "s"}
            body = bodies.get(self.path.rsplit("/", 1)[-1], {})
            self.send(200, json.dumps(body).encode(), Content_Type="application/json")

        do_GET = do_HEAD = do_POST = answer

    with serving(Service) as url:
        monkeypatch.setattr(keys, "HOSTED_URL", url)
        monkeypatch.setenv(keys.HOSTED_KEY, "tml-of-a-test")
        yield models


def test_connect_compares_the_model_with_what_the_service_offers(hosted):
    backend = connect("hosted")
    assert backend.base_model() == NEW and backend.base_model(OTHER) == OTHER
    with pytest.raises(
        BackendError, match=rf"does not offer the base model {RETIRED}: it has .*{OTHER}"
    ) as gone:
        backend.base_model(RETIRED)
    assert (
        f"-p base_model={NEW} -p prompt_format=qwen3_5_disable_thinking -p learning_rate=0.0"
        in gone.value.fix
    )
    hosted[1]["trainable"] = False
    with pytest.raises(BackendError, match=f"does not train the base model {OTHER}"):
        backend.base_model(OTHER)


@pytest.mark.parametrize(
    "command", [["run"], ["run", "--dry-run"], ["sweep", "--name", "s", "--grid", "rank=8"]]
)
def test_a_retired_model_is_refused_before_anything_is_made(command, hosted, capsys, folder, small_data):
    words = [*command, "--profile", "hosted", "--data", small_data]
    status, _, err = course(capsys, *words, "-p", f"base_model={RETIRED}")
    assert status == 1 and not folder.exists()
    assert_one_message(err, f"hosted Tinker does not offer the base model {RETIRED}", f"{NEW}, {OTHER}")
    del hosted[0]
    status, _, err = course(capsys, *words)
    assert status == 1 and not folder.exists()
    assert_one_message(err, f"does not offer the base model {NEW}: it has {OTHER}", "name one of them")


def test_the_advice_works(hosted, capsys, started, small_data):  # noqa: F811
    """Also on a run that was begun when the model was there, and whose settings name it."""
    make_run(
        "old", done=("split",), backend_name="hosted", base_model=RETIRED, prompt_format="qwen3_instruct"
    )
    status, _, err = course(capsys, "run", "--resume", "--until", "train")
    assert status == 1 and not started
    [advice] = re.findall(r"→ .*?: (-p .*)", err)
    status, out, _ = course(capsys, "run", "--resume", "--until", "train", *advice.split())
    [(name, stages, settings)] = started
    assert (status, name, stages) == (0, "old", ["train"]) and settings["base_model"] == NEW
    assert settings["prompt_format"] == "qwen3_5_disable_thinking" and "note" not in out.replace(
        "note: rank", ""
    )


def test_what_a_retired_model_learned_can_still_be_exported(hosted, capsys, started):  # noqa: F811
    manifest = {"base_model": RETIRED, "backend": BackendUsed(kind="hosted", url=None)}
    make_run("old", done=("split", "train"), manifest=manifest, backend_name="hosted")
    status, _, err = course(capsys, "run", "--resume")
    assert status == 1 and not started
    assert_one_message(err, f"does not offer the base model {RETIRED}", "--from export --until export")
    assert course(capsys, "run", "--name", "old", "--from", "export", "--until", "export")[0] == 0
    assert [stages for _, stages, _ in started] == [["export"]]


def test_what_is_left_open_comes_from_the_cookbook_and_is_said(hosted, capsys, started, small_data):  # noqa: F811
    words = ["run", "--backend", "hosted", "--until", "train", "--data", small_data]
    status, out, _ = course(capsys, *words)
    assert status == 0 and {key: started[0][2][key] for key in ("base_model", "prompt_format")} == {
        "base_model": NEW,
        "prompt_format": "qwen3_5_disable_thinking",
    }
    assert 0.0004 < started[0][2]["learning_rate"] < 0.0005
    for text in (
        f"note: base_model={NEW}",
        "note: prompt_format=",
        "note: learning_rate=0.000",
        "note: rank=32: ",
    ):
        assert text in out
    own = ["-p", "prompt_format=llama3", "-p", "learning_rate=1e-3"]
    status, out, _ = course(capsys, *words, *own)
    assert started[1][2]["prompt_format"] == "llama3" and started[1][2]["learning_rate"] == 1e-3
    assert "prompt_format=llama3 is none of the cookbook's for" in out and "note: learning_rate" not in out
    status, _, err = course(capsys, *words, "-p", f"base_model={OTHER}")
    assert status == 1 and len(started) == 2
    assert_one_message(err, f"no learning_rate for {OTHER}", "set it: -p learning_rate=")
    assert "no prompt format 'llama33'" in course(capsys, *words, "-p", "prompt_format=llama33")[2]


def test_the_services_context_counts(hosted, capsys, small_data):
    words = ["run", "--dry-run", "--profile", "hosted", "--data", small_data, "-p", "max_model_len=9000"]
    assert course(capsys, *words)[0] == 0
    assert_one_message(course(capsys, *words, "-p", "max_tokens=2048")[2], "the base model's context, 2048")


def test_without_key_or_network(hosted, capsys, monkeypatch, folder, small_data):
    words = ["--profile", "hosted", "--data", small_data]
    monkeypatch.setattr(keys, "HOSTED_URL", "http://127.0.0.1:9/services")
    status, _, err = course(capsys, "run", *words)
    assert status == 1
    assert_one_message(err, "hosted Tinker is not reachable")
    monkeypatch.delenv(keys.HOSTED_KEY)
    status, _, err = course(capsys, "run", *words)
    assert status == 1 and not folder.exists()
    assert_one_message(err, "TINKER_API_KEY is not set")
    assert "TINKER_API_KEY is not set" in course(capsys, "run", "--dry-run", *words)[1]


def test_a_server_by_url_is_asked_too(hosted, capsys, small_data):
    words = ["run", "--dry-run", "--until", "train", "--data", small_data, "--backend", keys.HOSTED_URL]
    keys.HOSTED_URL = "https://elsewhere.example/services/tinker-prod"
    assert_one_message(course(capsys, *words)[2], f"trains {NEW}, {OTHER}", "-p base_model=")
    status, _, err = course(capsys, *words, "-p", "base_model=a/b")
    assert status == 1
    assert_one_message(err, "does not offer the base model a/b", NEW)
    assert course(capsys, *words, "-p", f"base_model={NEW}")[0] == 0


# the names


def test_the_models_of_the_course_are_known_and_not_retired():
    from tinker_cookbook import hyperparam_utils, model_info

    table = lineup.hosted_models()
    assert not set(table["use"].values()) & set(table["replacements"])
    for model in table["use"].values():
        found = lineup.recommended(model)
        assert found["prompt_format"] in model_info.get_recommended_renderer_names(model)
        assert found["learning_rate"] == pytest.approx(hyperparam_utils.get_lr(model), rel=0.01)
    for model in table["replacements"]:
        last = [other for other in table["replacements"].values() if other not in table["replacements"]]
        assert lineup.replacement(model, last) in last and lineup.own_renderer(
            lineup.replacement(model, last)
        )
    assert settings_of("train", {}).rank == 32  # as get_lora_param_count has it


OWNERS = "Qwen|meta-llama|deepseek-ai|moonshotai|nvidia|zai-org|thinkingmachines|google|mistralai"
NAME = rf"\b(?:(?:{OWNERS})/|openai/gpt)[\w.-]+"


def test_no_other_model_is_named():
    """In notebooks, README, docs and the profiles."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    texts = {page.name: page.read_text() for page in pages}
    texts |= {book.name: "\n".join(map(source, cells(book))) for book in NOTEBOOKS}
    texts["profiles"] = json.dumps(profiles())
    allowed = set(lineup.hosted_models()["use"].values())
    found = {name: set(re.findall(NAME, text)) - allowed for name, text in texts.items()}
    assert {name: names for name, names in found.items() if names} == {}
    bare = re.compile(r"\b(?:(?:Qwen|Llama-)\d[\w.]*-\d+B|gpt-oss-\d|Kimi-K\d|DeepSeek-V\d|GLM-\d)[\w.-]*")
    for name, text in texts.items():
        rest = re.sub("|".join(map(re.escape, allowed)), "", text)
        assert not bare.search(rest), f"{name}: {bare.search(rest)}"
