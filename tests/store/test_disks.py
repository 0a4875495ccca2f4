"""Disks of every kind: stages on other disks, network drives, full disks, links to elsewhere."""

import errno
import fcntl
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.store.builders import (
    RecordingReport,
    arrays,
    chain,
    fill,
    fill_model,
    forbidden,
    recipe,
    text,
    tree,
)
from wanpipe.cache.archive import export, import_
from wanpipe.cache.collect import collect
from wanpipe.cache.gc import Limits, Plan, remove
from wanpipe.cache.verify import find_damaged
from wanpipe.errors import StoreError
from wanpipe.store import Draft, Store
from wanpipe.store.index_file import FILE, HashCache, IndexFile

OWN = (".tmp", ".locks", ".names", ".pins", ".damaged", ".runs", ".models")


def refuse(call: str, code: int, when: Callable[..., bool], patch: pytest.MonkeyPatch) -> None:
    """Have a function of os refuse calls with an error."""
    real = getattr(os, call)

    def refusing(*arguments: Any, **options: Any) -> Any:
        if when(*arguments):
            raise OSError(code, os.strerror(code), str(arguments[0]))
        return real(*arguments, **options)

    patch.setattr(os, call, refusing)


def two_disks(disk: Path, patch: pytest.MonkeyPatch) -> None:
    """Let what is below `disk` be on another disk, so that renames do not cross its border."""

    def crosses(source: Path, target: Path) -> bool:
        return len({Path(one).resolve().is_relative_to(disk) for one in (source, target)}) == 2

    refuse("rename", errno.EXDEV, crosses, patch)


@pytest.fixture(params=["link", "mount"])
def elsewhere(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Store:
    """A store whose steps are on another disk, by a link or by a mount that looks like a folder."""
    root, disk = tmp_path / "cache", tmp_path / "disk"
    root.mkdir()
    if request.param == "link":
        disk.mkdir()
        (root / "denoise").symlink_to(disk)
    else:
        disk = root / "denoise"
        disk.mkdir()
    two_disks(disk, monkeypatch)
    return Store(root, RecordingReport())


def left_over(root: Path) -> list[Path]:
    """Return what is in scratch folders."""
    return [path for folder in root.rglob(".tmp") for path in folder.iterdir()]


def test_a_stage_on_another_disk_is_used_as_any(elsewhere: Store, tmp_path: Path) -> None:
    made = elsewhere.get_or_create(recipe(), fill())
    assert made.path == elsewhere.root / "denoise" / made.key
    assert arrays(elsewhere.get_or_create(recipe(), forbidden)) == arrays(made)
    forced = Store(elsewhere.root, force=True).get_or_create(recipe(), fill(2))
    assert arrays(forced) == arrays(Store(tmp_path / "other").get_or_create(recipe(), fill(2)))
    for reference in (made.path, made.path.resolve(), made.key[:8]):
        assert elsewhere.resolve(str(reference)).path == made.path
    assert not left_over(elsewhere.root.resolve())


def test_a_damaged_entry_on_another_disk_is_quarantined_there(elsewhere: Store) -> None:
    made = elsewhere.get_or_create(recipe(), fill())
    shutil.rmtree(made.path / "x0")
    assert elsewhere.find("denoise", made.key) is None
    assert len(collect(elsewhere, Limits())) == 1
    assert not [*elsewhere.root.rglob(".damaged/*"), *(elsewhere.root / "denoise").glob("*/x0")]


def test_gc_and_import_work_across_disks(elsewhere: Store, tmp_path: Path) -> None:
    words = text(elsewhere)
    steps = chain(elsewhere, words, 3)
    export([steps[-1]], tmp_path / "run.zip", elsewhere)
    gone = remove(elsewhere, Plan(elsewhere, Limits(max_bytes=0)).removed)
    assert {row.key for row in gone} == {steps[0].key, steps[1].key, steps[2].key, words.key}
    assert not elsewhere.index.read()
    import_(tmp_path / "run.zip", elsewhere)
    assert arrays(elsewhere.resolve(steps[-1].key))
    assert not left_over(elsewhere.root)


def victims(folder: Path, key: str) -> None:
    """Make files of the user with every kind of name that could be taken for one of ours."""
    folder.mkdir()
    for name in (key, f"convert-{key}", f"decode-{key}-01234567", "letters", f"{'d' * 32}.old"):
        (folder / name).mkdir()
        (folder / name / "letter.txt").write_text("dear")
    for name in (f"{key}.json", f"{key}.lock", f"denoise-{key}", "cat", f"{key}.since", "x.txt"):
        (folder / name).write_text("mine")


@pytest.mark.parametrize("name", OWN)
def test_nothing_behind_a_link_is_removed(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "cache", RecordingReport())
    steps = chain(store, text(store), 2)
    (tmp_path / "cache" / name).exists() and shutil.rmtree(tmp_path / "cache" / name)
    victims(tmp_path / "home", "a" * 32)
    before = tree(tmp_path / "home")
    (tmp_path / "cache" / name).symlink_to(tmp_path / "home")
    os.utime(tmp_path / "home" / f"convert-{'a' * 32}", (0, 0))
    collect(Store(store.root), Limits(older_than=1, max_bytes=0))
    Store(store.root).get_or_create(recipe(7), fill(7))
    chunk = steps[0].path / "latent"
    shutil.rmtree(chunk, ignore_errors=True)
    list(find_damaged(Store(store.root)))
    after = tree(tmp_path / "home")
    assert before.items() <= after.items()


@pytest.mark.parametrize(
    ("link", "part"),
    [(link, part) for link in ("symbolic", "hard") for part in ("part", "folder/part")]
    + [("symbolic", "")],
)
def test_a_link_in_a_resumable_draft_is_not_written_through(
    link: str, part: str, tmp_path: Path
) -> None:
    model = recipe(stage="convert", resumable=True)
    draft = tmp_path / "cache" / ".tmp" / f"convert-{model.key}"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "part").write_text("mine")
    (draft / part).parent.mkdir(parents=True)
    if link == "hard":
        os.link(outside / "part", draft / part)
    else:
        (draft / part).symlink_to(outside / "part" if part else outside)

    def overwrite(made: Draft) -> dict[str, Any]:
        (made.path / (part or "part")).parent.mkdir(exist_ok=True)
        (made.path / (part or "part")).write_text("ours")
        return fill_model(made)

    Store(tmp_path / "cache").get_or_create(model, overwrite)
    assert (outside / "part").read_text() == "mine"
    assert (outside / "part").stat().st_mode & stat.S_IWUSR


def test_a_linked_index_file_is_replaced(tmp_path: Path) -> None:
    import sqlite3

    (tmp_path / "cache").mkdir()
    with sqlite3.connect(tmp_path / "mine.db") as database:
        database.execute("CREATE TABLE letters (text TEXT)")
    before = (tmp_path / "mine.db").read_bytes()
    (tmp_path / "cache" / FILE).symlink_to(tmp_path / "mine.db")
    store = Store(tmp_path / "cache")
    store.get_or_create(recipe(), fill())
    assert (tmp_path / "mine.db").read_bytes() == before
    assert len(store.index.read()) == 1
    assert not (tmp_path / "cache" / FILE).is_symlink()


def test_an_export_follows_no_link(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    entry = store.get_or_create(recipe(), fill())
    (tmp_path / "secret").write_text("mine")
    (entry.path / "notes").symlink_to(tmp_path / "secret")
    shutil.rmtree(store.root / "encode-text", ignore_errors=True)
    lonely = Store(tmp_path / "lonely")
    made = text(lonely)
    (made.path / "notes").symlink_to(tmp_path / "secret")
    export([made], tmp_path / "text.zip", lonely)
    assert b"mine" not in (tmp_path / "text.zip").read_bytes()
    chunk = made.path / "prompt" / "c.0.0"
    chunk.rename(tmp_path / "chunk")
    chunk.symlink_to(tmp_path / "chunk")
    with pytest.raises(StoreError, match="is a link, which is not exported"):
        export([made], tmp_path / "again.zip", lonely)
    assert not (tmp_path / "again.zip").exists()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_disk_that_cannot_flush_folders_is_used_with_one_remark(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse("fsync", code, lambda file: stat.S_ISDIR(os.fstat(file).st_mode), monkeypatch)
    store = Store(tmp_path / "cache", RecordingReport())
    for number in range(2):
        store.get_or_create(recipe(number), fill(number))
    assert len(store.report.remarks) == 1
    assert "flushing of folders, so a power loss may lose" in store.report.remarks[0]
    assert not left_over(store.root)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_locks_is_used_with_one_remark(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    store = Store(tmp_path / "cache", RecordingReport())
    for number in range(2):
        store.get_or_create(recipe(number), fill(number))
    assert len(store.report.remarks) == 1
    assert "no locks, so two commands may compute the same entry" in store.report.remarks[0]
    assert not left_over(store.root)
    collect(store, Limits(max_bytes=0))
    assert not store.index.read()


def test_without_locks_the_draft_of_another_process_stays_for_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for age, name in ((60, "a" * 32), (2 * 86400, "b" * 32)):
        draft = tmp_path / ".tmp" / name
        draft.mkdir(parents=True)
        draft.with_suffix(".lock").touch()
        os.utime(draft.with_suffix(".lock"), (time.time() - age,) * 2)
    Store(tmp_path).get_or_create(recipe(), fill())
    assert {path.name for path in left_over(tmp_path)} == {"a" * 32, f"{'a' * 32}.lock"}


@pytest.mark.parametrize("call", ["mkdir", "rename"])
def test_gc_frees_a_full_disk(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "cache")
    words = text(store)
    chain(store, words, 3)
    sizes = sum(row.bytes for row in store.index.read().values())
    refuse(call, errno.ENOSPC, lambda path, *_: "cache" in str(path), monkeypatch)
    gone = remove(store, Plan(store, Limits(max_bytes=0)).removed)
    monkeypatch.undo()
    assert sum(row.bytes for row in gone) == sizes
    assert not Store(store.root).index.read()
    assert not left_over(store.root)


def test_files_of_the_future_are_hashed_once(tmp_path: Path) -> None:
    file, read = tmp_path / "file", []
    file.write_bytes(b"x" * 100)
    os.utime(file, (time.time() + 86400,) * 2)

    def hasher(path: Path) -> str:
        read.append(path)
        return "0" * 32

    for _ in range(3):
        assert HashCache(IndexFile(tmp_path)).hash(file, hasher) == "0" * 32
    assert len(read) == 1


CLUTTER = (".DS_Store", "Thumbs.db", "._x", f"._{'a' * 32}", "desktop.ini")


def test_what_file_managers_add_breaks_nothing(tmp_path: Path) -> None:
    import zipfile

    store = Store(tmp_path / "cache")
    last = chain(store, text(store), 2)[-1]
    store.name("cat", last.path)
    store.pins.set(last.key, f"denoise/{last.key}")
    (store.root / ".damaged").mkdir()
    folders = [path for path in [store.root, *store.root.rglob("*")] if path.is_dir()]
    for folder in folders:
        for name in CLUTTER:
            (folder / name).write_bytes(b"\0\0\0\1Bud1")
    assert list(find_damaged(store)) == []
    assert store.find("denoise", last.key)
    assert set(store.names.all()) == {"cat"}
    export([last], tmp_path / "run.zip", store)
    with zipfile.ZipFile(tmp_path / "run.zip", "a") as archive:
        for name in (*CLUTTER, "__MACOSX/denoise/._zarr.json", f"denoise/{last.key}/.DS_Store"):
            archive.writestr(name, b"Bud1")
    there = Store(tmp_path / "there")
    import_(tmp_path / "run.zip", there)
    assert arrays(there.resolve(last.key)) == arrays(last)
    assert not list(there.root.rglob(".DS_Store"))
    collect(store, Limits(older_than=0.0))
    assert store.find("denoise", last.key)


def test_a_read_only_place_hints_at_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse("mkdir", errno.EROFS, lambda *_: True, monkeypatch)
    for root in (Path("cache"), tmp_path / "new" / "cache"):
        with pytest.raises(StoreError, match=r"cache cannot be written \(.*\); use --cache"):
            Store(root).get_or_create(recipe(), fill())


def test_only_entries_of_this_cache_are_quarantined(tmp_path: Path) -> None:
    """A folder of somebody else's in a stage folder, or anywhere, stays where it is."""
    store = Store(tmp_path / "cache")
    entry = store.get_or_create(recipe(), fill())
    for folder in (store.root / "denoise" / "foo", tmp_path / "x" / "denoise" / ("f" * 32)):
        folder.mkdir(parents=True)
        (folder / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
        for use in (store.resolve, store.peek_reference):
            with pytest.raises(StoreError, match="is not an entry of a wanpipe cache"):
                use(str(folder))
        assert folder.is_dir()
    assert store.resolve(entry.key)
    assert not (store.root / ".damaged").exists()


STEPS = ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")


class Killed(BaseException):
    """Raised in place of every operation after the kill."""


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_kill_at_any_operation_of_force_loses_nothing(
    exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old entry or the new one is there after the next command, and nothing else."""
    old, new = (arrays(Store(tmp_path / str(n)).get_or_create(recipe(), fill(n))) for n in (1, 2))
    moment, ended = 0, False
    while not ended:
        root = tmp_path / f"cache-{moment}"
        Store(root).get_or_create(recipe(), fill(1))
        with pytest.MonkeyPatch.context() as patch:
            left = [moment]
            for call in STEPS:
                patch.setattr(os, call, dying(getattr(os, call), left))
            if not exchanges:
                patch.setattr("wanpipe.runtime.disk.rename_exchange", unsupported)
            try:
                Store(root, force=True).get_or_create(recipe(), fill(2))
                ended = True
            except Killed:
                pass
        Store(root).get_or_create(recipe(9), fill(9))
        found = Store(root).find("denoise", recipe().key)
        assert found is not None, moment
        assert arrays(found) in ((new,) if ended else (old, new)), (moment, ended)
        assert not left_over(root), moment
        assert not (root / ".damaged").exists(), moment
        moment += 1
    assert moment > 20


def dying(real: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    def counted(*arguments: Any, **options: Any) -> Any:
        # zarr writes in threads of its own, where this error would end its event loop
        if threading.current_thread() is threading.main_thread():
            left[0] -= 1
            if left[0] < 0:
                raise Killed
        return real(*arguments, **options)

    return counted


def unsupported(one: Path, other: Path) -> None:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(one))
