"""The status page as an instructor reads it: who is stuck, who waits, and how far everybody is."""

import json
import re
from collections import Counter

import pytest
from browser import browser_tab
from browser_attack import find_browser
from classroom import AWAY, DONE, LONG, NAMES, STUCK, WAITING, Pupil, lesson
from tiny_models import make_base

from helpers.stub_tinker import status
from helpers.stub_tinker.usage import Usage

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
DESK = {"width": 1440, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
# Names, and whether all of it is within the window and nothing is cut off.
SEEN = """(() => {
  const cells = [...document.querySelectorAll('td, dd, p')].filter(e => e.offsetWidth)
  const cut = e => e.getBoundingClientRect().right > innerWidth || e.scrollWidth > e.clientWidth + 1
  return {
    names: [...document.querySelectorAll('td.name')].map(e => e.innerText),
    states: [...document.querySelectorAll('td.state')].map(e => e.innerText),
    wide: document.documentElement.scrollWidth - innerWidth,
    cut: cells.filter(cut).map(e => e.innerText),
    width: innerWidth,
  }})()"""


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    folder = tmp_path_factory.mktemp("class")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("helpers.stub_tinker.learner_status.LATELY", 150)  # slow is not quiet
        room = lesson(folder, make_base(folder / "base"))
        yield room
        room.close()


def test_who_needs_help_comes_first_and_who_is_done_stays(room):
    rows = room.rows()
    names, states = list(rows), [row["state"] for row in rows.values()]
    assert sorted(names) == sorted(NAMES)
    assert set(names[:2]) == set(STUCK) and names[2] == WAITING and names[-3:] == list(DONE)
    assert states == ["stuck"] * 2 + ["waiting"] + ["working"] * 4 + ["quiet", "not here"] + ["done"] * 3
    amelia, bjorn = (rows[name] for name in STUCK)
    assert "forward_backward failed: " in amelia["why"] and "data[0]: token ids" in amelia["why"]
    assert re.fullmatch(r"no request for \d+ min, in the middle of training", bjorn["why"])
    assert (bjorn["step"], bjorn["steps"], bjorn["correct"], bjorn["total"]) == (57, 113, 29, 60)
    assert (bjorn["notebook"], bjorn["stage"]) == ("02_train", "train") and bjorn["loss"] > 0
    assert re.fullmatch(r"1 in the queue, no turn for \d+ min", rows[WAITING]["why"])
    assert rows[AWAY]["step"] == 0
    assert rows["Fatima Zahra"]["notebook"] == "03_evaluate" and rows["Fatima Zahra"]["correct"] == 46


def test_a_learner_sees_no_other(room):
    page, text = room.status(room.keys[WAITING], "text/html"), room.status(room.keys[WAITING])
    assert WAITING in page and not [name for name in NAMES if name != WAITING and name in page + text]
    assert "missing or wrong key" in room.status(kind="text/html") and "missing or wrong key" not in page
    for key in room.keys.values():
        assert key not in room.status(kind="text/html") + room.status()


def test_what_clients_send_is_shown_and_not_obeyed(room):
    told = json.loads(room.status())
    told["refused_keys"]["from"] = "\x9b31m"  # as a client behind a proxy may say it is called
    page, text = room.status(kind="text/html"), status.text(told, "http://stub")
    assert "<img" not in page and "&lt;img src=x" in page and "<script" not in page and "x" * 60 not in page
    assert not {"\u202e", "\x1b", "\x9b"} & set(page + text) and "http" not in page.replace("http-equiv", "")
    assert [line.split("  ")[0] for line in text.splitlines() if "stuck" in line] == list(room.rows())[:2]


def test_an_error_is_forgotten_when_work_goes_on_and_counted_when_it_repeats(room):
    pupil = Pupil(room, LONG).train(5, 9)
    for _ in range(2):
        assert pupil.fail() and room.rows()[LONG]["state"] == "stuck"
        pupil.future("forward_backward", pupil.batch([1, 2, 3]))
        assert room.rows()[LONG]["state"] == "working"
    pupil.seen.failed("asample", "wait", is_final=False)  # 429: the SDK asks again by itself
    assert room.rows()[LONG]["state"] == "working"
    pupil.seen.failed("asample", "wait", is_final=False)
    pupil.seen.failed("asample", "wait", is_final=False)
    assert room.rows()[LONG]["why"] == "asample failed 3 times: wait"
    pupil.seen._pending += 1  # a full budget is no trouble while the server works on what fills it
    assert room.rows()[LONG]["state"] == "working"
    pupil.seen._pending -= 1
    for wrong in ({"step": -1}, {"steps": "3"}, {"more": 1}, {"steps": 10**9}):
        pupil.tell(wrong, 422)
    pupil.tell({"run": "nobody", "step": 8})
    assert room.rows()[LONG]["step"] == 5
    pupil.future("forward_backward", pupil.batch([1, 2, 3]))
    pupil.tell({"step": 84, "steps": 113})


def test_the_time_for_the_class_is_that_of_the_speed_seen_here(room, monkeypatch):
    assert "is said here once" in room.status(kind="text/html")
    monkeypatch.setattr(room.service.usage, "total", Usage(400_000, 200_000))
    monkeypatch.setattr(room.service.engine, "busy", Counter(train=1000.0, decode=500.0))
    told = json.loads(room.status())["class"]
    assert told["minutes"] == pytest.approx(12 * (67_701 / 400 + 11_925 / 400) / 60)
    page = room.status(kind="text/html")
    assert "12 learners at once take about 40 min for 02_train on" in page and "400 tokens/s trained" in page


@pytest.mark.skipif(not find_browser(), reason="no browser")
def test_the_page_in_a_browser(room, tmp_path):
    page, names = tmp_path / "class.html", list(room.rows())
    page.write_text(room.status(kind="text/html"), encoding="utf-8")
    with browser_tab(tmp_path / "profile") as tab:
        for device in (DESK, PHONE):
            tab.call("Emulation.setDeviceMetricsOverride", **device)
            tab.open(page.as_uri())
            tab.wait("document.readyState === 'complete' && document.querySelector('td.name') !== null")
            seen = tab.value(SEEN)
            assert seen["width"] == device["width"] and seen["wide"] <= 0 and seen["cut"] == []
            assert seen["names"] == names and seen["states"][:2] == ["stuck", "stuck"]
            assert seen["states"].count("done") == len(DONE) and tab.problems == []
