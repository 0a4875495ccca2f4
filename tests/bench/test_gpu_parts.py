"""Every part of bench/gpu.sh runs at tiny sizes, so that none fails on a rented GPU."""

import re
from pathlib import Path

import pytest

from tests.bench.programs import ROOT, small

pytestmark = pytest.mark.slow

PARTS = re.findall(r'^  "(\S+) +(?:MLX_\S+ )?(.+)"$', (ROOT / "bench/gpu.sh").read_text(), re.M)
NEEDS_CUDA = {"trace"}


@pytest.mark.long
@pytest.mark.parametrize(("name", "command"), [part for part in PARTS if part[0] not in NEEDS_CUDA])
def test_a_part_runs_and_prints_rows(name: str, command: str, tmp_path: Path) -> None:
    done = small(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 1
    assert list(tmp_path.iterdir()) == []


def test_trace_without_cuda_says_what_it_needs(tmp_path: Path) -> None:
    done = small("bench.trace 1.3b", tmp_path)
    assert done.returncode == 1
    assert done.stderr == "bench.trace needs CUDA, and PyTorch for its profiler\n"


def test_the_parts_of_the_script_are_found() -> None:
    assert {"dit-14b", "run", "parity", "streamed-14b"} <= {name for name, _ in PARTS}
