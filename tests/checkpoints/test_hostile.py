"""Torch files made to do harm: each is refused in one line, by name, before anything runs."""

import lzma
import pickle
import random
import shutil
import struct
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints.torchfile import (
    Raw,
    call,
    encode,
    name,
    pickled,
    plain,
    save,
    storage,
    tensor,
    write,
)
from tests.conftest import DATA
from wanpipe.checkpoints import torch_file
from wanpipe.checkpoints.detect import detect
from wanpipe.checkpoints.read import open_tensors
from wanpipe.errors import CheckpointError

MARKER = Path("/tmp/fx_pwned")
SHOUT = "touch /tmp/fx_pwned"
SYSTEM = name("posix", "system")
ORDERED = name("collections", "OrderedDict")
NUMBERS = np.arange(6, dtype="<f4")


@pytest.fixture(autouse=True)
def harmless() -> Iterator[None]:
    MARKER.unlink(missing_ok=True)
    yield
    assert not MARKER.exists()


def refused(path: Path, why: str) -> None:
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=why) as caught, open_tensors(path):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32e6
    assert len(str(caught.value).splitlines()) == 1


def test_the_pickle_that_calls_the_system_is_refused_by_name() -> None:
    refused(DATA / "bad" / "os_system.pth", "posix.system.*not run")


def test_a_legacy_file_is_refused_with_its_remedy(tmp_path: Path) -> None:
    path = tmp_path / "legacy.pth"
    path.write_bytes(lzma.decompress((DATA / "bad" / "legacy_format.pth.xz").read_bytes()))
    refused(path, "legacy format; save it again with `torch.save`")


class Harm:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, (SHOUT,)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (pickled(call(SYSTEM, SHOUT)), "posix.system"),
        (pickled({"weight": call(SYSTEM, SHOUT)}), "posix.system"),
        (pickled({"weight": call(name("builtins", "eval"), "1")}), "builtins.eval"),
        (pickled({"weight": call(name("torch.hub", "load"), "x")}), "torch.hub.load"),
        (pickled({"weight": call(name("torch", "load"), "x")}), "torch.load"),
        (pickled({"weight": call(name("collections", "namedtuple"), "x")}), "namedtuple"),
        (
            pickled(Raw(encode("posix") + encode("system") + b"\x93" + encode((SHOUT,)) + b"R")),
            "posix",
        ),
        (pickled(Raw(b"(" + encode(SHOUT) + b"iposix\nsystem\n")), "INST"),
        (pickled(Raw(b"(" + SYSTEM.code + encode(SHOUT) + b"o")), "OBJ"),
        (pickled(Raw(b"\x82\x01")), "EXT1"),
        (pickled(Raw(ORDERED.code + b")\x81")), "NEWOBJ"),
        (pickled(Raw(ORDERED.code + encode({"x": 1}) + b"b")), "is Global"),
        (pickled(call(ORDERED, (("a", 1),))), "unknown way"),
        (pickled(call(name("torch", "FloatStorage"), 1 << 40)), "unknown way"),
        (pickled(call(Raw(encode("text")), 1)), "not callable"),
        (pickled(Raw(encode(("module", name("torch", "FloatStorage"), "0")) + b"Q")), "storage"),
        (pickled(Raw(b"Pposix\n")), "PERSID"),
        *((pickle.dumps(Harm(), protocol), "system|PUT") for protocol in range(6)),
    ],
)
def test_nothing_but_tensors_is_built(tmp_path: Path, data: bytes, why: str) -> None:
    refused(write(tmp_path / "harm.pth", data, {}), why)


def nested(depth: int) -> bytes:
    return b")" + b"q\0h\0h\0\x86" * depth


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02}" + nested(60) + b"Ns.",  # a key that takes 2^60 steps to hash
        b"\x80\x02})" + b"\x85" * 500_000 + b"Ns.",  # one that takes as many frames of the stack
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # memo index 2^31
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x02\x8d" + struct.pack("<Q", 1 << 62) + b".",
        b"\x80\x02" + b"(" * 500_000 + b".",
        b"\x80\x02" + b"]" * 500_000 + b".",
        b"\x80\x02" + b"]" + b"q\0h\0a" * 100_000 + b".",
        b"\x80\x02h\x05.",
        b"\x80\x02R.",
        b"\x80\x02}\x86.",
        b"\x80\x02u.",
        b"\x80\x02",
        b"",
    ],
)
def test_a_pickle_bomb_takes_neither_time_nor_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr(torch_file, "SECONDS", 1)
    refused(write(tmp_path / "bomb.pth", data, {}), "pickle|table of tensors")


@pytest.mark.parametrize(
    ("view", "why"),
    [
        (tensor(storage("0", 6), (7,), (1,)), "cannot fill"),
        (tensor(storage("0", 6), (6,), (1,), 1), "cannot fill"),
        (tensor(storage("0", 6), (2, 3), (4, 1)), "cannot fill"),
        (tensor(storage("0", 6), (1 << 40, 1 << 40), (0, 0)), "cannot fill"),
        (tensor(storage("0", 6), (6,), (-1,), 5), "not counts"),
        (tensor(storage("0", 6), (6,), (1,), -1), "not counts"),
        (tensor(storage("0", 6), (-6,), (1,)), "not counts"),
        (tensor(storage("0", 6), (6,), ()), "strides"),
        (tensor(storage("0", 6), (1,) * 40, (1,) * 40), "strides"),
        (tensor(storage("0", 6), "6", (1,)), "not counts"),
        (tensor(storage("0", 6), (True,), (1,)), "not counts"),
        (tensor(storage("0", 1 << 40), (6,), (1,)), "storage 0 needs"),
        (tensor(storage("9", 6), (6,), (1,)), "storage 9 needs 24 bytes, the archive holds no"),
        (tensor(storage("../../data.pkl", 6), (6,), (1,)), "storage"),
        (tensor(storage("0", 6, "DoubleStorage"), (6,), (1,)), "needs 48 bytes"),
        (tensor(storage("0", 6, "ComplexFloatStorage"), (6,), (1,)), "ComplexFloatStorage"),
        (3, "must be a tensor, is int"),
    ],
)
def test_an_absurd_tensor_is_refused(tmp_path: Path, view: object, why: str) -> None:
    data = pickled({"weight": view})
    refused(write(tmp_path / "absurd.pth", data, {"0": NUMBERS.tobytes()}), why)


def test_a_compressed_member_is_refused(tmp_path: Path) -> None:
    data = pickled({"weight": plain("0", np.zeros(1 << 20, "<f4"))})
    path = write(tmp_path / "bomb.pth", data, {"0": bytes(4 << 20)}, zipfile.ZIP_DEFLATED)
    refused(path, "compressed.*save it again")


@pytest.mark.parametrize("member", ["../evil", "/etc/evil", "a/../../evil", "a\\evil"])
def test_a_name_that_leaves_the_archive_is_refused(tmp_path: Path, member: str) -> None:
    path = save(tmp_path / "names.pth", {"weight": NUMBERS})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member, b"x")
    refused(path, "leaves the archive")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_given_twice_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "twice.pth", {"weight": NUMBERS})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(24))
    refused(path, "twice")


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "overlap.pth", {"weight": NUMBERS, "bias": NUMBERS})
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\1\2", data.index(b"PK\1\2") + 4)
    for offset in (20, 24):  # both sizes of the second entry
        data[place + offset : place + offset + 4] = struct.pack("<I", 40)
    path.write_bytes(data)
    refused(path, "overlaps")


def test_big_endian_numbers_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "big.pth", {"weight": NUMBERS})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/byteorder", b"big")
    refused(path, "big-endian")


def mutated(data: bytes, seed: int) -> bytes:
    """Change a few bytes, or cut, repeat or swap a stretch; the header and the end are hit most."""
    dice = random.Random(seed)
    result = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        places = (dice.randrange(len(result)), dice.randrange(min(4000, len(result))))
        place = dice.choice((*places, len(result) - 1 - places[1]))
        length = dice.choice((1, 1, 2, 4, 8, 100))
        match dice.randrange(4):
            case 0:
                result[place] ^= 1 << dice.randrange(8)
            case 1:
                result[place : place + length] = dice.randbytes(length)
            case 2:
                del result[place : place + length]
            case 3:
                result[place:place] = result[place : place + length]
    return bytes(result)


def settle(path: Path) -> None:
    """Read everything, or end in one line."""
    try:
        with open_tensors(path) as file:
            for tensor_name in file.tensors:
                file.read(tensor_name)
    except CheckpointError as error:
        assert len(str(error).splitlines()) == 1, error


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_tensor_file_is_read_or_refused(
    checkpoints: Path, tmp_path: Path, suffix: str
) -> None:
    source = {".pth": "models_t5_umt5-xxl-enc-bf16", ".safetensors": "diffusion_pytorch_model"}
    data = (checkpoints / "wan21-t2v" / f"{source[suffix]}{suffix}").read_bytes()
    for seed in range(150):
        path = tmp_path / f"damaged{suffix}"
        path.write_bytes(mutated(data, seed))
        settle(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pickletools, for odd strings
def test_a_damaged_pickle_in_a_whole_archive_is_read_or_refused(tmp_path: Path) -> None:
    names = ["a.weight", "b.weight", "c.bias"]
    data = pickled({label: plain(str(index), NUMBERS) for index, label in enumerate(names)})
    storages = {str(index): NUMBERS.tobytes() for index in range(3)}
    for seed in range(150):
        settle(write(tmp_path / "damaged.pth", mutated(data, seed), storages))


@pytest.mark.parametrize("file", ["config.json", "diffusion_pytorch_model.safetensors.index.json"])
def test_damaged_settings_are_understood_or_refused(
    checkpoints: Path, tmp_path: Path, file: str
) -> None:
    directory = tmp_path / "damaged"
    shutil.copytree(checkpoints / "wan21-i2v", directory, copy_function=shutil.copyfile)
    data = (directory / file).read_bytes()
    for seed in range(60):
        (directory / file).write_bytes(mutated(data, seed))
        try:
            detect(directory)
        except CheckpointError as error:
            assert len(str(error).splitlines()) == 1, error
