"""The store: what is published is found, what is not whole is not there, what is damaged is made
again.
"""

import errno
import io
import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from tests.store.builders import RecordingReport, arrays, fill, fill_model, forbidden, recipe, tree
from wanpipe.errors import StoreError, UsageError, WanpipeError
from wanpipe.store import Draft, Recipe, Store


def test_an_existing_entry_is_reused(tmp_path: Path) -> None:
    store = Store(tmp_path, RecordingReport())
    first = store.get_or_create(recipe(), fill())
    again = store.get_or_create(recipe(), forbidden)
    assert arrays(again) == arrays(first)
    assert [event["event"] for event in store.report.events] == ["computed", "reused"]


def test_reading_a_cache_creates_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    assert store.find("denoise", "0" * 32) is None
    assert store.index.read() == {}
    with pytest.raises(StoreError, match="no entry cat"):
        store.resolve("cat")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, MemoryError])
def test_interrupted_publish_leaves_no_entry(error: type[BaseException], tmp_path: Path) -> None:
    def interrupted(draft: Draft) -> dict:
        fill()(draft)
        raise error

    store = Store(tmp_path)
    with pytest.raises(error):
        store.get_or_create(recipe(), interrupted)
    assert not store.has("denoise", recipe().key)
    assert not list((tmp_path / ".tmp").iterdir())
    assert store.get_or_create(recipe(), fill())


@pytest.mark.parametrize(
    ("dtype", "remedy"), [("bfloat16", "try a model converted"), ("float32", "check guidance")]
)
def test_an_array_with_nan_leaves_no_entry(tmp_path: Path, dtype: str, remedy: str) -> None:
    made = Recipe(material=structs.replace(recipe().material, dtype=dtype), step=0)

    def broken(draft: Draft) -> dict:
        draft.write("latent", np.full((1, 1, 1, 2), np.nan, np.float32))
        return {}

    with pytest.raises(WanpipeError, match=f"NaN or infinite values, so it was not kept; {remedy}"):
        Store(tmp_path).get_or_create(made, broken)
    assert tree(tmp_path) == {f".locks/denoise-{made.key}": b""}


def test_a_damaged_entry_is_quarantined_and_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path, RecordingReport())
    first = store.get_or_create(recipe(), fill())
    expected = arrays(first)
    chunk = first.path / "latent" / "c.0.0.0.0"
    chunk.chmod(0o644)
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"x")
    again = store.get_or_create(recipe(), fill())
    assert arrays(again) == expected
    assert store.report.count("damaged") == 1
    assert "set aside" in store.report.remarks[0]
    assert len(list((tmp_path / ".damaged").iterdir())) == 1


def test_moving_the_cache_keeps_every_key(tmp_path: Path) -> None:
    there = Store(tmp_path / "there")
    made = [there.get_or_create(recipe(number), fill(number)) for number in range(3)]
    expected = [arrays(entry) for entry in made]
    shutil.move(tmp_path / "there", tmp_path / "here")
    here = Store(tmp_path / "here")
    found = [here.get_or_create(recipe(number), forbidden) for number in range(3)]
    assert [arrays(entry) for entry in found] == expected


def test_the_entry_published_first_stays(tmp_path: Path) -> None:
    store, other = Store(tmp_path), Store(tmp_path)

    def overtaken(draft: Draft) -> dict:
        fill(1)(draft)
        shutil.rmtree(tmp_path / ".locks")  # as if no lock were shared
        other.get_or_create(recipe(), fill(2))
        return {}

    entry = store.get_or_create(recipe(), overtaken)
    fresh = Store(tmp_path / "fresh").get_or_create(recipe(), fill(2))
    assert arrays(entry) == arrays(fresh)
    assert not list((tmp_path / ".tmp").iterdir())


def test_force_replaces_an_entry(tmp_path: Path) -> None:
    Store(tmp_path).get_or_create(recipe(), fill(1))
    forced = Store(tmp_path, force=True).get_or_create(recipe(), fill(2))
    assert arrays(forced) == arrays(Store(tmp_path / "fresh").get_or_create(recipe(), fill(2)))
    assert not list((tmp_path / ".tmp").iterdir())


def test_a_failing_force_keeps_the_old_entry(tmp_path: Path) -> None:
    entry = Store(tmp_path).get_or_create(recipe(), fill(1))
    with pytest.raises(AssertionError):
        Store(tmp_path, force=True).get_or_create(recipe(), forbidden)
    assert Store(tmp_path).find("denoise", entry.key)


def test_a_reference_is_a_path_a_name_or_a_unique_prefix(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = store.get_or_create(recipe(), fill())
    store.name("cat-1", entry.path)
    for reference in (str(entry.path), "cat-1", entry.key, entry.key[:6]):
        assert store.resolve(reference).key == entry.key


def test_a_name_moves_to_the_entry_named_last(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entries = [store.get_or_create(recipe(number), fill()) for number in range(2)]
    for entry in entries:
        store.name("best", entry.path)
    assert store.resolve("best").key == entries[1].key


@pytest.mark.parametrize("name", ["", "../x", "a b", ".hidden", "abcd", "a/b", "a\0b"])
def test_a_name_like_a_path_or_a_key_is_refused(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = store.get_or_create(recipe(), fill())
    with pytest.raises(UsageError, match="a name must be"):
        store.name(name, entry.path)


@pytest.mark.parametrize("content", ["../../etc", "decode/../..", "decode/zz", "", "\udcff"])
def test_a_name_that_points_elsewhere_is_invalid(content: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / ".names").mkdir()
    (tmp_path / ".names" / "cat").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(StoreError, match="no entry cat"):
        store.resolve("cat")


def test_an_ambiguous_prefix_names_what_it_could_mean(tmp_path: Path) -> None:
    keys = ["abcd" + "0" * 28, "abcd" + "1" * 28]
    for stage, key in zip(("denoise", "decode"), keys, strict=True):
        (tmp_path / stage / key).mkdir(parents=True)
    with pytest.raises(UsageError, match=r"abcd means 2 entries .*give more digits") as caught:
        Store(tmp_path).resolve("abcd")
    assert "denoise/abcd00000000" in str(caught.value)


@pytest.mark.parametrize("reference", ["abc", "0" * 32, "nothing", "../..", "a\0b", ""])
def test_an_unknown_reference_is_one_line(reference: str, tmp_path: Path) -> None:
    Store(tmp_path).get_or_create(recipe(), fill())
    with pytest.raises(StoreError) as caught:
        Store(tmp_path).resolve(reference)
    assert "\n" not in str(caught.value)


def test_a_draft_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    dead = tmp_path / ".tmp" / ("d" * 32)
    dead.mkdir(parents=True)
    (dead / "zarr.json").write_text("{}")
    dead.with_suffix(".lock").touch()
    dead.with_suffix(".since").write_text("0")
    Store(tmp_path).get_or_create(recipe(), fill())
    assert not list((tmp_path / ".tmp").iterdir())


def test_a_draft_of_a_running_process_stays(tmp_path: Path) -> None:
    def meanwhile(draft: Draft) -> dict:
        Store(tmp_path).get_or_create(recipe(1), fill())
        return fill()(draft)

    assert Store(tmp_path).get_or_create(recipe(0), meanwhile)


def test_a_resumable_draft_is_resumed(tmp_path: Path) -> None:
    model = recipe(stage="convert", resumable=True)

    def first(draft: Draft) -> dict:
        (draft.path / "part").write_text("half")
        raise KeyboardInterrupt

    def second(draft: Draft) -> dict:
        assert (draft.path / "part").read_text() == "half"
        return fill_model(draft)

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).get_or_create(model, first)
    assert Store(tmp_path).get_or_create(model, second)
    assert not list((tmp_path / ".tmp").iterdir())


REFUSALS = [
    *[(call, code) for call in ("mkdir", "rename", "fsync", "open") for code in (28, 30)],
    ("write", 28),
]


@pytest.mark.parametrize(("call", "code"), REFUSALS)
def test_a_full_or_read_only_disk_is_one_line_and_leaves_nothing(
    call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (errno.ENOSPC, errno.EROFS) == (28, 30)
    for moment in itertools.count():
        root = tmp_path / f"{call}-{moment}"
        disk = Disk(moment, call, code, root, monkeypatch)
        try:
            Store(root).get_or_create(recipe(), fill())
        except StoreError as error:
            assert disk.refused
            words = "no space left" if code == errno.ENOSPC else "cannot be written"
            assert words in str(error)
            assert "\n" not in str(error)
        finally:
            monkeypatch.undo()
        there = (root / "denoise" / recipe().key).exists()
        assert not there or Store(root).find("denoise", recipe().key)
        if not disk.refused:
            break
    assert there
    assert moment > 0


class Disk:
    """Refuses the `moment`-th and every later call of one kind below a folder."""

    def __init__(
        self, moment: int, call: str, code: int, root: Path, patch: pytest.MonkeyPatch
    ) -> None:
        self.left, self.call, self.code, self.root = moment, call, code, root
        self.refused = False
        owner: Any = io if call in ("open", "write") else os
        name = "open" if call == "write" else call
        self.real = getattr(owner, name)
        patch.setattr(owner, name, self.guarded)

    def guarded(self, *arguments: Any, **options: Any) -> Any:
        target = arguments[0]
        ours = self.call == "fsync" or str(target).startswith(str(self.root))
        writes = self.call not in ("open", "write") or "w" in str([*arguments[1:], options])
        if not (ours and writes):
            return self.real(*arguments, **options)
        self.left -= 1
        if self.left >= 0:
            return self.real(*arguments, **options)
        self.refused = True
        if self.call == "write":
            return self.real("/dev/full", *arguments[1:], **options)
        name = None if self.call == "fsync" else str(target)
        raise OSError(self.code, os.strerror(self.code), name)
