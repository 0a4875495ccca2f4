"""Lazy reading of safetensors and torch files: values, memory, and what is refused."""

import json
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

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
    write_sparse,
)
from wanpipe.checkpoints.read import open_tensors
from wanpipe.errors import CheckpointError

T5 = "wan21-t2v/models_t5_umt5-xxl-enc-bf16.pth"


def refused(path: Path, why: str) -> None:
    with pytest.raises(CheckpointError, match=why) as caught, open_tensors(path) as file:
        for name in file.tensors:
            file.read(name)
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)


def test_safetensors_values_are_those_of_the_official_library(checkpoints: Path) -> None:
    paths = sorted((checkpoints / "wan21-i2v").glob("*.safetensors"))
    reference = {name: value for path in paths for name, value in load_file(path).items()}
    with open_tensors(paths) as file:
        assert set(file.tensors) == set(reference)
        for name, value in reference.items():
            assert file.tensors[name].shape == value.shape
            np.testing.assert_array_equal(file.read(name), value)


def test_torch_values_are_the_bytes_in_the_archive(checkpoints: Path) -> None:
    path = checkpoints / T5
    with zipfile.ZipFile(path) as archive, open_tensors(path) as file:
        content = archive.read(f"{path.stem}/data/0")
        info = file.tensors["token_embedding.weight"]
        assert (info.shape, info.dtype, info.nbytes) == ((401, 64), "BF16", len(content))
        assert file.read("token_embedding.weight").tobytes() == content


def test_bfloat16_is_widened_exactly(checkpoints: Path) -> None:
    with open_tensors(checkpoints / T5) as file:
        bits, values = file.read("norm.weight"), file.read_float32("norm.weight")
    np.testing.assert_array_equal(values.view(np.uint32) >> 16, bits)
    assert not (values.view(np.uint32) & 0xFFFF).any()


def test_rows_are_those_of_the_table(checkpoints: Path) -> None:
    with open_tensors(checkpoints / T5) as file:
        table = file.read("token_embedding.weight")
        np.testing.assert_array_equal(
            file.rows("token_embedding.weight", [400, 0, 7, 7]), table[[400, 0, 7, 7]]
        )
        with pytest.raises(CheckpointError, match="rows 0 to 400, asked for 401"):
            file.rows("token_embedding.weight", [401])


def sparse(path: Path, shape: tuple[int, int]) -> Path:
    """A float32 table of zeros that takes no room on the disk."""
    size = 4 * shape[0] * shape[1]
    header = {"table": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
    data = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(data)) + data)
        file.truncate(8 + len(data) + size)
    return path


def test_reading_rows_of_a_large_table_takes_no_memory(tmp_path: Path) -> None:
    path = sparse(tmp_path / "large.safetensors", (500_000, 1000))
    tracemalloc.start()
    with open_tensors(path) as file:
        assert file.rows("table", range(0, 500_000, 5000)).shape == (100, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6


def test_blocks_join_to_the_tensor(checkpoints: Path) -> None:
    with open_tensors(checkpoints / T5) as file:
        for name, info in file.tensors.items():
            joined = np.concatenate(list(file.blocks(name, 1000)))
            np.testing.assert_array_equal(joined.reshape(info.shape), file.read(name))


def test_views_of_a_torch_storage_are_read_in_their_own_order(tmp_path: Path) -> None:
    numbers = np.arange(24, dtype="<f4")
    source = storage("0", 24)
    views = {
        "transposed": (tensor(source, (6, 4), (1, 6)), numbers.reshape(4, 6).T),
        "part": (tensor(source, (2, 3), (6, 1), 7), numbers.reshape(4, 6)[1:3, 1:4]),
        "tail": (tensor(source, (12,), (1,), 12), numbers[12:]),
        "scalar": (tensor(source, (), (), 5), numbers[5]),
        "empty": (tensor(source, (0, 4), (4, 1)), np.empty((0, 4), "<f4")),
        "unit axes": (tensor(source, (1, 24), (999, 1)), numbers[None]),
    }
    data = pickled({name: view for name, (view, _) in views.items()})
    with open_tensors(write(tmp_path / "views.pth", data, {"0": numbers.tobytes()})) as file:
        for name, (_, expected) in views.items():
            np.testing.assert_array_equal(file.read(name), expected)
            assert file.tensors[name].nbytes == expected.nbytes
        np.testing.assert_array_equal(
            np.concatenate(list(file.blocks("transposed", 40))), views["transposed"][1]
        )
        np.testing.assert_array_equal(
            file.rows("transposed", [5, 1]), views["transposed"][1][[5, 1]]
        )


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module"])
def test_a_wrapping_dict_is_opened(tmp_path: Path, wrapper: str) -> None:
    array = np.arange(4, dtype="<f4")
    data = pickled({"epoch": 3, wrapper: {"weight": plain("0", array)}})
    with open_tensors(write(tmp_path / "wrapped.pth", data, {"0": array.tobytes()})) as file:
        np.testing.assert_array_equal(file.read("weight"), array)


def test_what_torch_saves_beside_the_numbers_is_left_out(tmp_path: Path) -> None:
    """An OrderedDict with the versions of its modules, parameters, and an optimizer's settings."""
    array = np.arange(4, dtype="<f4")
    ordered, versions = name("collections", "OrderedDict"), {"_metadata": {"": {"version": 1}}}
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    newer = call(rebuild, storage("0", 4), 2, (2,), (1,), False, call(ordered), None)
    parameter = call(name("torch._utils", "_rebuild_parameter"), plain("0", array), True, {})
    items = encode("weight") + parameter.code + encode("tail") + newer.code
    state = Raw(call(ordered).code + b"(" + items + b"u" + encode(versions) + b"b")
    betas = Raw(encode((1, (2, 3))) + b"q\x07")
    wrapped = {"optimizer": {0: betas, 1: Raw(b"h\x07")}, "model": {"state_dict": state}}
    with open_tensors(write(tmp_path / "a.pth", pickled(wrapped), {"0": array.tobytes()})) as file:
        np.testing.assert_array_equal(file.read("weight"), array)
        np.testing.assert_array_equal(file.read("tail"), array[2:])
        assert len(file.tensors) == 2


def test_one_name_in_two_shards_is_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path in paths:
        save_file({"weight": np.ones(2, np.float32)}, path)
    with pytest.raises(CheckpointError, match="another shard"):
        open_tensors(paths)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "absent.safetensors", "is missing")


@pytest.mark.parametrize("tenths", range(10))
@pytest.mark.parametrize("name", [T5, "wan21-t2v/diffusion_pytorch_model.safetensors"])
def test_a_truncated_file_is_refused(
    checkpoints: Path, tmp_path: Path, name: str, tenths: int
) -> None:
    data = (checkpoints / name).read_bytes()
    path = tmp_path / Path(name).name
    path.write_bytes(data[: len(data) * tenths // 10])
    refused(path, "cut short|no torch checkpoint|is not a torch checkpoint")


A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
B = {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}


EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [16, 16]}
DAMAGED = "is no safetensors file, damaged or cut short"


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"a": A, "b": {**B, "data_offsets": [4, 12]}}, DAMAGED),
        ({"a": A, "b": {**B, "data_offsets": [12, 20]}}, DAMAGED),
        ({"a": A}, DAMAGED),
        ({"a": A, "b": {**B, "data_offsets": [8, 1 << 40], "shape": [(1 << 38) - 2]}}, DAMAGED),
        ({"a": A, "b": {**B, "shape": [3]}}, DAMAGED),
        ({"a": A, "b": {**B, "shape": [-2]}}, DAMAGED),
        ({"a": A, "b": {**B, "shape": [1 << 62, 1 << 62]}}, DAMAGED),
        ({"a": A, "b": {**B, "shape": [2.0]}}, DAMAGED),
        ({"a": A, "b": {**B, "shape": [True, 2]}}, DAMAGED),
        ({"a": A, "b": {**B, "shape": [*[1] * 8, 2]}}, "a shape of 9 axes"),
        ({"a": A, "b": B, "c": {**EMPTY, "shape": [0, 1 << 62]}}, "that no network has"),
        ({"a": A, "b": {**B, "dtype": "F31"}}, DAMAGED),
        ({"a": A, "b": {**B, "dtype": "C64", "shape": [1]}}, "unknown dtype C64"),
        ({"a": A, "b": {**B, "dtype": "F4", "shape": [16]}}, "unknown dtype F4"),
        ({"a": A, "b": {"dtype": "F32"}}, DAMAGED),
        ({"a": A, "b": 3}, DAMAGED),
        ({"a": A, "b": B, "__metadata__": {"x": 1}}, DAMAGED),
        ([A, B], DAMAGED),
        ('{"a": 1, "a": 1}', DAMAGED),
        ("[" * 100_000, DAMAGED),
        ("{", DAMAGED),
    ],
)
def test_a_malformed_safetensors_header_is_refused(
    tmp_path: Path, header: object, why: str
) -> None:
    data = (header if isinstance(header, str) else json.dumps(header)).encode()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(struct.pack("<Q", len(data)) + data + bytes(16))
    refused(path, why)


def test_tensors_are_found_by_their_offsets(tmp_path: Path) -> None:
    """The library gives names and shapes, but not where the numbers are."""
    header = {
        "__metadata__": None,  # MLX writes this for none
        "late": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [12, 20]},
        "empty": {"dtype": "F32", "shape": [0, 3], "data_offsets": [12, 12]},
        "early": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
        "scalar": {"dtype": "I64", "shape": [], "data_offsets": [4, 12]},
    }
    data = json.dumps(header).encode()
    path = tmp_path / "order.safetensors"
    path.write_bytes(struct.pack("<Q", len(data)) + data + bytes(range(20)))
    with open_tensors(path) as file:
        assert file.metadata == {}
        assert file.read("early").tolist() == [0, 1, 2, 3]
        assert file.read("scalar").tobytes() == bytes(range(4, 12))
        assert file.read("late").tobytes() == bytes(range(12, 20))
        assert file.rows("late", [1]).tobytes() == bytes(range(16, 20))
        assert file.read("empty").shape == (0, 3)


def test_an_absurd_header_length_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 1 << 33))
        file.truncate(1 << 34)
    refused(path, "header of")


def test_eight_bit_floats_have_their_published_values(tmp_path: Path) -> None:
    header = {
        "e4m3": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]},
        "e5m2": {"dtype": "F8_E5M2", "shape": [4], "data_offsets": [4, 8]},
    }
    data = json.dumps(header).encode()
    path = tmp_path / "eight.safetensors"
    # largest, smallest, minus one, not a number
    codes = bytes([0x7E, 0x01, 0xB8, 0x7F, 0x7B, 0x01, 0xBC, 0x7F])
    path.write_bytes(struct.pack("<Q", len(data)) + data + codes)
    with open_tensors(path) as file:
        np.testing.assert_array_equal(file.read_float32("e4m3"), [448, 2.0**-9, -1, np.nan])
        np.testing.assert_array_equal(file.read_float32("e5m2"), [57344, 2.0**-16, -1, np.nan])


def test_the_test_writer_makes_files_that_are_read(tmp_path: Path) -> None:
    arrays = {"a.weight": np.arange(6, dtype="<f4").reshape(2, 3), "b": np.ones(2, "<i8")}
    with open_tensors(save(tmp_path / "honest.pth", arrays)) as file:
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.read(name), array)


def test_a_torch_file_beyond_four_gigabytes_is_read(tmp_path: Path) -> None:
    length = 3 << 28  # numbers
    views = {key: tensor(storage(key, length), (length // 4, 4), (4, 1)) for key in "012"}
    path = write_sparse(tmp_path / "large.pth", pickled(views), dict.fromkeys("012", 4 * length))
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("archive/data/2").file_size == 4 * length
    with open_tensors(path) as file:
        assert file.tensors["2"].nbytes == 4 * length
        assert not file.rows("2", [length // 4 - 1]).any()


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ([f"x{index}" for index in range(70_000)], "holds 70000 tensors, more than 65536"),
        (["x" * 501], "a tensor whose name has 501 characters, more than 500: 'xxx"),
    ],
    ids=["many", "long"],
)
def test_more_tensors_and_longer_names_than_any_network_has_are_refused(
    tmp_path: Path, keys: list[str], why: str
) -> None:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    data = json.dumps(dict.fromkeys(keys, empty)).encode()
    path = tmp_path / "many.safetensors"
    path.write_bytes(len(data).to_bytes(8, "little") + data)
    started = time.process_time()
    refused(path, why)
    assert time.process_time() - started < 5


def test_a_long_name_in_a_torch_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "long.pth", {"x" * 501: np.zeros(1, "<f4")})
    refused(path, "a tensor whose name has 501 characters, more than 500: 'xxx")
