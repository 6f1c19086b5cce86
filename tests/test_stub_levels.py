"""The stub's numbers at each instruction-set level of this processor, so that one machine finds most of what
another would.

oneDNN reads its level once per process, so each level is a process of its own, which runs tests of
`test_stub_numbers.py`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# By the name that ONEDNN_MAX_CPU_ISA takes, the flags in /proc/cpuinfo without which a processor hasn't got
# it.
LEVELS = {
    "AVX2": {"avx2", "fma"},
    "AVX512_CORE": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
    "AVX512_CORE_VNNI": {"avx512f", "avx512_vnni"},
    "AVX512_CORE_BF16": {"avx512f", "avx512_bf16"},
    "AVX512_CORE_FP16": {"avx512f", "avx512_fp16"},
    "AVX512_CORE_AMX": {"amx_tile", "amx_bf16", "amx_int8"},
}

# What oneDNN itself then says it uses; the last two are worded differently from version to version.
SAYS = {
    "AVX2": "Intel AVX2",  # if it is used at all: bfloat16 is refused there, and float32 is MKL's
    "AVX512_CORE": "Intel AVX-512 with AVX512BW, AVX512VL, and AVX512DQ extensions",
    "AVX512_CORE_VNNI": "Intel AVX-512 with Intel DL Boost",
    "AVX512_CORE_BF16": "Intel AVX-512 with Intel DL Boost and bfloat16 support",
    "AVX512_CORE_FP16": r"Intel AVX.*(10\.1|float16).*",
    "AVX512_CORE_AMX": "Intel AVX.*AMX.*",
}

CHOSEN = "last_bit or transformers or within_a_row or took_the_level"  # what depends on the processor


def offered() -> set[str]:
    """The processor's flags; none where there is no /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return set(next((line.split(":")[1].split() for line in lines if line.startswith("flags")), []))


@pytest.mark.parametrize(  # every run has the lowest, and by `test_stub_numbers.py` itself the highest
    ("level", "chosen"),
    [
        pytest.param("AVX2", f"({CHOSEN}) and not bfloat16", id="AVX2-float32"),  # bfloat16 is emulated there
        *(pytest.param(level, CHOSEN, marks=pytest.mark.soak, id=level) for level in LEVELS),
    ],
)
def test_the_numbers_at_a_level(level, chosen):
    if missing := LEVELS[level] - offered():
        pytest.skip(f"{level} could not be tried: this processor has no {', '.join(sorted(missing))}")
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": level, "ONEDNN_VERBOSE": "profile_create"}
    if level == "AVX2":  # MKL and PyTorch's own loops go by variables of their own
        environment |= {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    file = Path(__file__).with_name("test_stub_numbers.py")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", "-k", chosen, str(file)],
        cwd=file.parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    said = [line for line in ran.stdout.splitlines() if "onednn_verbose" not in line]
    assert ran.returncode == 0, "\n".join([*said[-80:], ran.stderr[-2000:]])
    used = re.findall(r"info,cpu,isa:(.*)", ran.stdout)
    assert (used or level == "AVX2") and all(re.fullmatch(SAYS[level], text.strip()) for text in used), (
        f"oneDNN took {used}"
    )
