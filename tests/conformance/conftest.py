"""Prints a table of what a server can do, after a run of the kit on it."""

from typing import Any

import pytest
from kit_table import table


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if url := config.getoption("--tinker-url"):
        terminalreporter.section(f"what {url} does")
        for line in table(terminalreporter.stats):
            terminalreporter.write_line(line)
