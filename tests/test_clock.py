"""helpers.clock: which kind of work a second counts as. Time is moved by hand, so nothing depends on the
machine.
"""

import threading

import pytest
from test_training import TrainSettings

from helpers import clock
from helpers.clock import work_done, worked
from helpers.train.progress import Progress
from helpers.train.schedule import Step
from helpers.train.training_log import TrainingLog


@pytest.fixture
def tick(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(clock.time, "monotonic", lambda: now[0])
    before = work_done()

    def move(seconds: float) -> None:
        now[0] += seconds

    def counted() -> dict[str, float]:
        counts = {kind: total - before.get(kind, 0.0) for kind, total in work_done().items()}
        return {kind: pytest.approx(seconds) for kind, seconds in counts.items() if seconds}

    move.counted = counted
    return move


def test_a_block_counts_and_the_time_between_blocks_does_not(tick):
    with worked("merging"):
        tick(2)
    tick(50)
    with worked("merging"):
        tick(3)
    assert tick.counted() == {"merging": 5}


def test_every_second_counts_once_in_nested_blocks(tick):
    with worked("training"):
        tick(1)
        with worked("sampling"):
            tick(10)
            with worked("sampling"):
                tick(100)
        tick(1)
    assert tick.counted() == {"training": 2, "sampling": 110}


def test_an_open_block_counts_up_to_now_and_a_failed_one_is_closed(tick):
    with pytest.raises(KeyError), worked("vllm"):
        tick(4)
        assert tick.counted() == {"vllm": 4}
        raise KeyError
    tick(9)
    assert tick.counted() == {"vllm": 4}


def test_blocks_of_two_threads_may_close_in_any_order(tick):
    opened, go_on = threading.Event(), threading.Event()

    def other() -> None:
        with worked("vllm"):
            opened.set()
            go_on.wait(10)

    thread = threading.Thread(target=other)
    with worked("sampling"):
        thread.start()
        assert opened.wait(10)
        tick(3)
    tick(5)
    go_on.set()
    thread.join(10)
    tick(7)
    assert tick.counted() == {"vllm": 8}


def test_as_a_decorator_it_counts_every_call(tick):
    @worked("sampling")
    def ask() -> str:
        tick(2)
        return "answer"

    assert ask() == ask() == "answer"
    assert tick.counted() == {"sampling": 4}


@pytest.mark.parametrize("ending", ["end", "break", "error"])
def test_steps_count_as_training_without_the_evaluations_between_them(tick, ending, tmp_path):
    steps = [Step(number, number / 2, [0], 1e-3) for number in (1, 2)]
    kept = []
    try:
        for step in Progress(steps, TrainingLog(tmp_path, TrainSettings())):
            tick(3)
            with worked("sampling"):
                tick(20)
            if step.number == 2 and ending == "break":
                break
            if step.number == 2 and ending == "error":
                raise RuntimeError("in the loop")
    except RuntimeError as error:
        kept.append(error)  # a notebook keeps its last traceback, and so the frame of the loop
    tick(100)
    assert tick.counted() == {"training": 6, "sampling": 40}
