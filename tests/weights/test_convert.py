"""Conversion: values against the checkpoint, hashes, what a kill or a full disk leaves."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import xxhash

from tests.checkpoints.test_detect import NAMES, change
from wanpipe.checkpoints.detect import detect
from wanpipe.checkpoints.read import open_tensors
from wanpipe.checkpoints.rename import apply_transform
from wanpipe.checkpoints.source_hashes import source_hashes
from wanpipe.errors import CheckpointError, StoreError, UsageError
from wanpipe.models.config import read_model_config
from wanpipe.models.dit import DiT
from wanpipe.store.index_file import HashCache, IndexFile
from wanpipe.weights.components import plan_components
from wanpipe.weights.convert import Options, convert, material
from wanpipe.weights.load import FLOAT32_NAMES, load_network

KEY = "0" * 32
WIDTHS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def silent(name: str, done: int, total: int) -> None:
    assert 0 <= done <= total


def content(directory: Path) -> dict[str, str]:
    """Hash of every file."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.name: xxhash.xxh3_128_hexdigest(path.read_bytes()) for path in files}


@pytest.fixture
def copy(checkpoints: Path, tmp_path: Path) -> Path:
    target = tmp_path / "checkpoint"
    shutil.copytree(checkpoints / "wan21-t2v", target, copy_function=shutil.copyfile)
    return target


@pytest.mark.slow
@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("family", NAMES)
def test_every_checkpoint_converts(
    checkpoints: Path, tmp_path: Path, family: str, dtype: str
) -> None:
    checkpoint = detect(checkpoints / family)
    config = convert(checkpoint, tmp_path / "model", KEY, Options(dtype=dtype), silent)
    assert config == read_model_config(tmp_path / "model")
    assert (config.variant, config.dtype, config.dit) == (NAMES[family], dtype, checkpoint.dit)
    expected = {"t5_encoder", "tokenizer", "vae", "vae_encoder", *checkpoint.experts}
    expected |= {"clip"} if family in ("wan21-i2v", "wan21-flf2v") else set()
    assert set(config.components) == expected
    assert set(content(tmp_path / "model")) == {
        "config.json",
        *(component.file for component in config.components.values()),
    }
    for name, component in config.components.items():
        path = tmp_path / "model" / component.file
        assert component.hash == xxhash.xxh3_128_hexdigest(path.read_bytes())
        if name != "tokenizer":
            wanted = {"F32"} if name.startswith("vae") else {"F32", WIDTHS[dtype]}
            with open_tensors(path) as file:
                assert {info.dtype for info in file.tensors.values()} == wanted


def test_float32_values_are_those_of_the_checkpoint(checkpoints: Path, tmp_path: Path) -> None:
    checkpoint = detect(checkpoints / "wan21-i2v")
    convert(checkpoint, tmp_path, KEY, Options(dtype="float32"), silent)
    for plan in plan_components(checkpoint, "float32"):
        with open_tensors(plan.sources) as source, open_tensors(tmp_path / plan.file) as target:
            for name, rename in plan.renames.items():
                expected = apply_transform(source.read_float32(rename.source), rename.transform)
                np.testing.assert_array_equal(target.read(name), expected)


def test_bfloat16_rounds_the_weights_and_keeps_full_rows(checkpoints: Path, tmp_path: Path) -> None:
    checkpoint = detect(checkpoints / "wan21-t2v")
    for dtype in ("float32", "bfloat16"):
        convert(checkpoint, tmp_path / dtype, KEY, Options(dtype=dtype), silent)
    exact = mx.load(str(tmp_path / "float32" / "model.safetensors"))
    rounded = mx.load(str(tmp_path / "bfloat16" / "model.safetensors"))
    with open_tensors(tmp_path / "bfloat16" / "model.safetensors") as file:
        full = set(file.metadata[FLOAT32_NAMES].split())
    assert "blocks.0.modulation" in full
    assert "blocks.0.self_attn.q.weight" not in full
    for name, value in exact.items():
        expected = value if name in full else value.astype(mx.bfloat16)
        assert rounded[name].dtype == expected.dtype
        assert mx.array_equal(rounded[name], expected)


def test_files_are_pinned(checkpoints: Path, tmp_path: Path) -> None:
    config = convert(detect(checkpoints / "wan21-t2v"), tmp_path, KEY, Options(), silent)
    assert {name: component.hash for name, component in config.components.items()} == {
        "tokenizer": "a0685bc33e9e57454cb305275ea4b15c",
        "t5_encoder": "fd535d7810c49351be3f2ba916cfb429",
        "vae": "229496cff88e73c5a279f2df83e6a216",
        "vae_encoder": "cfbc2c83b59ffe4e35da5dfdf20fdc68",
        "model": "1ba4b8f36d9817fda57d87645cff64a5",
    }


def test_a_finished_conversion_writes_nothing(checkpoints: Path, tmp_path: Path) -> None:
    checkpoint = detect(checkpoints / "wan21-t2v")
    config = convert(checkpoint, tmp_path, KEY, Options(), silent)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    called: list[str] = []
    again = convert(checkpoint, tmp_path, KEY, Options(), lambda name, *_: called.append(name))
    assert again == config
    assert not called
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


KILLED = """
import os, signal, sys
from pathlib import Path
from wanpipe.weights.convert import Options, convert
from wanpipe.checkpoints.detect import detect

def progress(name, done, total):
    if name == sys.argv[3] and done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)

convert(detect(Path(sys.argv[1])), Path(sys.argv[2]), "0" * 32, Options(), progress)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["t5_encoder", "vae", "high_noise_model"])
def test_a_killed_conversion_goes_on_with_what_is_not_done(
    checkpoints: Path, tmp_path: Path, moment: str
) -> None:
    source = checkpoints / "wan22-t2v-a14b"
    target = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, source, target, moment]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert (target / f"{moment}.safetensors.part").exists()
    assert not (target / f"{moment}.safetensors").exists()
    assert not (target / "config.json").exists()
    order = ["t5_encoder", "vae", "vae_encoder", "low_noise_model", "high_noise_model"]
    called: list[str] = []
    convert(detect(source), target, KEY, Options(), lambda name, *_: called.append(name))
    assert list(dict.fromkeys(called)) == order[order.index(moment) :]
    convert(detect(source), tmp_path / "straight", KEY, Options(), silent)
    assert content(target) == content(tmp_path / "straight")


def test_only_what_this_call_has_written_is_told(checkpoints: Path, tmp_path: Path) -> None:
    checkpoint, told = detect(checkpoints / "wan21-t2v"), {}

    def wrote(path: Path, digest: str) -> None:
        assert path.parent == tmp_path
        told[path.name] = digest

    def stop(name: str, done: int, total: int) -> None:
        if name == "model":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, tmp_path, KEY, Options(), stop, on_written=wrote)
    told.clear()  # what an earlier run has written may have changed since
    convert(checkpoint, tmp_path, KEY, Options(), silent, on_written=wrote)
    assert set(told) == {"tokenizer.json", "model.safetensors"}
    assert told.items() <= content(tmp_path).items()
    told.clear()
    convert(checkpoint, tmp_path, KEY, Options(), silent, on_written=wrote)
    assert not told


@pytest.mark.parametrize(
    "record",
    [
        b"", b"[]", b"{}", b'{"key": "' + b"0" * 32 + b'"}', b"[" * 99999,
        b'{"key":"%s","hash":"%s","bytes":8,"file":"../x","config":null}' % (b"0" * 32, b"1" * 32),
    ],
)  # fmt: skip
def test_a_damaged_record_means_that_a_component_is_not_done(
    record: bytes, checkpoints: Path, tmp_path: Path
) -> None:
    checkpoint = detect(checkpoints / "wan21-t2v")
    (tmp_path / "x").write_bytes(b"8 bytes.")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "vae.safetensors").write_bytes(b"8 bytes.")
    (tmp_path / "model" / "vae.safetensors.json").write_bytes(record)
    convert(checkpoint, tmp_path / "model", KEY, Options(), silent)
    convert(checkpoint, tmp_path / "straight", KEY, Options(), silent)
    assert content(tmp_path / "model") == content(tmp_path / "straight")
    assert (tmp_path / "x").read_bytes() == b"8 bytes."


def test_a_record_of_0_1_0_is_taken_over(checkpoints: Path, tmp_path: Path) -> None:
    checkpoint = detect(checkpoints / "wan21-t2v")

    def stop(name: str, done: int, total: int) -> None:
        if name == "vae":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, tmp_path, KEY, Options(), stop)
    (tmp_path / "t5_encoder.safetensors.json").write_text(
        f'{{"key": "{KEY}", "file": "t5_encoder.safetensors", '
        '"hash": "fd535d7810c49351be3f2ba916cfb429", "bytes": 340288, "parameters": 167808, '
        '"config": {"vocab": 401, "dim": 64, "attention_dim": 64, "ffn_dim": 160, "heads": 4, '
        '"layers": 3, "buckets": 32}}'
    )
    called: list[str] = []
    convert(checkpoint, tmp_path, KEY, Options(), lambda name, *_: called.append(name))
    assert set(called) == {"vae", "vae_encoder", "model"}


def test_a_component_of_another_conversion_is_not_taken_over(
    checkpoints: Path, tmp_path: Path
) -> None:
    checkpoint = detect(checkpoints / "wan21-t2v")

    def stop(name: str, done: int, total: int) -> None:
        if name == "model":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, tmp_path, KEY, Options(dtype="float32"), stop)
    assert (tmp_path / "t5_encoder.safetensors.json").exists()
    called: list[str] = []
    convert(checkpoint, tmp_path, "1" * 32, Options(), lambda name, *_: called.append(name))
    assert set(called) == {"t5_encoder", "vae", "vae_encoder", "model"}


def test_another_model_is_not_overwritten(checkpoints: Path, tmp_path: Path) -> None:
    convert(detect(checkpoints / "wan21-t2v"), tmp_path, KEY, Options(), silent)
    with pytest.raises(StoreError, match="holds another model"):
        convert(detect(checkpoints / "wan22-ti2v-5b"), tmp_path, "1" * 32, Options(), silent)


def test_the_checkpoint_itself_is_not_overwritten(copy: Path) -> None:
    before = content(copy)
    with pytest.raises(StoreError, match="choose another directory"):
        convert(detect(copy), copy, KEY, Options(), silent)
    assert content(copy) == before


def test_too_little_room_is_told_before_anything_is_written(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 1_500_000))
    with pytest.raises(StoreError, match=r"needs \d{7} bytes .* has 1500000 free"):
        convert(detect(checkpoints / "wan21-t2v"), tmp_path / "model", KEY, Options(), silent)
    assert not (tmp_path / "model").exists()


def test_a_full_disk_ends_in_one_line_and_keeps_what_is_finished(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, flush = detect(checkpoints / "wan21-t2v"), os.fsync

    def full(descriptor: int) -> None:
        if (tmp_path / "vae.safetensors.part").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device; finished files are kept"):
        convert(checkpoint, tmp_path, KEY, Options(), silent)
    assert (tmp_path / "t5_encoder.safetensors").exists()
    assert not list(tmp_path.glob("*.part"))
    monkeypatch.undo()
    convert(checkpoint, tmp_path, KEY, Options(), silent)


@pytest.mark.parametrize("text", ["[]", "{}", '{"model": 3}', "{", ""])
def test_a_tokenizer_that_is_none_is_refused(copy: Path, tmp_path: Path, text: str) -> None:
    (copy / "google/umt5-xxl/tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        convert(detect(copy), tmp_path / "model", KEY, Options(), silent)


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(UsageError, match="dtype must be float32, bfloat16, float16, got int8"):
        Options(dtype="int8")


def test_material_changes_with_every_file_and_the_dtype(copy: Path) -> None:
    def current(dtype: str = "bfloat16") -> dict[str, Any]:
        checkpoint = detect(copy)
        return material(checkpoint, source_hashes(checkpoint, None, silent), Options(dtype=dtype))

    first = current()
    assert first == current()
    assert first != current("float16")
    for path in detect(copy).sources.values():
        data = path.read_bytes()
        path.write_bytes(data.replace(b"\n", b" \n", 1) if path.suffix == ".json" else data)
    assert list(first["source"]) == list(current()["source"])
    change(copy / "config.json", _diffusers_version="9")
    assert current()["source"]["config.json"] != first["source"]["config.json"]


def test_a_moved_checkpoint_has_the_same_material(copy: Path, tmp_path: Path) -> None:
    before = source_hashes(detect(copy), None, silent)
    assert before == source_hashes(detect(copy.rename(tmp_path / "moved")), None, silent)


def test_an_unchanged_checkpoint_is_not_read_again(copy: Path, tmp_path: Path) -> None:
    memo, read = HashCache(IndexFile(tmp_path)), []
    for path in detect(copy).sources.values():
        os.utime(path, (1e9, 1e9))
    first = source_hashes(detect(copy), memo, lambda name, *_: read.append(name))
    assert len(set(read)) == len(first)
    read.clear()
    assert source_hashes(detect(copy), memo, lambda name, *_: read.append(name)) == first
    assert not read
    change(copy / "config.json", _diffusers_version="9")
    assert source_hashes(detect(copy), memo, lambda name, *_: read.append(name)) != first
    assert read == ["config.json"]


def test_loading_evaluates_nothing_and_casts_what_is_not_full(
    checkpoints: Path, tmp_path: Path
) -> None:
    config = convert(
        detect(checkpoints / "wan21-t2v"), tmp_path, KEY, Options(dtype="float32"), silent
    )
    path = tmp_path / "model.safetensors"
    model = load_network(DiT(config.dit), path, mx.bfloat16)
    assert model.blocks[0].self_attn.q.weight.dtype == mx.bfloat16
    assert model.blocks[0].self_attn.q.bias.dtype == mx.bfloat16
    assert model.blocks[0].modulation.dtype == mx.float32
    exact = load_network(DiT(config.dit), path, mx.float32)
    assert exact.blocks[0].self_attn.q.weight.dtype == mx.float32


def test_a_file_of_another_network_is_refused_with_lists(checkpoints: Path, tmp_path: Path) -> None:
    config = convert(detect(checkpoints / "wan21-t2v"), tmp_path, KEY, Options(), silent)
    with pytest.raises(CheckpointError, match=r"missing tensors: .* unknown tensors: ") as caught:
        load_network(DiT(config.dit), tmp_path / "vae.safetensors", mx.float32)
    assert len(str(caught.value).splitlines()) == 1


def test_a_damaged_model_file_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    config = convert(detect(checkpoints / "wan21-t2v"), tmp_path, KEY, Options(), silent)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="cut short"):
        load_network(DiT(config.dit), path, mx.float32)
