"""Entries on disk: what they look like to others, and that no changed byte goes unnoticed."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
import zarr

from tests.store.builders import arrays, fill, frames, recipe
from wanpipe.errors import StoreError, WanpipeError
from wanpipe.store import DamageError, Draft, Entry, Store
from wanpipe.store.entry import read_entry, seal_of
from wanpipe.store.schema import STAGES


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    return Store(tmp_path / "cache").get_or_create(recipe(), fill())


def draft_of(path: Path, stage: str = "denoise") -> Draft:
    return Draft(path, STAGES[stage])


def seal(draft: Draft) -> None:
    draft.seal({"stage": "x", "key": "0", "material": {}, "inputs": {}, "made": {}})


def test_zarr_alone_shows_everything(entry: Entry) -> None:
    group = zarr.open_group(str(entry.path), mode="r")
    record = group.attrs["wanpipe"]
    latent = group["latent"]
    assert latent.metadata.dimension_names == ("C", "F", "H", "W")
    assert latent.dtype == np.float32
    assert latent.chunks == latent.shape
    assert (record["stage"], record["key"]) == ("denoise", entry.key)
    assert record["material"] == recipe().material_dict
    digest = xxhash.xxh3_128_hexdigest(latent[...].tobytes())
    assert record["digest"]["latent"] == digest
    assert set(record["digest"]) == {"latent", "x0", "solver/sample"}
    mean = record["made"]["statistics"]["latent"]["mean"]
    assert mean == pytest.approx(float(latent[...].mean()), abs=1e-6)


def test_the_metadata_of_an_array_are_the_pinned_ones(entry: Entry) -> None:
    assert json.loads((entry.path / "latent" / "zarr.json").read_bytes()) == {
        "shape": [4, 2, 3, 5],
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 2, 3, 5]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 0.0,
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "zstd", "configuration": {"level": 1, "checksum": False}},
            {"name": "crc32c"},
        ],
        "attributes": {},
        "dimension_names": ["C", "F", "H", "W"],
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def test_committed_files_are_read_only(entry: Entry) -> None:
    files = [path for path in entry.path.rglob("*") if path.is_file()]
    assert files
    assert {path.stat().st_mode & 0o777 for path in files} == {0o444}


def entry_files() -> list[str]:
    parts = ("zarr.json", "c.0.0.0.0")
    return [
        "zarr.json",
        *(f"{name}/{part}" for name in ("latent", "solver/sample") for part in parts),
    ]


def is_sound(path: Path) -> bool:
    try:
        read_entry(path).verify()
    except DamageError:
        return False
    return True


def says(data: bytes) -> object:
    """What JSON says: other white space and the last digit of a float may say the same."""
    try:
        return json.loads(data)
    except ValueError:
        return data


@pytest.mark.parametrize("name", entry_files())
def test_a_changed_byte_in_any_file_is_damage(name: str, entry: Entry) -> None:
    file = entry.path / name
    data = file.read_bytes()
    file.chmod(0o644)
    for place in range(0, len(data), 7):
        flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        if says(flipped) != says(data):
            file.write_bytes(flipped)
            assert not is_sound(entry.path), (name, place)
    file.write_bytes(data)
    assert is_sound(entry.path)


@pytest.mark.parametrize("name", entry_files())
def test_a_missing_or_truncated_file_is_damage(name: str, entry: Entry) -> None:
    file = entry.path / name
    data = file.read_bytes()
    file.unlink()
    assert not is_sound(entry.path)
    file.write_bytes(data[:-3])
    assert not is_sound(entry.path)


def test_the_arrays_of_another_entry_are_damage(entry: Entry, tmp_path: Path) -> None:
    other = Store(tmp_path / "cache").get_or_create(recipe(1), fill(1))
    shutil.rmtree(entry.path / "latent")
    shutil.copytree(other.path / "latent", entry.path / "latent")
    with pytest.raises(DamageError, match="latent does not have the digest"):
        read_entry(entry.path).verify()


def test_an_entry_under_another_key_is_damage(entry: Entry) -> None:
    moved = entry.path.rename(entry.path.with_name("f" * 32))
    with pytest.raises(DamageError, match="not those it was published with"):
        read_entry(moved)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_array_that_is_not_finite_is_refused(value: float, tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(6, 1, 1, 1)
    array[3] = value
    draft = draft_of(tmp_path / "draft")
    draft.write("latent", array)
    with pytest.raises(WanpipeError, match="NaN or infinite"):
        seal(draft)


@pytest.mark.parametrize(("stage", "name"), [("denoise", "x0"), ("decode", "frames")])
def test_a_constant_array_is_refused(stage: str, name: str, tmp_path: Path) -> None:
    draft = draft_of(tmp_path / "draft", stage)
    draft.write(name, np.full((4, 5, 2, 3), 3, STAGES[stage].array(name).dtype))
    with pytest.raises(WanpipeError, match="is 3 everywhere"):
        seal(draft)


def one_color(stage: str, name: str) -> np.ndarray:
    """Channels that differ from each other and are constant in themselves."""
    axes = STAGES[stage].array(name).axes
    shape = [3 if axis == "C" else 8 for axis in axes]
    along = np.arange(3).reshape([3 if axis == "C" else 1 for axis in axes])
    return np.broadcast_to(along, shape).astype(STAGES[stage].array(name).dtype)


@pytest.mark.parametrize("size", [1, 3, 8])  # of the blocks that come
@pytest.mark.parametrize(
    ("stage", "name"), [("denoise", "x0"), ("denoise", "latent"), ("decode", "frames")]
)
def test_a_video_of_one_color_in_each_channel_is_refused(
    stage: str, name: str, size: int, tmp_path: Path
) -> None:
    array = one_color(stage, name)
    blocks = [array[start : start + size] for start in range(0, len(array), size)]
    with (
        pytest.raises(WanpipeError, match=f"{name} is constant in every channel"),
        draft_of(tmp_path / "draft", stage).stream(name, array.shape) as writer,
    ):
        for block in blocks:
            writer.append(block)
    changed = array.copy()
    changed[-1, -1, -1, -1] += 1  # one pixel of one channel
    with draft_of(tmp_path / "other", stage).stream(name, array.shape) as writer:
        for start in range(0, len(array), size):
            writer.append(changed[start : start + size])


@pytest.mark.parametrize(
    ("dtype", "says"),
    [("float32", "check guidance, LoRAs and weights"), ("bfloat16", "--dtype float32")],
)
def test_the_remedy_for_nan_fits_the_dtype(dtype: str, says: str, tmp_path: Path) -> None:
    draft = Draft(tmp_path / "draft", STAGES["denoise"], dtype)
    draft.write("latent", np.full((4, 1, 1, 2), np.nan, np.float32))
    with pytest.raises(WanpipeError, match=says):
        seal(draft)


def test_blocks_that_come_in_any_size_make_the_same_array(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (11, 3, 2, 3), dtype=np.uint8)
    digests = []
    for number, cuts in enumerate(([], [1], [4, 8], [3, 4, 5, 10])):
        draft = draft_of(tmp_path / str(number), "decode")
        with draft.stream("frames", array.shape) as sink:
            for block in np.split(array, cuts):
                sink.append(block)
        seal(draft)
        digests.append(draft.digest["frames"])
        assert np.array_equal(zarr.open_group(str(draft.path))["frames"][...], array)
    assert set(digests) == {xxhash.xxh3_128_hexdigest(array.tobytes())}


def test_arrays_stay_in_memory_until_the_draft_is_sealed(tmp_path: Path) -> None:
    draft = draft_of(tmp_path / "draft")
    fill()(draft)
    assert not list(draft.path.iterdir())
    seal(draft)
    assert not draft.pending
    assert {path.name for path in draft.path.iterdir()} == {"latent", "x0", "solver", "zarr.json"}


def test_blocks_are_read_a_chunk_at_a_time(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = frames(store, store.get_or_create(recipe(), fill()))
    assert [len(block) for block in entry.blocks("frames")] == [4, 4, 1]
    assert entry.read("frames").shape == entry.shape("frames") == (9, 6, 4, 3)


@pytest.mark.parametrize("error", [5, 13])
def test_a_read_error_is_not_damage(
    error: int, entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def refused(path: Path, *rest: Any, **options: Any) -> Any:
        if path.name.startswith("c."):
            raise OSError(error, os.strerror(error), str(path))
        return real(path, *rest, **options)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(StoreError, match="it was left as it is") as caught:
        Store(entry.root).find(entry.stage, entry.key)
    assert not isinstance(caught.value, DamageError)
    monkeypatch.undo()
    assert Store(entry.root).find(entry.stage, entry.key)


LINKS = [
    {"inputs": {"text": "../../victim"}},
    {"inputs": {"text": "f" * 32}},
    {"inputs": {"victim": "f" * 32}},
    {"parent": "f" * 32},
    {"step": 5},
    {"step": -1},
    {"step": "0"},
    {"stage": "decode"},
    {"files": {"../outside": "f" * 32}},
    {"digest": {"../outside": "f" * 32}},
    {"made": {}},
    {"more": 1},
]


@pytest.mark.parametrize("change", LINKS)
def test_a_false_record_is_damage_even_with_a_valid_seal(
    change: dict[str, Any], entry: Entry
) -> None:
    file = entry.path / "zarr.json"
    file.chmod(0o644)
    group = json.loads(file.read_bytes())
    group["attributes"]["wanpipe"].update(change)
    group["attributes"]["wanpipe"]["seal"] = seal_of(entry.path, group)
    file.write_text(json.dumps(group))
    with pytest.raises(DamageError):
        read_entry(entry.path)


def test_a_plain_file_is_part_of_an_entry(tmp_path: Path) -> None:
    def write(draft: Draft) -> dict:
        (draft.path / "config.json").write_text("{}")
        draft.attach("config.json")
        return {}

    store = Store(tmp_path)
    entry = store.get_or_create(recipe(stage="convert"), write)
    assert arrays(entry) == {}
    (entry.path / "config.json").chmod(0o644)
    (entry.path / "config.json").write_text("[]")
    assert store.find("convert", entry.key) is None
