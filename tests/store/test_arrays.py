"""Arrays on disk: written and read by the Zarr library, with what it does not promise."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from numcodecs import Zstd

from wanpipe.errors import StoreError
from wanpipe.store.arrays import (
    DamageError,
    content_size,
    create_array,
    create_group,
    read_blocks,
    read_metadata,
)
from wanpipe.store.schema import STAGES

CASES = [
    ("encode-text", "prompt", (7, 5)),
    ("denoise", "latent", (4, 2, 3, 5)),
    ("denoise", "solver/sample", (4, 2, 3, 5)),
    ("decode", "frames", (9, 6, 4, 3)),
    ("decode", "frames", (1, 6, 4, 3)),
]


def written(folder: Path, stage: str, name: str, shape: tuple[int, ...]) -> tuple[Path, Any]:
    declared = STAGES[stage].array(name)
    numbers = (np.random.default_rng(0).random(shape) * 255).astype(declared.dtype)
    folder.mkdir()
    create_array(create_group(folder), name, declared, shape)[...] = numbers
    return folder / name, numbers


@pytest.mark.parametrize(("stage", "name", "shape"), CASES)
def test_a_written_array_is_as_declared(
    stage: str, name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    path, numbers = written(tmp_path / "x", stage, name, shape)
    assert np.array_equal(np.concatenate(list(read_blocks(path))), numbers)
    assert np.array_equal(zarr.open_group(str(tmp_path / "x"))[name][...], numbers)
    document = read_metadata(path)
    assert document.fits(STAGES[stage].array(name))
    assert sorted(file.name for file in path.glob("c.*")) == document.files


def test_a_chunk_of_zeros_is_a_file(tmp_path: Path) -> None:
    path, _ = written(tmp_path / "x", "decode", "frames", (9, 6, 4, 3))
    array = zarr.open_array(str(path), mode="r+", config={"write_empty_chunks": True})
    declared = STAGES["decode"].array("frames")
    (tmp_path / "y").mkdir()
    black = create_array(create_group(tmp_path / "y"), "frames", declared, (9, 6, 4, 3))
    black[0:4] = np.zeros((4, 6, 4, 3), np.uint8)
    assert (tmp_path / "y" / "frames" / "c.0.0.0.0").is_file()
    assert array.shape == black.shape


CHANGES = [
    {"shape": [4, 2, 3]},
    {"shape": [0, 2, 3, 5]},
    {"shape": [4.5, 2, 3, 5]},
    {"shape": [True, 2, 3, 5]},
    {"shape": [4, 2, 3, 1 << 40]},
    {"shape": "4235"},
    {"data_type": "float64"},
    {"data_type": "string"},
    {"codecs": []},
    {"codecs": [{"name": "bytes"}, {"name": "numcodecs.pickle"}, {"name": "crc32c"}]},
    {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}]},
    {"attributes": {"x": 1}},
    {"dimension_names": None},
    {"dimension_names": ["C"]},
    {"chunk_grid": {"name": "regular"}},
    {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 1, 3, 5]}}},
    {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 2, 3, 5]}}},
    {"chunk_key_encoding": {"name": "v2"}},
    {"storage_transformers": [{"name": "x"}]},
    {"zarr_format": 2},
    {"node_type": "group"},
]


@pytest.mark.parametrize("change", CHANGES)
def test_metadata_that_wanpipe_does_not_write_are_refused(
    change: dict[str, Any], tmp_path: Path
) -> None:
    path, _ = written(tmp_path / "x", "denoise", "latent", (4, 2, 3, 5))
    document = json.loads((path / "zarr.json").read_bytes())
    (path / "zarr.json").write_text(json.dumps(document | change))
    with pytest.raises(DamageError):
        read_metadata(path)
    with pytest.raises(DamageError):
        list(read_blocks(path))


@pytest.mark.parametrize("text", ["null", "[]", "3", "{}", "", "[" * 9999])
def test_a_file_that_is_not_a_document_is_refused(text: str, tmp_path: Path) -> None:
    path, _ = written(tmp_path / "x", "denoise", "latent", (4, 2, 3, 5))
    (path / "zarr.json").write_text(text)
    with pytest.raises(DamageError):
        read_metadata(path)


def test_one_flipped_bit_in_a_chunk_is_refused(tmp_path: Path) -> None:
    path, _ = written(tmp_path / "x", "encode-text", "prompt", (7, 5))
    chunk = path / "c.0.0"
    data = chunk.read_bytes()
    for place in range(0, 8 * len(data), 3):
        spoilt = bytearray(data)
        spoilt[place // 8] ^= 1 << place % 8
        chunk.write_bytes(spoilt)
        with pytest.raises(DamageError):
            list(read_blocks(path))


def sealed(packed: bytes) -> bytes:
    return packed + struct.pack("<I", google_crc32c.value(packed))


@pytest.mark.parametrize("size", [0, 139, 141, 1 << 20, 1 << 33])
def test_a_chunk_of_a_wrong_size_is_refused_before_it_is_decoded(size: int, tmp_path: Path) -> None:
    path, _ = written(tmp_path / "x", "encode-text", "prompt", (7, 5))
    packed = (path / "c.0.0").read_bytes()[:-4]
    assert content_size(packed) == read_metadata(path).chunk_bytes == 140
    lying = packed[:4] + b"\xe0" + size.to_bytes(8, "little") + packed[6:]
    assert content_size(lying) == size
    (path / "c.0.0").write_bytes(sealed(lying))
    with pytest.raises(DamageError, match="size of its array"):
        list(read_blocks(path))


@pytest.mark.parametrize(
    ("rows", "chunks", "says"),
    [
        (1 << 24, 1, "would decode to"),
        (1 << 27, 1, "size of its array"),
        (1 << 18, 64, "decode to"),
    ],
)
def test_a_decompression_bomb_is_refused(rows: int, chunks: int, says: str, tmp_path: Path) -> None:
    """One chunk of 256 MB, one of 2 GB, and 64 of 4 MB."""
    path, _ = written(tmp_path / "x", "encode-text", "prompt", (7, 5))
    document = json.loads((path / "zarr.json").read_bytes())
    document["shape"] = [rows * chunks, 4]
    document["chunk_grid"]["configuration"]["chunk_shape"] = [rows, 4]
    (path / "zarr.json").write_text(json.dumps(document))
    packed = sealed(bytes(Zstd(1).encode(bytes(16 * rows))))
    for number in range(chunks):
        (path / f"c.{number}.0").write_bytes(packed)
    with pytest.raises(DamageError, match=says):
        list(read_blocks(path))


def test_a_chunk_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    declared = STAGES["decode"].array("frames")
    with pytest.raises(StoreError, match="make a smaller video"):
        create_array(create_group(tmp_path), "frames", declared, (1, 8640, 15360, 3))
    assert not (tmp_path / "frames").exists()


def test_a_named_pipe_in_place_of_a_chunk_is_damage(tmp_path: Path) -> None:
    path, _ = written(tmp_path / "x", "encode-text", "prompt", (7, 5))
    (path / "c.0.0").unlink()
    os.mkfifo(path / "c.0.0")
    with pytest.raises(DamageError, match="not a regular file"):
        list(read_blocks(path))


@pytest.mark.parametrize(
    ("head", "size"),
    [
        (b"\x20\x05", 5),
        (b"\x60\x05\x01", 256 + 5 + 256),
        (b"\xa0\x05\x00\x01\x00", 65541),
        (b"\x00\x58\x05", None),
        (b"\x41\x58\x07\x05\x01", 517),
    ],
)
def test_the_size_in_a_zstd_header_is_read(head: bytes, size: int | None) -> None:
    assert content_size(b"\x28\xb5\x2f\xfd" + head + bytes(10)) == size
    assert content_size(b"PK\x03\x04" + head + bytes(10)) is None
