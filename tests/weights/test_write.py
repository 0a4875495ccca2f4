"""The streaming writer: its bytes, its memory, and what an error leaves behind."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xxhash
from safetensors.numpy import load_file

from tests.checkpoints.test_read import sparse
from wanpipe.checkpoints.dtypes import Array, recast
from wanpipe.checkpoints.read import open_tensors
from wanpipe.runtime.disk import atomic_write
from wanpipe.weights.write import TensorSpec, sort_specs, write_tensors

ARRAYS = {
    "blocks.10.weight": np.arange(6, dtype=np.float16).reshape(2, 3),
    "blocks.2.weight": np.arange(3, dtype=np.float16),
    "norm": np.ones((), np.float32),
}
SPECS = sort_specs(
    TensorSpec(name, {"f2": "F16", "f4": "F32"}[array.dtype.str[1:]], array.shape)
    for name, array in ARRAYS.items()
)


def whole(spec: TensorSpec) -> list[Array]:
    return [ARRAYS[spec.name]]


def test_the_official_library_reads_what_was_written(tmp_path: Path) -> None:
    written = write_tensors(tmp_path / "a.safetensors", SPECS, whole, {"about": "test"})
    for name, array in load_file(tmp_path / "a.safetensors").items():
        np.testing.assert_array_equal(array, ARRAYS[name])
        assert array.dtype == ARRAYS[name].dtype
    data = (tmp_path / "a.safetensors").read_bytes()
    assert (written.hash, written.bytes) == (xxhash.xxh3_128_hexdigest(data), len(data))


def test_equal_tensors_give_the_pinned_bytes(tmp_path: Path) -> None:
    first = write_tensors(tmp_path / "a.safetensors", SPECS, whole, {})
    second = write_tensors(tmp_path / "b.safetensors", sort_specs(SPECS[::-1]), whole, {})
    assert first == second
    assert first.hash == "e2795b467001996eaee9a5b7a9ccd1d8"


def test_wide_numbers_come_first_and_layers_in_their_order() -> None:
    assert [spec.name for spec in SPECS] == ["norm", "blocks.2.weight", "blocks.10.weight"]


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    def failing(spec: TensorSpec) -> Iterator[Array]:
        yield ARRAYS[spec.name]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_tensors(tmp_path / "a.safetensors", SPECS, failing, {})
    assert not list(tmp_path.iterdir())


def test_a_small_file_is_replaced_whole(tmp_path: Path) -> None:
    atomic_write(tmp_path / "config.json", b"old")
    atomic_write(tmp_path / "config.json", b"new")
    assert (tmp_path / "config.json").read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 1


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    source = sparse(tmp_path / "large.safetensors", (50_000, 1000))  # 200 MB
    tracemalloc.start()
    with open_tensors(source) as file:
        write_tensors(
            tmp_path / "out.safetensors",
            [TensorSpec("table", "BF16", (50_000, 1000))],
            lambda spec: (recast(block, "F32", "BF16", "x") for block in file.blocks(spec.name)),
            {},
        )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6
    assert (tmp_path / "out.safetensors").stat().st_size > 100e6
