"""Arrays on disk: exactly what the Zarr library would write, and it reads them."""

import json
import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from numcodecs import Zstd
from zarr.codecs import Crc32cCodec, ZstdCodec

from tests.store.shelf import fill_frames, recipe
from wanpipe.store import Store
from wanpipe.store.layout import Form, LayoutError, content_size, decode, encode

FORMS = [
    Form(shape=(7, 5), rows=7, axes=("L", "D"), dtype="float32"),
    Form(shape=(4, 2, 3, 5), rows=4, axes=tuple("CFHW"), dtype="float32"),
    Form(shape=(9, 6, 4, 3), rows=4, axes=tuple("TYXC"), dtype="uint8"),
]


def numbers(form: Form) -> np.ndarray:
    generator = np.random.default_rng(0)
    return (generator.random(form.shape) * 255).astype(form.dtype)


@pytest.mark.parametrize("form", FORMS)
def test_documents_and_chunks_are_those_of_the_zarr_library(form: Form, tmp_path: Path) -> None:
    array = numbers(form)
    theirs = zarr.create_array(
        str(tmp_path / "array"),
        shape=form.shape,
        dtype=form.dtype,
        chunks=form.chunk,
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        dimension_names=list(form.axes),
        chunk_key_encoding={"name": "default", "separator": "."},
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    theirs[...] = array
    assert json.loads((tmp_path / "array" / "zarr.json").read_bytes()) == form.to_json()
    assert sorted(path.name for path in (tmp_path / "array").glob("c.*")) == form.files
    for index, file in enumerate(form.files):
        rows = array[index * form.rows : (index + 1) * form.rows]
        written = (tmp_path / "array" / file).read_bytes()
        assert encode(rows, form) == written
        assert np.array_equal(decode(written, form)[: len(rows)], rows)


def test_zarr_reads_what_is_published(tmp_path: Path) -> None:
    entry = Store(tmp_path).obtain(recipe(), fill_frames)
    group = zarr.open_group(str(entry.path), mode="r")
    assert group["frames"].chunks == (4, 6, 4, 3)
    assert np.array_equal(group["frames"][...], entry.read("frames"))
    assert group.attrs["wanpipe"] == entry.record


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_read_as_it_was_written(form: Form) -> None:
    assert Form.from_json(json.loads(json.dumps(form.to_json()))) == form


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [4, 2, 3]},
        {"shape": [0, 2, 3, 5]},
        {"shape": [4.0, 2, 3, 5]},
        {"shape": [True, 2, 3, 5]},
        {"shape": "4235"},
        {"data_type": "float64"},
        {"fill_value": 1.0},
        {"codecs": []},
        {"attributes": {"x": 1}},
        {"dimension_names": None},
        {"chunk_grid": {"name": "regular"}},
        {"zarr_format": 2},
        {"more": 1},
    ],
)
def test_another_document_is_refused(change: dict) -> None:
    with pytest.raises(LayoutError):
        Form.from_json({**FORMS[1].to_json(), **change})


@pytest.mark.parametrize("document", [None, [], 3, {}, "x"])
def test_what_is_no_document_is_refused(document: object) -> None:
    with pytest.raises(LayoutError):
        Form.from_json(document)


def test_one_flipped_bit_in_a_chunk_is_refused() -> None:
    form = FORMS[0]
    chunk = encode(numbers(form), form)
    for place in range(8 * len(chunk)):
        spoilt = bytearray(chunk)
        spoilt[place // 8] ^= 1 << place % 8
        with pytest.raises((LayoutError, RuntimeError)):
            decode(bytes(spoilt), form)


def sealed(packed: bytes) -> bytes:
    return packed + struct.pack("<I", google_crc32c.value(packed))


@pytest.mark.parametrize("size", [0, 139, 141, 1 << 20, 1 << 33])
def test_a_chunk_that_says_another_size_is_refused_before_it_is_decoded(size: int) -> None:
    form = FORMS[0]
    packed = encode(numbers(form), form)[:-4]
    assert content_size(packed) == form.chunk_bytes == 140
    lying = packed[:4] + b"\xe0" + size.to_bytes(8, "little") + packed[6:]
    assert content_size(lying) == size
    with pytest.raises(LayoutError, match="size of its array"):
        decode(sealed(lying), form)


def test_a_chunk_that_unfolds_to_more_than_memory_is_refused() -> None:
    form = Form(shape=(1 << 26,), rows=1 << 26, axes=("L",), dtype="float32")
    with pytest.raises(LayoutError, match="size of its array"):
        decode(sealed(bytes(Zstd(1).encode(bytes(1000)))), form)
    packed = bytes(Zstd(1).encode(bytes(1 << 26)))
    small = Form(shape=(1 << 24,), rows=1 << 24, axes=("L",), dtype="float32")
    with pytest.raises(LayoutError, match="size of its array"):
        decode(sealed(packed), small)


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
