"""Set-up: refusals, the stamp, what an interrupted installation leaves. The lock is in test_lock.py."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from wheels import wheel

import install
from helpers import net
from helpers.course import check
from helpers.course.check import Check

ROOT = Path(__file__).resolve().parent.parent


# refusals


@pytest.mark.parametrize(
    "version, system, machine, words",
    [
        ((3, 10, 9), "Linux", "x86_64", "3.10 is too old"),
        ((2, 7, 18), "Linux", "x86_64", "2.7 is too old"),
        ((3, 14, 0), "Linux", "x86_64", "3.14 is too new"),
        ((3, 11, 0), "Windows", "AMD64", "WSL"),
        ((3, 11, 0), "Darwin", "arm64", "needs Linux"),
        ((3, 11, 0), "Linux", "aarch64", "needs Linux on x86-64"),
    ],
)
def test_refusal_says_why_and_what_to_do(version, system, machine, words):
    text = install.refusal(version, system, machine)
    assert words in text and "->" in text


@pytest.mark.parametrize("minor", [11, 12, 13])
def test_no_refusal(minor):
    assert install.refusal((3, minor, 0), "Linux", "x86_64") is None


def test_refusal_ends_with_an_error(monkeypatch, capsys):
    monkeypatch.setattr(install.sys, "version_info", (3, 9, 0))
    monkeypatch.setattr(install, "one_at_a_time", lambda prefix, lock: pytest.fail("went on"))
    assert install.main([]) == 1
    assert "too old" in capsys.readouterr().err
    assert install.main(["--hear"]) == 2


def test_a_python_that_cannot_unpack_safely_is_refused(monkeypatch, capsys):
    assert install.unsafe_tarfile() is None
    monkeypatch.delattr("tarfile.data_filter")
    assert install.main([]) == 1
    assert "3.11.4 or later" in capsys.readouterr().err


def test_here_refuses_the_systems_python(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(install.sys, "prefix", str(tmp_path))
    monkeypatch.setattr(install.sys, "base_prefix", str(tmp_path))
    assert install.main(["--here"]) == 1
    assert "conda activate" in capsys.readouterr().err
    (tmp_path / "conda-meta").mkdir()
    assert install.active_prefix() == str(tmp_path)


def test_install_needs_nothing_but_the_standard_library():
    """-I -S: no site-packages, no project folder on the path. A finished installation ends at once."""
    script = str(ROOT / "install.py")
    code = (
        f"import runpy, sys; sys.argv = ['x', '--nothing']; runpy.run_path({script!r}, run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert result.returncode == 2 and "Unknown: --nothing" in result.stdout, result.stderr


# the stamp


@pytest.fixture
def environment(tmp_path, monkeypatch) -> str:
    """A folder with a Python, on a disk with room enough, whatever this machine's disk has."""
    monkeypatch.setattr(install, "check_disk", lambda prefix, lock: None)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    return str(tmp_path)


def test_stamp_of_a_finished_installation(environment):
    assert not install.is_installed(environment, install.LOCK)
    install.write_stamp(environment, install.LOCK)
    assert install.is_installed(environment, install.LOCK)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda stamp: stamp.write_text("{"),
        lambda stamp: stamp.write_text("[]"),
        lambda stamp: stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "lock": "other"})),
        lambda stamp: stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "project": "other"})),
        lambda stamp: stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "folder": "/moved"})),
        lambda stamp: (stamp.parent / "bin" / "python").unlink(),
    ],
)
def test_stamp_that_no_longer_holds(environment, spoil):
    install.write_stamp(environment, install.LOCK)
    spoil(Path(environment, install.STAMP))
    assert not install.is_installed(environment, install.LOCK)


def test_second_run_does_nothing_and_is_quick(environment, monkeypatch):
    install.write_stamp(environment, install.LOCK)
    monkeypatch.setattr(install, "VENV", environment)
    monkeypatch.setattr(install, "one_at_a_time", lambda prefix, lock: pytest.fail("installed again"))
    assert install.main([]) == 0


def test_installation_steps_and_interruption(environment, monkeypatch, capsys):
    """Torch first, then the lock, then the course; a stamp only when all is done."""
    calls = []
    states = [
        {"wrong": {"torch": ["==1", None]}, "count": 9, "cuda_libraries_missing": []},
        {"wrong": {}, "count": 9, "cuda_libraries_missing": ["nvidia-x"]},
    ]
    monkeypatch.setattr(install, "compare", lambda python, lock: states.pop(0))
    monkeypatch.setattr(install, "check_disk", lambda prefix, lock: None)
    monkeypatch.setattr(install, "reachable", lambda url: True)
    monkeypatch.setattr(install, "pip", recorded(calls))
    monkeypatch.setattr(install, "make_base_model", lambda python: calls.append("base model"))
    install.install(environment, install.LOCK)
    torch, hashes = install.torch_entry()
    pins = [pin for pin, _ in install.entries(install.read_lock())]
    assert calls == [
        f"--no-deps --require-hashes --extra-index-url {install.CPU_INDEX} -r",
        install.written(torch + "+cpu", hashes),
        f"--no-deps --require-hashes -r {install.LOCK}",
        f"{torch} -c",
        "\n".join(pins),
        f"--no-deps --no-build-isolation -e {ROOT}",
        "base model",
    ]
    out = capsys.readouterr().out
    assert install.is_installed(environment, install.LOCK) and "so the CUDA build came" in out
    assert "without a check of their hashes, since\nrequirements.lock doesn't list them: nvidia-x." in out

    states += [{"wrong": {"x": ["==1", None]}, "count": 9, "cuda_libraries_missing": []}]
    monkeypatch.setattr(install, "pip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        install.install(environment, install.LOCK)
    assert not install.is_installed(environment, install.LOCK)


def test_gpu_lock_is_installed_as_it_is(environment, monkeypatch):
    """PyTorch's CPU build is not asked for."""
    calls = []
    rest = {"count": 9, "cuda_libraries_missing": []}
    states = [{"wrong": {"torch": ["==1", None]}, **rest}, {"wrong": {}, **rest}]
    monkeypatch.setattr(install, "compare", lambda python, lock: states.pop(0))
    monkeypatch.setattr(install, "check_disk", lambda prefix, lock: None)
    monkeypatch.setattr(install, "pip", recorded(calls))
    monkeypatch.setattr(install, "make_base_model", lambda python: None)
    monkeypatch.setattr(install, "GPU_VENV", environment)
    monkeypatch.setattr(install, "make_venv", lambda path: None)
    assert install.main(["--gpu"]) == 0
    packages = f"--no-deps --require-hashes -r {install.GPU_LOCK}"
    assert calls == [packages, f"--no-deps --no-build-isolation -e {ROOT}"]
    assert install.is_installed(environment, install.GPU_LOCK)
    assert not install.is_installed(environment, install.LOCK)


def test_a_base_model_that_cant_be_made_does_not_hold_up(capfd, monkeypatch, tmp_path, base_model):
    (tmp_path / "models").symlink_to(base_model.parent)
    monkeypatch.setenv("TINKER_COURSE_HOME", str(tmp_path))
    install.make_base_model(sys.executable)
    assert capfd.readouterr() == ("", "")  # it is there
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TINKER_COURSE_HOME", str(tmp_path / "file"))
    install.make_base_model(sys.executable)
    assert capfd.readouterr() == (
        "The base model could not be made now. The first notebook tries it again, and says what is wrong.\n",
        "",
    )


def interrupted(*arguments):
    raise KeyboardInterrupt


def test_what_pip_leaves_out_is_an_error(environment, monkeypatch):
    monkeypatch.setattr(
        install,
        "compare",
        lambda python, lock: {"wrong": {"x": ["==1", None]}, "count": 9, "cuda_libraries_missing": []},
    )
    monkeypatch.setattr(install, "pip", lambda *arguments: None)
    with pytest.raises(install.InstallError, match=r"x==1 .found: None"):
        install.install(environment, install.LOCK)
    assert not install.is_installed(environment, install.LOCK)


def recorded(calls: list[str], *errors: Exception):
    """Stands in for `pip`: keeps what it is told, with the text of a temporary file; raises the errors, one a
    call.
    """
    left = list(errors)

    def pip(python, arguments, what, count):
        *others, last = arguments
        temporary = last.endswith(".txt")
        calls.extend(
            [" ".join(others), Path(last).read_text().rstrip()] if temporary else [" ".join(arguments)]
        )
        if left:
            raise left.pop(0)

    return pip


def test_torch_without_the_cpu_index(monkeypatch):
    """The CPU build may be where pip looks anyway; if not, the other build, of the same hashes."""
    calls = []
    monkeypatch.setattr(install, "pip", recorded(calls, install.NotOffered("none")))
    monkeypatch.setattr(install, "reachable", lambda url: False)
    install.install_torch("python")
    torch, hashes = install.torch_entry()
    checked = "--no-deps --require-hashes -r"
    assert calls == [
        checked,
        install.written(torch + "+cpu", hashes),
        checked,
        install.written(torch, hashes),
    ]
    monkeypatch.setattr(install, "pip", recorded(calls, install.InstallError("another file")))
    with pytest.raises(install.InstallError, match="another file"):
        install.install_torch("python")


@pytest.mark.parametrize("builds", [("1.0", "1.0+cpu"), ("1.0",)])
@pytest.mark.parametrize("constraint", ["torch<=1.1", "other<=1"])
def test_the_cpu_build_is_taken_where_there_is_one(builds, constraint, tmp_path, monkeypatch):
    """Also under constraints, with which pip has other words for what it doesn't find."""
    folder, constraints = tmp_path / "wheels", tmp_path / "constraints.txt"
    python = tmp_path / "bin" / "python"
    for parent in (folder, python.parent):
        parent.mkdir()
    python.symlink_to(sys.executable)
    hashes = [f"sha256:{install.fingerprint(wheel(folder, 'x = 1', 'torch', build))}" for build in builds]
    constraints.write_text(constraint + "\n")
    settings = {"CONSTRAINT": constraints, "FIND_LINKS": folder, "TARGET": tmp_path / "there", "NO_INDEX": 1}
    for name, value in ({"CONFIG_FILE": os.devnull} | settings).items():
        monkeypatch.setenv(f"PIP_{name}", str(value))
    monkeypatch.setattr(install, "reachable", lambda url: False)
    monkeypatch.setattr(install, "torch_entry", lambda: ("torch==1.0", hashes))
    install.install_torch(str(python))
    assert (tmp_path / "there" / f"torch-{builds[-1]}.dist-info").is_dir()


def test_unreachable_index_does_not_hold_up(monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: time.sleep(30))
    monkeypatch.setattr(install, "PROBE_SECONDS", 0.2)
    start = time.perf_counter()
    assert install.reachable("http://127.0.0.1:9/") is False
    assert time.perf_counter() - start < 2


def test_compare_finds_missing_other_and_half_installed(tmp_path, monkeypatch):
    have = Path(importlib.util.find_spec("packaging").origin).parent.parent
    version = next(have.glob("packaging-*.dist-info")).name.split("-")[1].removesuffix(".dist")
    lock = tmp_path / "lock"
    lock.write_text(
        f"# comment\npackaging=={version} \\\n    --hash=sha256:0\nfilelock==0.0.1\nno-such-thing==1\n"
        "elsewhere==1 ; python_full_version < '3.0'\n"
    )
    state = install.compare(sys.executable, str(lock))
    assert sorted(state["wrong"]) == ["filelock", "no-such-thing"] and state["count"] == 3


def test_halves_of_packages_are_cleared(tmp_path):
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    for name in ("cut_off-1.0", "whole-1.0", "someone_elses-1.0"):
        (site / f"{name}.dist-info").mkdir(parents=True)
    (site / "whole-1.0.dist-info" / "RECORD").write_text("")
    install.clear_halves(str(tmp_path), ["cut-off", "whole"])
    assert sorted(path.name for path in site.iterdir()) == [
        "someone_elses-1.0.dist-info",
        "whole-1.0.dist-info",
    ]


def test_pip_failure_shows_pips_error_and_a_next_step(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    with pytest.raises(install.InstallError, match=r"(?s)could not install a thing.*ERROR: .*->"):
        install.pip(
            str(tmp_path / "bin" / "python"),
            ["--no-index", "--find-links", str(tmp_path), "no-such-thing==1"],
            "a thing",
            1,
        )
    assert "no-such-thing" in (tmp_path / install.LOG).read_text()


def test_full_disk_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(install.shutil, "disk_usage", lambda path: SimpleNamespace(free=1e9))
    for lock, needed in ((install.LOCK, 5), (install.GPU_LOCK, 20)):
        with pytest.raises(install.InstallError, match=rf"1\.0 GB are free.* need {needed} GB"):
            install.check_disk(str(tmp_path), lock)


# lists that must agree


def test_supported_pythons_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["requires-python"] == ">=3.11,<3.14"
    assert (install.OLDEST, install.NEWEST) == ((3, 11), (3, 13))
    found = [check.check_python((3, minor, 0)).status for minor in (10, 11, 13, 14)]
    assert found == ["FAIL", "OK", "OK", "FAIL"]


@pytest.mark.parametrize(
    ("target", "commands"),
    [
        ("run", ["install.py", ".venv/bin/course run"]),
        ("run GPU=1", ["install.py --gpu", ".venv-gpu/bin/course run"]),
        ("test", ["install.py", ".venv/bin/python -m pytest"]),
        ("lab", ["install.py", ".venv/bin/course lab"]),
        ("check GPU=1", ["install.py --gpu", ".venv-gpu/bin/course check"]),
        ("lock", ["tests/make_lock.py"]),
    ],
)
def test_makefile_target(target, commands):
    result = subprocess.run(
        ["make", "-n", *target.split(), "PYTHON=some-python"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if not line.startswith("make[")]
    for line, command in zip(lines, commands, strict=True):
        assert line.removeprefix("some-python ").rstrip(" -").startswith(command)


def test_environment_yml_leads_to_the_lock():
    import yaml

    text = (ROOT / "environment.yml").read_text()
    assert yaml.safe_load(text) == {
        "name": "tinker-course",
        "channels": ["conda-forge", "nodefaults"],
        "dependencies": ["python=3.11", "pip"],
    }
    command = re.search(r"python (\S+) (--here)$.*python \1 --here (--gpu)", text, re.DOTALL | re.MULTILINE)
    assert (ROOT / command[1]).is_file() and all(option in install.__doc__ for option in command.groups()[1:])


def test_ci_runs_make_test():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("make test")
    assert subprocess.run(["bash", "-n", ".ci/run"], cwd=ROOT).returncode == 0


def test_ignored_files():
    for name in (
        ".venv/x",
        ".venv-gpu/x",
        "runs/latest/x",
        "helpers/__pycache__/x",
        "tinker_course.egg-info/x",
    ):
        assert subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT).returncode in (0, 128), (
            name
        )  # 128: no git here


# the environment check


def test_check_of_this_environment_is_right_and_quick():
    code = (
        "import sys, time; start = time.time()\n"
        "from helpers.course.check import check_environment\n"
        "report = check_environment('stub'); print(report); took = time.time() - start\n"
        "assert report.ready == all(check.status != 'FAIL' for check in report.checks)\n"
        "print('torch' in sys.modules, took < 6)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1:] == ["False True"], result.stdout + result.stderr
    assert "[OK]   Python" in result.stdout


@pytest.mark.parametrize(
    "flags, status",
    [
        ("avx2 avx512f avx512_bf16", "OK"),
        ("avx2 avx512f amx_bf16", "OK"),
        ("avx2 avx512f", "NOTE"),
        ("avx2", "NOTE"),
        ("sse", "FAIL"),
    ],
)
def test_processor(tmp_path, flags, status):
    (tmp_path / "cpuinfo").write_text(f"model: x\nflags\t\t: fpu {flags}\n")
    assert check.check_processor(tmp_path / "cpuinfo").status == status


def test_processor_unknown(tmp_path):
    assert check.check_processor(tmp_path / "none").status == "NOTE"


@pytest.mark.parametrize("free, status", [(1e9, "FAIL"), (3e9, "NOTE"), (9e9, "OK")])
def test_disk(tmp_path, free, status):
    answers = check.check_disk(
        (tmp_path, tmp_path / "not" / "there"), lambda path: SimpleNamespace(free=free)
    )
    assert [answer.status for answer in answers] == [status]


def test_kernel(tmp_path):
    assert check.check_kernel(str(tmp_path)).status == "FAIL"
    install.write_stamp(str(tmp_path), install.LOCK)
    assert check.check_kernel(str(tmp_path)).status == "OK"


def test_base_model_answers(tmp_path, monkeypatch, base_model):
    assert check.check_base_model().status == "OK"
    monkeypatch.setenv("TINKER_COURSE_HOME", str(tmp_path))
    assert check.check_base_model() == Check(
        "NOTE", "base model", "not made yet", "made by itself on first use, in half a minute"
    )
    (tmp_path / "models" / "SmolLM2-135M-Instruct").mkdir(parents=True)
    assert "complete.json is missing" in check.check_base_model().found
    monkeypatch.setattr("helpers.local_model.GGUF_PACKAGE", "no_such_package")
    assert check.check_base_model().status == "FAIL"


@pytest.mark.parametrize(
    "backend, variables, status, words",
    [
        ("hosted", {}, "FAIL", "TINKER_API_KEY is not set"),
        ("hosted", {"TINKER_API_KEY": "sk-secret"}, "FAIL", "tml-"),
        ("hosted", {"TINKER_API_KEY": "tml-secret"}, "OK", "hosted"),
        (None, {"TINKER_API_KEY": "tml-secret"}, "OK", "hosted"),
        ("stub", {"TINKER_API_KEY": "tml-secret"}, "OK", "stub"),
        (None, {}, "OK", "stub"),
        ("auto", {"TINKER_BASE_URL": "http://127.0.0.1:9"}, "FAIL", "does not answer"),
        ("http://127.0.0.1:9", {}, "FAIL", "does not answer"),
        ("http://192.0.2.7:9", {}, "FAIL", "plain HTTP to another machine"),
        ("https://tinker.thinkingmachines.dev/services/tinker-prod", {}, "FAIL", "TINKER_API_KEY is not set"),
        ("cloud", {}, "FAIL", "no backend"),
    ],
)
def test_backend_answers(monkeypatch, backend, variables, status, words):
    for name in ("TINKER_API_KEY", "TINKER_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    answer = check.check_backend(backend)
    assert answer.status == status and words in answer.found
    assert "secret" not in str(answer)


def test_hub_switched_off(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("helpers.net.no_answer", lambda url, seconds: pytest.fail("asked all the same"))
    assert check.check_hub().status == "NOTE" and "HF_HUB_OFFLINE" in check.check_hub().found


def test_hub_that_does_not_answer(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "refused" in check.check_hub().found
    monkeypatch.setattr("helpers.net.no_answer", lambda url, seconds: time.sleep(30))
    start = time.perf_counter()
    assert "no answer in 0 s" in net.hub_problem(0.1)
    assert time.perf_counter() - start < 2


def test_report():
    good = check.Report([Check("OK", "a", "1"), Check("NOTE", "long", "3", "do x")])
    assert good.ready and "[OK]   a     1\n" in str(good) and "→ do x\n" in str(good)
    bad = check.Report([Check("FAIL", "d", "4", "do y")])
    assert not bad.ready and "[FAIL] d  4" in str(bad) and "1 of 1 checks failed" in str(bad)


def test_the_cookbooks_math_recipes_can_run():
    """They need pylatexenc, which comes with the cookbook's extra `math-rl`."""
    code = (
        "import tinker_cookbook.recipes.math_rl.math_env, tinker_cookbook.recipes.math_rl.math_grading as m;"
    )
    code += "assert m.grade_answer('\\\\frac{1}{2}', '0.5')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
