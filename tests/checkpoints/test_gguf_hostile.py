"""GGUF files made to do harm: each is refused in one line, in little time and memory."""

import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints.test_hostile import mutated, settle
from wanpipe.checkpoints.read import open_tensors
from wanpipe.errors import CheckpointError

HUGE = 1 << 62
NUMBERS = np.arange(8, dtype="<f4").tobytes()


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    """One key of the metadata and its value."""
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + values


def tensor(
    name: str | bytes = "x.weight",
    shape: tuple[int, ...] = (4, 2),
    kind: int = 0,
    offset: int = 0,
    axes: int | None = None,
) -> bytes:
    """One entry of the table; `shape` as the file has it, the last axis first."""
    count = len(shape) if axes is None else axes
    numbers = struct.pack(f"<I{len(shape)}Q", count, *shape)
    return text(name) + numbers + struct.pack("<IQ", kind, offset)


def write(
    path: Path,
    entries: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (tensor(),),
    data: bytes = NUMBERS,
    **lies: int,
) -> Path:
    """Write a file; `lies` replace its version and counts."""
    start = struct.pack(
        "<4sIQQ",
        b"GGUF",
        lies.get("version", 3),
        lies.get("count", len(tensors)),
        lies.get("keys", len(entries)),
    )
    header = start + b"".join(entries) + b"".join(tensors)
    path.write_bytes(header + bytes(-len(header) % lies.get("alignment", 32)) + data)
    return path


def refused(path: Path, why: str, seconds: float = 5.0) -> None:
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(CheckpointError, match=why) as caught, open_tensors(path):
        pass
    taken, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(str(caught.value).splitlines()) == 1
    assert peak < 32e6
    assert taken < seconds


def test_an_honest_file_is_read(tmp_path: Path) -> None:
    values = {0: b"\7", 6: bytes(4), 7: b"\1", 8: text("x" * 9999), 12: bytes(8)}
    entries = (
        *(entry(f"key.{kind}", kind, value) for kind, value in values.items()),
        entry("floats", 9, array(6, 3, bytes(12))),
        entry("words", 9, array(8, 2, text("") + text("é"))),
        entry("general.alignment", 4, struct.pack("<I", 64)),
        entry("general.architecture", 8, text("wan")),
    )
    path = write(tmp_path / "x.GGUF", entries, alignment=64)
    with open_tensors(path) as file:
        assert file.tensors["x.weight"].shape == (2, 4)
        assert file.read("x.weight").tobytes() == NUMBERS
        assert file.metadata == {"general.architecture": "wan"}


@pytest.mark.parametrize(
    ("lies", "why"),
    [
        ({"version": 1}, "is version 1 GGUF, which wanpipe does not read"),
        ({"version": 3 << 24}, "is big-endian GGUF"),
        ({"count": HUGE}, f"holds {HUGE} tensors, more than 65536"),
        ({"count": 60_000}, "has the name of a tensor of .* bytes, more than 2000"),
        ({"keys": HUGE}, "has a key of 562949953421312 bytes"),
    ],
)
def test_counts_are_not_believed(tmp_path: Path, lies: dict[str, int], why: str) -> None:
    refused(write(tmp_path / "x.gguf", **lies), why)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (entry("a", 9, array(8, HUGE, b"")), "ends inside its header"),
        (entry("a", 9, array(0, HUGE, b"")), "ends inside its header"),
        (entry("a", 9, array(10, (1 << 64) - 1, b"")), "ends inside its header"),
        (entry("a", 9, array(9, 1, array(9, 1, b""))), "unknown type 9"),
        (entry("a", 13, b""), "unknown type 13"),
        (entry("a", 8, struct.pack("<Q", HUGE)), "ends inside its header"),
        (struct.pack("<Q", HUGE), "has a key of .* bytes, more than 2000"),
        (entry(b"\xff\xfe", 0, b"\0"), "has a key that is not UTF-8"),
        (entry("general.architecture", 8, text("x" * 9999)), "has a value of 9999 bytes"),
        (entry("general.architecture", 6, bytes(4)), "must be given once, as text"),
        (entry("general.alignment", 4, struct.pack("<I", 0)), "must be a power of two .* got 0"),
        (entry("general.alignment", 4, struct.pack("<I", 48)), "must be a power of two"),
        (entry("general.alignment", 10, struct.pack("<Q", HUGE)), "must be a power of two"),
        (entry("general.alignment", 8, text("\n")), r"must be a power of two .* got '\\n'"),
    ],
)
def test_a_hostile_key_is_refused(tmp_path: Path, line: bytes, why: str) -> None:
    refused(write(tmp_path / "x.gguf", (line,)), why)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    line = entry("general.alignment", 4, struct.pack("<I", 32))
    refused(write(tmp_path / "x.gguf", (line, line)), "must be given once")


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ((4, 3), r"has 8 numbers, which its original shape \(4, 3\) cannot hold"),
        ((-2, -4), "axes that no network has"),
        ((0, HUGE), r"original shape \(0, 4611686018427387904\) cannot hold"),
        ((1,) * 9, "must be given once, as text or up to 8 integers"),
    ],
)
def test_a_hostile_original_shape_is_refused(
    tmp_path: Path, shape: tuple[int, ...], why: str
) -> None:
    value = array(11, len(shape), struct.pack(f"<{len(shape)}q", *shape))
    line = entry("comfy.gguf.orig_shape.x.weight", 9, value)
    refused(write(tmp_path / "x.gguf", (line,)), why)


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ((tensor(axes=(1 << 32) - 1, shape=()),), "has a shape of 4294967295 axes"),
        ((tensor(axes=9, shape=(1,) * 9),), "has a shape of 9 axes that no network has"),
        ((tensor(shape=(HUGE, 0)),), "axes that no network has"),
        ((tensor(shape=(1 << 40, 1 << 40)),), "ends at byte .* of a file of"),
        ((tensor(shape=(4, 3)),), "ends at byte .* of a file of"),
        ((tensor(offset=HUGE),), "ends at byte"),
        ((tensor(offset=(1 << 64) - 32),), "ends at byte"),
        ((tensor(offset=4, shape=(1,)),), "is not at a place of its own"),
        ((tensor(), tensor("y", (8,))), "y is not at a place of its own"),
        ((tensor(), tensor()), "holds x.weight twice"),
        ((tensor("x" * 501),), "whose name has 501 characters"),
        ((tensor("x" * 3000),), "has the name of a tensor of 3000 bytes"),
        ((tensor(b"\xff"),), "has the name of a tensor that is not UTF-8"),
        ((tensor(kind=12),), "has rows of 4 numbers, which Q4_K cannot split into blocks of 256"),
        ((tensor(kind=8, shape=()),), "has rows of 1 numbers, which Q8_0 cannot split"),
        ((tensor(kind=8, shape=(32, 1)),), "ends at byte"),
        ((tensor(kind=15, shape=(256,)),), "has the type Q8_K"),
        ((tensor(kind=4),), "has the type number 4"),
    ],
)
def test_a_hostile_tensor_is_refused(tmp_path: Path, tensors: tuple[bytes, ...], why: str) -> None:
    refused(write(tmp_path / "x.gguf", tensors=tensors), why)


def test_another_file_is_no_gguf(tmp_path: Path) -> None:
    for data in (b"", b"GGU", b"PK\3\4" + bytes(99)):
        (tmp_path / "x.gguf").write_bytes(data)
        refused(tmp_path / "x.gguf", "is not a GGUF file; download it again")
    refused(tmp_path / "nowhere.gguf", "is missing")


def test_a_long_header_is_refused(tmp_path: Path) -> None:
    """Each of two million empty words takes a step."""
    path = tmp_path / "x.gguf"
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + entry("a", 9, array(8, HUGE, b"")))
    with path.open("r+b") as file:
        file.truncate(1 << 26)
    started = time.process_time()
    with pytest.raises(CheckpointError, match="has a header of more than 16777216 bytes"):
        open_tensors(path)
    assert time.process_time() - started < 10


def test_broken_scales_warn_nobody(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    line = tensor(kind=8, shape=(32, 1))
    path = write(tmp_path / "x.gguf", tensors=(line,), data=b"\xff\x7b" + b"\x7f" * 32)
    infinite = write(tmp_path / "y.gguf", tensors=(line,), data=b"\0\x7c" + bytes(32))
    with open_tensors(path) as file, open_tensors(infinite) as other:
        assert np.isfinite(file.read("x.weight")).all()
        assert np.isnan(other.read("x.weight")).all()
    assert not recwarn.list


def test_a_damaged_file_is_read_or_refused(tmp_path: Path) -> None:
    tensors = (tensor(), tensor("y.weight", (32, 2), 8, 32), tensor("z", (2,), 1, 128))
    entries = (
        entry("general.alignment", 4, struct.pack("<I", 32)),
        entry("words", 9, array(8, 2, text("a") + text("bc"))),
        entry("comfy.gguf.orig_shape.x.weight", 9, array(5, 2, struct.pack("<2i", 8, 1))),
    )
    data = write(tmp_path / "x.gguf", entries, tensors, bytes(160)).read_bytes()
    for seed in range(400):
        (tmp_path / "x.gguf").write_bytes(mutated(data, seed))
        settle(tmp_path / "x.gguf")
