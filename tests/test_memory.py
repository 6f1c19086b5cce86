"""How much memory a machine or a container has."""

import psutil
import pytest

from helpers import memory


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [("1000\n", "400\n", (1000, 600)), ("max\n", "400\n", None), ("1000\n", "", None), (None, None, None)],
)
def test_a_containers_limit_counts(limit, used, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    machine = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    if limit:
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text(used)
    assert memory.machine_memory() == (expected or (machine.total, machine.available))
