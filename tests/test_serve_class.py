"""`course serve`, with real SDK clients of two learners."""

import csv
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest
import tinker
from commands import COURSE, course, set_ctrl_c
from stub import train

from helpers.course import serve as serve_class
from helpers.course.capacity import capacity
from helpers.course.check import check_later_key
from helpers.errors import BackendError
from helpers.net import free_port
from helpers.paths import ROOT
from helpers.train import whereabouts
from helpers.train.backend import check_key, connect
from helpers.train.keys import TRIED
from helpers.train.whereabouts import session_metadata, tell


def rows(path: Path) -> list[list[str]]:
    return list(csv.reader(path.read_text(encoding="utf-8").splitlines()))


class Lesson:
    """`course serve` in a process of its own."""

    def __init__(self, folder: Path, model: Path):
        self.keys, self.log, port = folder / "class.csv", folder / "log.txt", free_port()
        (folder / "names.txt").write_text("# Tuesday\nAda\n\nÉmile du Bois\n", encoding="utf-8")
        self.url, self.model = f"http://127.0.0.1:{port}", str(model)
        command = [
            "serve",
            "--learners",
            str(folder / "names.txt"),
            "--keys",
            str(self.keys),
            "--port",
            str(port),
            "--state-dir",
            str(folder / "state"),
            "--base-model",
            self.model,
        ]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [*COURSE, *command],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=set_ctrl_c(signal.SIG_IGN),  # as in the background: Ctrl-C ends it all the same
            )
        deadline = time.monotonic() + 90
        while "Ctrl-C ends it" not in self.log.read_text():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)


@pytest.fixture(scope="module")
def lesson(tmp_path_factory, small_model):
    lesson = Lesson(tmp_path_factory.mktemp("class"), small_model)
    yield lesson
    lesson.process.send_signal(signal.SIGINT)  # Ctrl-C
    assert lesson.process.wait(timeout=60) == 0
    printed = lesson.log.read_text()
    assert printed.endswith("stopped\n") and "Traceback" not in printed


def test_two_learners_do_not_see_each_other(lesson):
    head, ada, emile = rows(lesson.keys)
    assert head == list(serve_class.COLUMNS) and (ada[0], emile[0]) == ("Ada", "Émile du Bois")
    assert (
        ada[2:] == [f"export TINKER_BASE_URL={lesson.url}", f"export TINKER_SERVER_API_KEY={ada[1]}"]
        and ada[1] != emile[1]
    )
    clients = []
    for key in (ada[1], emile[1]):
        service = tinker.ServiceClient(base_url=lesson.url, api_key=key)
        service.create_lora_training_client(lesson.model, rank=4, seed=1).result()
        runs = tinker.RestClient(base_url=lesson.url, api_key=key).list_training_runs().result().training_runs
        assert len(runs) == 1
        clients.append((service, key, runs[0].training_run_id))
    (_, key, own), (_, _, other) = clients
    rest = tinker.RestClient(base_url=lesson.url, api_key=key)
    assert rest.get_training_run(own).result().training_run_id == own != other
    with pytest.raises(tinker.NotFoundError):
        rest.get_training_run(other).result()
    for service, _, _ in clients:
        service.close("success").result()


def test_a_wrong_key_is_refused(lesson, monkeypatch):
    monkeypatch.setenv("TINKER_SERVER_API_KEY", "tml-not-of-this-class")
    with pytest.raises(BackendError, match=r"(?s)refused the connection.*check TINKER_SERVER_API_KEY"):
        connect(lesson.url)


def test_the_key_is_tried_before_the_work(lesson, monkeypatch):
    monkeypatch.setenv("TINKER_BASE_URL", lesson.url)
    for name in ("TINKER_API_KEY", "TINKER_SERVER_API_KEY", TRIED):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BackendError, match=r"(?s)API key is missing or wrong.*SERVER_API_KEY is not set"):
        check_key()
    assert check_later_key()[0].status == "FAIL"
    monkeypatch.setenv("TINKER_SERVER_API_KEY", rows(lesson.keys)[1][1])
    assert str(check_key()) == f"Tinker server at {lesson.url}: your key is accepted"
    [checked] = check_later_key()
    assert checked.status == "OK" and "your key is accepted" in checked.found
    monkeypatch.setenv("TINKER_BASE_URL", f"http://127.0.0.1:{free_port()}")
    [checked] = check_later_key()  # what does not depend on the server can go on
    assert checked.status == "NOTE" and "no Tinker server answers" in checked.found
    assert "correct TINKER_BASE_URL" in checked.fix
    assert str(check_key()) == f"note: {checked.found}\n→ {checked.fix}"
    monkeypatch.delenv("TINKER_BASE_URL")
    assert "TINKER_BASE_URL is not" in str(check_key())
    monkeypatch.setenv(TRIED, "1")
    assert check_key() is None


def test_the_instructor_sees_names_and_how_far_they_are(lesson, monkeypatch, capsys):
    monkeypatch.setattr(whereabouts, "_stage", {})  # other tests opened stages in this process
    monkeypatch.setenv("TINKER_SERVER_API_KEY", rows(lesson.keys)[2][1])
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/02_train.ipynb")
    backend = connect(lesson.url)
    client = backend.service_client.create_lora_training_client(lesson.model, rank=4, seed=1).result()
    train(client, 2)
    tell(backend, client, steps=113, correct=46, total=60)
    backend.service_client.close("success").result()
    state = str(lesson.keys.parent / "state")
    assert f"`course stub status --state-dir {state}`" in lesson.log.read_text()
    status, printed, _ = course(capsys, "stub", "status", "--state-dir", state)
    row = next(line.split() for line in printed.splitlines() if line.startswith("Émile"))
    assert status == 0 and row[:8] == ["Émile", "du", "Bois", "working", "02_train", "2", "of", "113"]
    assert float(row[8]) > 0 and row[9] == "46/60"
    assert "learners at once" in printed and course(capsys, "stub", "stop", "--state-dir", "x")[0] == 2
    monkeypatch.setenv("JPY_SESSION_NAME", "private/thoughts.ipynb")
    assert session_metadata() == {}


def test_what_the_instructor_reads(lesson):
    printed = lesson.log.read_text()
    assert (
        "2 learners, 2 of them new" in printed
        and lesson.url in printed
        and "GiB are free, enough for about" in printed
        and "--host 0.0.0.0" in printed
    )
    assert not [row for row in rows(lesson.keys)[1:] if row[1] in printed]
    assert stat.S_IMODE(lesson.keys.stat().st_mode) == 0o600


@pytest.fixture
def served(monkeypatch, tmp_path) -> list:
    """Instead of a server: what one would be started with."""
    started = []
    monkeypatch.setattr("helpers.stub_tinker.starting.run", lambda options, say: started.append(options) or 0)
    monkeypatch.setenv("TINKER_COURSE_HOME", str(tmp_path))
    return started


def test_keys_are_kept_and_late_learners_get_one(served, capsys, tmp_path):
    path, port = tmp_path / "class" / "learners.csv", str(free_port())
    assert course(capsys, "serve", "--learners", "2", "--port", port)[0] == 0
    first = rows(path)
    assert [row[0] for row in first[1:]] == ["learner-01", "learner-02"] and served[0].api_key == [
        row[1] for row in first[1:]
    ]
    assert course(capsys, "serve", "--port", port)[0] == 0 and rows(path) == first
    assert (
        "3 learners, 1 of them new"
        in course(
            capsys,
            "serve",
            "--learners",
            "3",
            "--port",
            port,
            "--host",
            "0.0.0.0",
            "--address",
            "lab.example",
        )[1]
    )
    later = rows(path)
    assert [row[:2] for row in later[:3]] == [row[:2] for row in first] and later[3][
        2
    ] == f"export TINKER_BASE_URL=http://lab.example:{port} TINKER_ALLOW_HTTP=1"
    assert [options.name for options in served] == [[], [], ["lab.example"]]
    assert course(capsys, "serve", "--learners", "1", "--new-keys", "--port", port)[0] == 0
    assert len(rows(path)) == 2 and rows(path)[1][1] not in [row[1] for row in later]


@pytest.mark.parametrize(
    ("names", "arguments", "status", "words"),
    [
        (None, [], 2, "there are no learners"),
        (None, ["--learners", "0"], 2, "1 to 500"),
        (None, ["--learners", "nobody.txt"], 1, "nobody.txt does not exist"),
        (None, ["--learners", "2", "--port", "0"], 2, "the port 0"),
        ("Ada\n\nAda\n", ["--learners", "NAMES"], 1, "line 3: 'Ada' is in line 1 already"),
        ("=cmd()\n", ["--learners", "NAMES"], 1, "line 1: '=cmd()' can't name a learner"),
        ("# nobody\n", ["--learners", "NAMES"], 1, "holds 0 names"),
        ("Ada\n", ["--learners", "2", "--keys", "NAMES"], 1, "is no file of keys"),
        ("learner,key\nAda,secret\n", ["--keys", "NAMES"], 1, "line 2: a row needs a name and a key"),
        (
            "learner,key\nAda,tml-12345678\nBob,tml-12345678\n",
            ["--keys", "NAMES"],
            1,
            "line 3: this learner or this key is there already",
        ),
    ],
)
def test_what_is_refused(served, capsys, tmp_path, names, arguments, status, words):
    file = tmp_path / "names.csv"
    if names is not None:
        file.write_text(names)
    got, _, err = course(capsys, "serve", *(str(file) if word == "NAMES" else word for word in arguments))
    assert got == status and words in err and "\n→ " in err and "secret" not in err and not served
    assert names is None or file.read_text() == names


def test_a_port_that_is_taken(served, capsys, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, _, err = course(capsys, "serve", "--learners", "2", "--port", str(taken.getsockname()[1]))
    assert status == 1 and "can't listen on 127.0.0.1" in err and not (tmp_path / "class").exists()


def test_the_estimate_says_what_does_not_fit(monkeypatch):
    monkeypatch.setattr("helpers.course.capacity.machine_memory", lambda: (8 * 2**30, 4 * 2**30))
    fits, too_many = capacity(11), capacity(12)
    assert "enough for about 11 learners" in fits and "note:" not in fits
    assert "12 learners at once train notebook 02 in about 50 min on 2 cores" in too_many
    assert "note:   12 learners may need more memory" in too_many


def test_the_address_that_learners_type():
    typed = serve_class.typed_address
    assert (
        typed("127.0.0.1") == "127.0.0.1"
        and typed("::1") == "[::1]"
        and typed("0.0.0.0", "lab.example") == "lab.example"
    )
    assert typed("0.0.0.0") not in ("", "0.0.0.0")
