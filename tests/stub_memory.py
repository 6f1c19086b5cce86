"""The memory of a process, and what a LoRA of the wide model takes of it."""

import json
import re
import time
from pathlib import Path

import psutil
from stub import Server

RANK, MIB = 64, 1 << 20


def lora_parameters(folder: Path) -> int:
    config = json.loads((folder / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    return config["num_hidden_layers"] * RANK * (4 * (hidden + hidden) + 3 * (hidden + inner))


def settles_below(process: psutil.Process, limit: float, seconds: float = 30) -> tuple[bool, int]:
    """Whether a process comes to hold at most `limit` bytes, and its MiB: it gives back after a rest."""
    deadline = time.monotonic() + seconds
    while (memory := process.memory_info().rss) > limit and time.monotonic() < deadline:
        time.sleep(0.2)
    return memory <= limit, memory // MIB


def settled(process: psutil.Process) -> int:
    """Bytes that a process holds, once two readings a second apart agree."""
    for _ in range(20):
        before = process.memory_info().rss
        time.sleep(1)
        if abs(process.memory_info().rss - before) < MIB:
            return process.memory_info().rss
    raise AssertionError("the memory of the process does not settle")


def peak(server: Server) -> int:
    """The most bytes that a server has held since `forget_peak`."""
    with open(f"/proc/{server.process.pid}/status") as file:
        return int(re.findall(r"VmHWM:\s+(\d+)", file.read())[0]) * 1024


def forget_peak(server: Server) -> int:
    """The peak starts anew. Returns the bytes that the server holds."""
    with open(f"/proc/{server.process.pid}/clear_refs", "w") as file:
        file.write("5")
    return server.process.memory_info().rss
