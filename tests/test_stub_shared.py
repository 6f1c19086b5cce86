"""A class on one stub server: fair shares, the same results as alone, memory by client, and keys that don't see each other."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import torch
from stub import Server
from test_stub_server import datums, prompt, train
from tinker import types

LEARNERS = 19  # and one greedy client
SECONDS = float(os.environ.get("STUB_CROWD_SECONDS", "12"))
HANG_SECONDS = 300
KEYS = ("tml-one", "tml-two")
SAMPLED, TRAINED = 32, 120  # tokens of one sampling request and of one training step of a learner
PARAMS = [
    types.SamplingParams(max_tokens=8, temperature=0.0, seed=11, stop=[]),
    types.SamplingParams(max_tokens=8, temperature=1.0, seed=11, stop=[]),
]


@pytest.fixture(scope="module")
def server(small_model, tmp_path_factory):
    server = Server(
        small_model, tmp_path_factory.mktemp("shared"), "--api-key", KEYS[0], "--api-key", KEYS[1]
    )
    yield server
    server.stop()
    assert "Traceback" not in server.log.read_text()


@dataclass
class Learner:
    """What one client did until the end of the lesson."""

    losses: list[float] = field(default_factory=list)
    samples: list[list[list[list[int]]]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return TRAINED * len(self.losses) + 2 * SAMPLED * len(self.samples)

    def work(self, server: Server, begin: threading.Barrier, go_on: Callable[["Learner"], bool]) -> None:
        service = server.connect(KEYS[0])
        client = service.create_lora_training_client(
            server.model, rank=8, seed=1, train_unembed=False
        ).result()
        sampler = service.create_sampling_client(base_model=server.model).result()
        begin.wait(timeout=HANG_SECONDS)
        while go_on(self):
            self.losses += train(client, 1)
            futures = [sampler.sample(prompt(), 4, params) for params in PARAMS]
            self.samples.append(
                [[sequence.tokens for sequence in future.result().sequences] for future in futures]
            )
        service.close("success").result()


def be_greedy(server: Server, begin: threading.Barrier, over: threading.Event) -> int:
    """64 datums and 200 samples at a time, two of each under way, until the lesson is over. Returns the requests done."""
    service = server.connect(KEYS[0])
    client = service.create_lora_training_client(server.model, rank=8, seed=1, train_unembed=False).result()
    sampler = service.create_sampling_client(base_model=server.model).result()
    begin.wait(timeout=HANG_SECONDS)
    done = 0
    while not over.is_set():
        futures = [client.forward_backward(datums(64), "cross_entropy") for _ in range(2)]
        futures += [
            sampler.sample(prompt(), 200, types.SamplingParams(max_tokens=16, stop=[])) for _ in range(2)
        ]
        for future in futures:
            future.result()
            done += 1
    service.close("success").result()
    return done


def test_a_crowd_shares_fairly_and_gets_the_results_of_one_alone(server):
    alone = Learner()
    steps = int(2 * SECONDS)
    alone.work(server, threading.Barrier(1), lambda learner: len(learner.losses) < steps)
    learners = [Learner() for _ in range(LEARNERS)]
    begin, over = threading.Barrier(LEARNERS + 2), threading.Event()
    with ThreadPoolExecutor(LEARNERS + 1) as pool:
        futures = [
            pool.submit(learner.work, server, begin, lambda _: not over.is_set()) for learner in learners
        ]
        greedy = pool.submit(be_greedy, server, begin, over)
        begin.wait(timeout=HANG_SECONDS)
        deadline = time.monotonic() + 4 * SECONDS
        over.wait(timeout=SECONDS)
        while (
            sum(len(learner.samples) for learner in learners) < 5 * LEARNERS and time.monotonic() < deadline
        ):
            over.wait(timeout=0.5)  # a slow machine needs longer for shares that say something
        shares = [learner.tokens for learner in learners]  # while the greedy one is still at it
        over.set()
        for future in futures:
            future.result(timeout=HANG_SECONDS)
        assert greedy.result(timeout=HANG_SECONDS) > 0
    mean = sum(shares) / len(shares)
    assert min(shares) > 0, shares
    assert min(shares) >= mean / 2 and max(shares) <= 2 * mean, shares
    for learner in learners:
        compared = min(len(learner.losses), steps)
        assert learner.losses[:compared] == pytest.approx(alone.losses[:compared], rel=1e-4)
        assert all(samples == alone.samples[0] for samples in learner.samples)
    assert all(samples == alone.samples[0] for samples in alone.samples)


# Memory

RANK, CLIENTS, MIB = 64, 5, 1 << 20


@pytest.fixture(scope="module")
def wide_model(small_model, tmp_path_factory) -> Path:
    """A model whose rank-64 LoRA is large enough to see in the memory of a process, and whose own weights are larger."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("wide") / "deep" / "model"
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            hidden_size=512,
            intermediate_size=1024,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=8,
            vocab_size=49152,
            max_position_embeddings=256,
            tie_word_embeddings=True,
        )
    ).save_pretrained(folder)
    for path in Path(small_model).iterdir():
        if not (folder / path.name).exists():
            shutil.copy(path, folder)
    return folder


def lora_parameters(folder: Path) -> int:
    config = json.loads((folder / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    return config["num_hidden_layers"] * RANK * (4 * (hidden + hidden) + 3 * (hidden + inner))


def settles_below(process: psutil.Process, limit: float, seconds: float = 30) -> tuple[bool, int]:
    """Whether the process comes to hold no more than `limit` bytes; freed memory goes back after a moment of rest."""
    deadline = time.monotonic() + seconds
    while (memory := process.memory_info().rss) > limit and time.monotonic() < deadline:
        time.sleep(0.2)
    return memory <= limit, memory // MIB


def test_a_client_costs_its_lora_and_optimizer_and_gives_them_back(wide_model, tmp_path):
    server = Server(wide_model, tmp_path / "state")
    process = psutil.Process(server.process.pid)
    cost = 16 * lora_parameters(wide_model) * 1.2

    def join():
        service = server.connect()
        train(service.create_lora_training_client(server.model, rank=RANK, train_unembed=False).result(), 2)
        return service

    first = join()
    settled, before = False, 0
    for _ in range(20):  # until two readings a second apart agree
        memory = process.memory_info().rss
        time.sleep(1)
        settled, before = abs(process.memory_info().rss - memory) < MIB, process.memory_info().rss
        if settled:
            break
    assert settled
    others = [join() for _ in range(CLIENTS)]
    fits, memory = settles_below(process, before + CLIENTS * cost)
    assert fits, f"{memory - before // MIB} MiB for {CLIENTS} clients of {cost / MIB:.0f} MiB at most"
    assert process.memory_info().rss > before + CLIENTS * cost / 2 / 1.2, "too little to have been measured"
    for service in others:
        service.close("success").result()
    fits, memory = settles_below(
        process, before + cost
    )  # of one: the allocator keeps some, a leak would keep something of each
    assert fits, f"{memory - before // MIB} MiB are kept after {CLIENTS} clients have left"
    first.close("success").result()
    server.stop()


# Keys


def test_one_keys_things_are_invisible_to_another(server):
    mine = server.connect(KEYS[0])
    client = mine.create_lora_training_client(server.model, rank=4, train_unembed=False).result()
    train(client, 1)
    run = client.model_id
    session = run.split(":")[0]
    paths = [
        client.save_state("a").result().path,
        client.save_weights_for_sampler("b").result().path,
        client.save_weights_external("c").result().path,
    ]
    mine.create_sampling_client(model_path=paths[1]).result()
    status, answer = server.post(
        "/api/v1/optim_step",
        json.dumps({"model_id": run, "seq_id": 999, "adam_params": {}}).encode(),
        **{"X-API-Key": KEYS[0]},
    )
    assert status == 200
    request_id = json.loads(answer)["request_id"]
    rest = server.rest(KEYS[0])
    detail = rest.get_session(session).result()
    assert run in detail.training_run_ids and detail.sampler_ids
    samplers = list(detail.sampler_ids)

    theirs = server.rest(KEYS[1])
    assert theirs.list_training_runs().result().training_runs == []
    assert theirs.list_user_checkpoints().result().checkpoints == []
    assert session not in theirs.list_sessions().result().sessions

    def refused(method: str, path: str, body: dict | None = None) -> None:
        import urllib.error
        import urllib.request

        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{server.url}/api/v1/{path}",
            data,
            {"X-API-Key": KEYS[1], "Content-Type": "application/json"},
            method=method,
        )
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=60)
        assert caught.value.code in (400, 403, 404), (method, path, caught.value.code)

    other = server.connect(KEYS[1])
    other_client = other.create_lora_training_client(server.model, rank=4, train_unembed=False).result()
    other_session = other_client.model_id.split(":")[0]
    for path in (
        f"training_runs/{run}",
        f"training_runs/{run}/checkpoints",
        f"sessions/{session}",
        f"samplers/{samplers[0]}",
        f"training_runs/{run}/checkpoints/external_weights/c/external_weights_urls",
    ):
        refused("GET", path)
    for path in paths:
        kind, name = path.split("/")[-2:]
        refused("DELETE", f"training_runs/{run}/checkpoints/{kind}/{name}")
        refused("PUT", f"training_runs/{run}/checkpoints/{kind}/{name}/ttl", {"ttl_seconds": 1})
        refused("POST", f"training_runs/{run}/checkpoints/{kind}/{name}/publish", {})
        refused("POST", "weights_info", {"tinker_path": path})
        refused(
            "POST",
            "create_sampling_session",
            {"session_id": other_session, "sampling_session_seq_id": 5, "model_path": path},
        )
        refused(
            "POST",
            "load_weights",
            {"session_id": other_session, "model_seq_id": 5, "path": path, "optimizer": False},
        )
    refused("POST", "retrieve_future", {"request_id": request_id})
    refused("POST", "session_heartbeat", {"session_id": session})
    refused("POST", f"sessions/{session}/finish", {"reason": {"type": "success"}})
    refused("POST", "get_info", {"model_id": run})
    refused("POST", "optim_step", {"model_id": run, "seq_id": 1000, "adam_params": {}})
    refused("POST", "save_weights", {"model_id": run, "seq_id": 1001, "path": "x"})
    refused("POST", "create_model", {"session_id": session, "model_seq_id": 9, "base_model": server.model})
    refused(
        "POST",
        "asample",
        {
            "sampling_session_id": samplers[0],
            "seq_id": 1,
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1]}]},
            "sampling_params": {"max_tokens": 1},
        },
    )
    assert {c.tinker_path for c in rest.list_checkpoints(run).result().checkpoints} == set(paths)
    assert train(client, 1)[0] > 0
    for service in (mine, other):
        service.close("success").result()
