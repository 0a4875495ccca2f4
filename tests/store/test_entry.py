"""Entries on disk: what they look like to others, and that no changed byte goes unnoticed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xxhash
import zarr

from tests.store.shelf import arrays, fill, recipe
from wanpipe.errors import WanpipeError
from wanpipe.store import DamageError, Draft, Entry, Store
from wanpipe.store.draft import LateDraft
from wanpipe.store.entry import read_entry


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    return Store(tmp_path / "cache").obtain(recipe(), fill())


def seal(draft: Draft) -> None:
    draft.seal({"stage": "decode", "key": "0", "material": {}, "inputs": {}, "made": {}})


def test_zarr_alone_shows_everything(entry: Entry) -> None:
    group = zarr.open_group(str(entry.path), mode="r")
    record = group.attrs["wanpipe"]
    latent = group["latent"]
    assert latent.metadata.dimension_names == ("C", "F", "H", "W")
    assert latent.dtype == np.float32
    assert latent.chunks == latent.shape
    assert (record["stage"], record["key"]) == ("decode", entry.key)
    assert record["material"] == {"schema": 1, "stage": "decode", "algorithm": 1, "number": 0}
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
def test_one_flipped_byte_anywhere_is_noticed(name: str, entry: Entry) -> None:
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
def test_a_missing_or_cut_file_is_noticed(name: str, entry: Entry) -> None:
    file = entry.path / name
    data = file.read_bytes()
    file.unlink()
    assert not is_sound(entry.path)
    file.write_bytes(data[:-3])
    assert not is_sound(entry.path)


def test_the_arrays_of_another_entry_are_noticed(entry: Entry, tmp_path: Path) -> None:
    other = Store(tmp_path / "cache").obtain(recipe(1), fill(1))
    shutil.rmtree(entry.path / "latent")
    shutil.copytree(other.path / "latent", entry.path / "latent")
    with pytest.raises(DamageError, match="latent does not have the digest"):
        read_entry(entry.path).verify()


def test_an_entry_under_another_key_is_noticed(entry: Entry) -> None:
    moved = entry.path.rename(entry.path.with_name("f" * 32))
    with pytest.raises(DamageError, match="not those it was published with"):
        read_entry(moved)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_array_that_is_not_finite_is_refused(value: float, tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32)
    array[3] = value
    with pytest.raises(WanpipeError, match="NaN or infinite"):
        Draft(tmp_path / "draft").write("latent", array, "L")


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_a_constant_array_is_refused(dtype: str, tmp_path: Path) -> None:
    with pytest.raises(WanpipeError, match="is 3 everywhere"):
        Draft(tmp_path / "draft").write("frames", np.full((4, 5), 3, dtype), "TY")


def test_blocks_that_come_in_any_size_make_the_same_array(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (11, 3, 2), dtype=np.uint8)
    digests = []
    for number, cuts in enumerate(([], [1], [4, 8], [3, 4, 5, 10])):
        draft = Draft(tmp_path / str(number))
        with draft.stream("frames", array.shape, "uint8", "TYX", rows=4) as sink:
            for block in np.split(array, cuts):
                sink.append(block)
        seal(draft)
        digests.append(draft.digest["frames"])
        assert np.array_equal(zarr.open_group(str(draft.path))["frames"][...], array)
    assert set(digests) == {xxhash.xxh3_128_hexdigest(array.tobytes())}


def test_a_late_draft_writes_what_an_early_one_writes(tmp_path: Path) -> None:
    drafts = [Draft(tmp_path / "early"), LateDraft(tmp_path / "late")]
    for draft in drafts:
        fill()(draft)
    assert not (tmp_path / "late" / "latent").exists()
    for draft in drafts:
        seal(draft)
    early, late = (
        {path.relative_to(draft.path): path.read_bytes() for path in draft.path.rglob("c.*")}
        for draft in drafts
    )
    assert early == late
    assert drafts[0].statistics == drafts[1].statistics


def test_blocks_are_read_a_chunk_at_a_time(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (10, 3, 2), dtype=np.uint8)

    def write(draft: Draft) -> dict:
        with draft.stream("frames", array.shape, "uint8", "TYX", rows=4) as sink:
            sink.append(array)
        return {}

    entry = Store(tmp_path).obtain(recipe(), write)
    assert [len(block) for block in entry.blocks("frames")] == [4, 4, 2]
    assert np.array_equal(entry.read("frames"), array)
    assert entry.shape("frames") == array.shape


def test_a_plain_file_is_part_of_an_entry(tmp_path: Path) -> None:
    def write(draft: Draft) -> dict:
        (draft.path / "config.json").write_text("{}")
        draft.attach("config.json")
        return {}

    store = Store(tmp_path)
    entry = store.obtain(recipe(stage="convert"), write)
    assert arrays(entry) == {}
    (entry.path / "config.json").chmod(0o644)
    (entry.path / "config.json").write_text("[]")
    assert store.find("convert", entry.key) is None
