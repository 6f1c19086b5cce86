"""A class on one stub server: fair shares, the same results as alone, and memory by client."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from learners import HANG_SECONDS, Learner
from stub import Server, datums, prompt, train
from stub_memory import MIB, RANK, lora_parameters, settled, settles_below
from tinker import types

CLIENTS = 3
ENOUGH_SECONDS = 150  # within which a slow machine too gives shares that say something


def be_greedy(server: Server, begin: threading.Barrier, over: threading.Event) -> int:
    """32 datums and 100 samples at a time, two of each under way, to the end. Returns the requests done."""
    service = server.connect()
    client = service.create_lora_training_client(server.model, rank=8, seed=1, train_unembed=False).result()
    sampler = service.create_sampling_client(base_model=server.model).result()
    begin.wait(timeout=HANG_SECONDS)
    done = 0
    while not over.is_set():
        futures = [client.forward_backward(datums(32), "cross_entropy") for _ in range(2)]
        futures += [
            sampler.sample(prompt(), 100, types.SamplingParams(max_tokens=16, stop=[])) for _ in range(2)
        ]
        for future in futures:
            future.result()
            done += 1
    service.close("success").result()
    return done


@pytest.mark.parametrize(("crowd", "seconds"), [(4, 2.0), pytest.param(19, 12.0, marks=pytest.mark.soak)])
def test_a_crowd_shares_fairly_and_gets_the_results_of_one_alone(crowd, seconds, server):
    """A crowd of learners, and one greedy client beside it."""
    alone, steps = Learner(), int(2 * seconds)
    alone.work(server, threading.Barrier(1), lambda learner: len(learner.losses) < steps)
    learners = [Learner() for _ in range(crowd)]
    begin, over = threading.Barrier(crowd + 2), threading.Event()
    with ThreadPoolExecutor(crowd + 1) as pool:
        futures = [
            pool.submit(learner.work, server, begin, lambda _: not over.is_set()) for learner in learners
        ]
        greedy = pool.submit(be_greedy, server, begin, over)
        begin.wait(timeout=HANG_SECONDS)
        deadline = time.monotonic() + ENOUGH_SECONDS
        over.wait(timeout=seconds)
        while sum(len(learner.samples) for learner in learners) < 5 * crowd and time.monotonic() < deadline:
            over.wait(timeout=0.5)
        shares = [learner.tokens for learner in learners]  # while the greedy one is still at it
        over.set()
        for future in futures:
            future.result(timeout=HANG_SECONDS)
        assert greedy.result(timeout=HANG_SECONDS) > 0
    mean = sum(shares) / len(shares)
    assert 0 < mean / 2 <= min(shares) <= max(shares) <= 2 * mean, shares
    for learner in learners:
        compared = min(len(learner.losses), steps)
        assert learner.losses[:compared] == pytest.approx(alone.losses[:compared], rel=1e-4)
    assert all(samples == alone.samples[0] for learner in [alone, *learners] for samples in learner.samples)


def test_a_client_costs_its_lora_and_optimizer_and_gives_them_back(wide_model, tmp_path):
    server = Server(wide_model, tmp_path / "state")
    process = psutil.Process(server.process.pid)
    cost = 16 * lora_parameters(wide_model) * 1.2

    def join():
        service = server.connect()
        train(service.create_lora_training_client(server.model, rank=RANK, train_unembed=False).result(), 2)
        return service

    first = join()
    before = settled(process)
    others = [join() for _ in range(CLIENTS)]
    fits, memory = settles_below(process, before + CLIENTS * cost)
    assert fits, f"{memory - before // MIB} MiB for {CLIENTS} clients of {cost / MIB:.0f} MiB at most"
    assert process.memory_info().rss > before + CLIENTS * cost / 2 / 1.2, "too little to have been measured"
    for service in others:
        service.close("success").result()
    # Of one: the allocator keeps some, a leak would keep something of each.
    fits, memory = settles_below(process, before + cost)
    assert fits, f"{memory - before // MIB} MiB are kept after {CLIENTS} clients have left"
    first.close("success").result()
    server.stop()
