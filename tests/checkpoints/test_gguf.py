"""GGUF files: their models are those of their values, and convolutions keep their five axes."""

import builtins
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from tests.checkpoints.foreign import Official, Tensors, converted, refused, stored
from tests.checkpoints.ggufs import SCALES, random_blocks, widened, write_gguf, write_pair
from tests.workshop import Place
from wanpipe.checkpoints.detect import detect
from wanpipe.checkpoints.gguf_file import dequantize
from wanpipe.checkpoints.read import open_tensors
from wanpipe.checkpoints.tensors import Quantization

PLAIN = ("F32", "F16", "BF16")
ROWS_OF_32 = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
ROWS_OF_256 = tuple(kind.name for kind in SCALES)


@pytest.mark.parametrize("kind", [*PLAIN, *ROWS_OF_32])
def test_a_model_is_that_of_the_values(checkpoints: Path, tmp_path: Path, kind: str) -> None:
    packed, plain = write_pair(checkpoints / "wan21-t2v", tmp_path, Kind[kind])
    models = [converted(folder, tmp_path / f"{folder.name}-model") for folder in (packed, plain)]
    assert models[0] == models[1]


@pytest.mark.parametrize("kind", ROWS_OF_256)
def test_a_model_of_k_quants_is_that_of_the_values(
    checkpoints: Path, tmp_path: Path, kind: str
) -> None:
    source = widened(checkpoints / "wan21-t2v", tmp_path / "wide")
    packed, plain = write_pair(source, tmp_path, Kind[kind])
    with open_tensors(packed / f"wan-{kind}.gguf") as file:
        assert file.stored_type("blocks.0.ffn.2.weight") == kind
    models = [converted(folder, tmp_path / f"{folder.name}-model") for folder in (packed, plain)]
    assert models[0] == models[1]


@pytest.mark.parametrize(
    "family", ["wan21-i2v", "wan21-flf2v", "wan21-vace", "wan22-t2v-a14b", "wan22-ti2v-5b"]
)
def test_float32_gives_the_official_model(
    checkpoints: Path, tmp_path: Path, official: Official, family: str
) -> None:
    packed, _ = write_pair(checkpoints / family, tmp_path, Kind.F32)
    assert detect(packed).variant == detect(checkpoints / family).variant
    assert converted(packed, tmp_path / "model").components == official(family).components


def test_a_quantized_checkpoint_makes_the_video_of_its_values(
    checkpoints: Path, tmp_path: Path
) -> None:
    source = widened(checkpoints / "wan21-t2v", tmp_path / "wide")
    places = [
        Place(tmp_path, tmp_path / f"{folder.name}-model")
        for folder in write_pair(source, tmp_path, Kind.Q4_K)
    ]
    counts = []
    for place, folder in zip(places, ("gguf", "safetensors"), strict=True):
        place.do("convert", "--checkpoint-dir", folder, "--output-dir", place.model)
        film = place.film()
        counts.append(sum(event["event"] == "computed" for event in film.events))
    frames = places[0].frames(film)
    assert frames.shape == (5, 32, 32, 3)
    assert frames.std() > 1
    assert counts[0] > 4  # text, steps, frames
    assert counts[1] == 0  # the weights are the same, so are the keys


def dropped_axes(tensors: Tensors) -> Tensors:
    """Drop unit axes at the front, as llama.cpp does."""
    result = {}
    for name, (dtype, value) in tensors.items():
        while value.ndim > 1 and value.shape[0] == 1:
            value = value[0]
        result[name] = (dtype, value)
    return result


def merged_channels(tensors: Tensors) -> Tensors:
    """Give convolutions four axes, as stable-diffusion.cpp does."""
    return {
        name: (dtype, value.reshape(-1, *value.shape[2:]) if value.ndim == 5 else value)
        for name, (dtype, value) in tensors.items()
    }


@pytest.mark.parametrize("change", [dropped_axes, merged_channels])
@pytest.mark.parametrize("family", ["wan21-flf2v", "wan21-vace"])
def test_axes_that_other_tools_drop_are_restored(
    checkpoints: Path, tmp_path: Path, official: Official, family: str, change: Any
) -> None:
    packed, _ = write_pair(checkpoints / family, tmp_path, Kind.F32)
    tensors = change(stored((packed / "wan-F32.gguf",)))
    write_gguf(packed / "wan-F32.gguf", tensors, Kind.F32)
    assert converted(packed, tmp_path / "model").components == official(family).components


@pytest.mark.parametrize("shape", [(40, 2, 16), (5, 256), (1280,), (5, 4, 8, 1, 8)])
def test_a_tensor_has_its_original_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Blocks that cross rows are cut where a slice ends."""
    data = random_blocks(Kind.Q4_K, (5, 256), np.random.default_rng(1))
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "wan")
    writer.add_array("comfy.gguf.orig_shape.x.weight", list(shape))
    writer.add_tensor("x.weight", data, raw_dtype=Kind.Q4_K)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file):
        write()
    writer.write_tensors_to_file()
    writer.close()
    expected = gguf.dequantize(data, Kind.Q4_K).reshape(shape)
    with open_tensors(tmp_path / "x.gguf") as file:
        info = file.tensors["x.weight"]
        assert (info.shape, info.dtype, info.nbytes) == (shape, "F32", 5 * 256 * 4)
        assert np.array_equal(file.read("x.weight"), expected)
        for limit in (1, 100, 1000, 3000, 1 << 20):
            blocks = list(file.blocks("x.weight", limit))
            assert np.array_equal(np.concatenate(blocks), expected)
        if len(shape) == 2:
            assert np.array_equal(file.rows("x.weight", [3, 0]), expected[[3, 0]])


def test_long_tensors_are_computed_in_parts() -> None:
    data = random_blocks(Kind.Q6_K, (700, 256), np.random.default_rng(2))
    values = dequantize(data.reshape(-1), Quantization("Q6_K", 256, 210))
    assert np.array_equal(values, gguf.dequantize(data, Kind.Q6_K).reshape(-1))


def test_a_type_that_cannot_be_computed_is_named(checkpoints: Path, tmp_path: Path) -> None:
    packed, _ = write_pair(checkpoints / "wan21-t2v", tmp_path, Kind.F32)
    path = packed / "wan-F32.gguf"
    name = b"blocks.0.ffn.0.weight"
    data = bytearray(path.read_bytes())
    place = data.index(name) + len(name) + 4 + 2 * 8
    for number, said in ((15, "Q8_K"), (9, "Q8_1"), (99, "number 99")):
        data[place] = number
        path.write_bytes(data)
        refused(packed, f"blocks.0.ffn.0.weight has the type {said}, which .* use a file with Q8_0")


def test_a_missing_package_is_named(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [
        write_pair(checkpoints / "wan21-t2v", tmp_path / kind, Kind[kind])[0]
        for kind in ("Q8_0", "F16")
    ]
    whole = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return whole(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    refused(folders[0], "is quantized, which needs gguf, .* run `pip install 'wanpipe.gguf.'`")
    assert detect(folders[1]).variant.name == "wan2.1-t2v-1.3b"  # nothing to compute
