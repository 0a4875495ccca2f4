"""Pushes through a connection that fails, and pushes that are killed: an entry is whole or absent.

`python -m bench.remote_faults` does it two hundred times.
"""

from pathlib import Path

import pytest

from tests.buckets import moto
from tests.cache.remote.faults import faulty_pushes, killed_pushes

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_no_fault_of_a_connection_leaves_a_part_of_an_entry(tmp_path: Path) -> None:
    with moto() as server:
        assert faulty_pushes(server, tmp_path, faults=24, seed=3) >= 24


@pytest.mark.long
def test_no_kill_leaves_a_part_of_an_entry(tmp_path: Path) -> None:
    with moto() as server:
        assert killed_pushes(server, tmp_path, kills=6, seed=4) == 6
