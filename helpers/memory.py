"""How much memory this machine, or the container in which we run, has."""

from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


def machine_memory() -> tuple[int, int]:
    """Total and free bytes, within the container's limit if there is one."""
    memory = psutil.virtual_memory()
    try:
        limit, used = ((CGROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
    except FileNotFoundError:  # no container
        return memory.total, memory.available
    if limit == "max":
        return memory.total, memory.available
    return min(memory.total, int(limit)), min(memory.available, int(limit) - int(used))
