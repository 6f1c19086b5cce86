"""The conformance kit, as one runs it on a server elsewhere; tests/conformance runs on the stub by itself."""

import os
import subprocess
import sys
from types import SimpleNamespace

from kit_table import table

from helpers.paths import ROOT


def test_the_kit_runs_on_a_server_by_its_address_and_prints_a_table(server):
    command = [sys.executable, "-m", "pytest", "--tinker-url", server.url, "-q", "-p", "no:cacheprovider"]
    some = "RestClient.get_session or copy_weights or optim_step or policies or openai_chat"
    keys = {"TINKER_SERVER_API_KEY": "tml-a", "TINKER_PROJECT_ID": ""}
    result = subprocess.run(
        [*command, "-k", some], cwd=ROOT, env=os.environ | keys, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout
    _, _, found = result.stdout.partition(f"what {server.url} does")
    rows = [" ".join(line.split()) for line in found.splitlines()]
    assert "RestClient.copy_weights not tried needs a project: TINKER_PROJECT_ID" in rows
    assert "TrainingClient.optim_step works" in rows and "RestClient.get_session works" in rows
    assert "an openai chat streams what it answers whole works" in rows


def test_a_feature_fails_if_one_of_its_forms_does():
    def report(name: str, outcome: str, longrepr: object = None) -> SimpleNamespace:
        return SimpleNamespace(nodeid=f"test_methods.py::{name}", outcome=outcome, longrepr=longrepr)

    crash = SimpleNamespace(reprcrash=SimpleNamespace(message="NotFoundError: 404\nmore"))
    stats = {
        "passed": [report("test_method[A.x]", "passed"), report("test_a_b[1]", "passed")],
        "failed": [report("test_method[A.x_async]", "failed", crash)],
    }
    assert [" ".join(line.split()) for line in table(stats)] == ["A.x fails NotFoundError: 404", "a b works"]
