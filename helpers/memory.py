"""How much memory this machine, or the container in which we run, has."""

from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


def machine_memory() -> tuple[int, int]:
    """Total and free bytes, within the container's limit if there is one."""
    memory = psutil.virtual_memory()
    try:
        limit, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no container that we could see, or one without a limit: "max"
        return memory.total, memory.available
    return min(memory.total, limit), min(memory.available, limit - used)
