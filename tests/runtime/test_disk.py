"""Disks that are full or read-only: one line, nothing half written, nothing finished lost."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.workshop import PROMPT, SMALL, Place, inside


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB for a cache, where mounting is allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting is refused here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int) -> None:
    """Write a file that leaves so many bytes of a disk."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    (folder / "ballast").write_bytes(b"x" * (free - leave))


def failed(place: Place, *arguments: object) -> str:
    """The last line of a command that fails with code 1 and prints no path."""
    result = inside(*arguments, cwd=place.root)
    assert result.code == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert not result.paths
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize("leave", [0, 40_000, 150_000])
def test_a_full_disk_keeps_what_is_finished(leave: int, disk: Path, place: Place) -> None:
    cache = ("--cache", disk / "cache")
    text = place.made("encode-text", "--model", place.model, "--prompt", "x", *cache)
    fill(disk, leave)
    words = ("denoise", "--from", text, "--width", 256, "--height", 256, "--num-frames", 5)
    says = failed(place, *words, "--steps", 2, *cache)
    assert says.startswith("wanpipe: error: no space left for the cache")
    for entry in (disk / "cache").glob("[a-z]*/*"):
        place.entry(entry)
    assert not list((disk / "cache").glob(".tmp/*"))
    (disk / "ballast").unlink()
    assert place.do(*words, "--steps", 2, *cache).computed()


def test_a_model_that_does_not_fit_on_the_disk_is_refused_before_it_is_written(
    disk: Path, place: Place, checkpoints: Path
) -> None:
    fill(disk, 1_500_000)
    words = ("convert", "--checkpoint-dir", checkpoints / "wan21-t2v", "--cache", disk / "cache")
    assert "free; make room" in failed(place, *words)
    assert not list((disk / "cache").glob("convert/*"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses_to_write_is_one_line(
    number: int, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, *rest: object, **more: object) -> None:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "mkdir", refuse)
    says = failed(place, "encode-text", "--model", place.model, "--prompt", "x")
    full = number in (errno.ENOSPC, errno.EDQUOT)
    assert ("no space left for the cache" if full else "cannot be written") in says


def test_a_refused_lock_names_the_cache_and_the_remedy(
    studio: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock has an absolute path, also where the cache is ./cache."""

    def refuse(self: FileLock, *_: object, **__: object) -> None:
        path = str(Path(self.lock_file).absolute())
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(FileLock, "acquire", refuse)
    says = failed(studio, "encode-text", "--model", studio.model, "--prompt", "new")
    assert says.endswith("the cache at cache cannot be written (Permission denied); use --cache")


@pytest.mark.parametrize("command", ["pin", "unpin"])
def test_a_pin_in_a_read_only_cache_names_the_remedy(
    command: str, studio: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = next(studio.cache.glob("decode/*")).name
    studio.do("cache", "pin", key)

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(Path, "write_bytes", refuse)
    says = failed(studio, "cache", command, key)
    assert says.endswith("cannot be written (Read-only file system); use --cache")


def test_a_disk_that_fills_while_flushing_publishes_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    says = failed(place, "encode-text", "--model", place.model, "--prompt", "x")
    assert "no space left for the cache" in says
    assert not list(place.cache.glob("encode-text/*"))
    assert not list(place.cache.glob(".tmp/*"))


@pytest.fixture
def sealed(studio: Place, tmp_path: Path) -> Iterator[Place]:
    """The folder with the small film, with a cache that cannot be written."""
    target = tmp_path / "sealed"
    target.mkdir()
    bind = ["mount", "--bind", str(studio.cache), str(target)]
    try:
        bound = subprocess.run(bind, capture_output=True).returncode == 0
    except FileNotFoundError:
        bound = False
    if not bound:
        pytest.skip("mounting is refused here")
    subprocess.run(["mount", "-o", "remount,ro,bind", str(target)], check=True)
    yield studio
    subprocess.run(["umount", "-l", str(target)], check=True)


def test_a_read_only_cache_still_gives_what_is_in_it(sealed: Place, tmp_path: Path) -> None:
    cache = ("--cache", tmp_path / "sealed")
    assert not sealed.film(*cache, "--output", "again.mp4").computed()
    plan = sealed.film(*cache, "--seed", 5, "--dry-run")
    assert [event for event in plan.events if event.get("status") == "to compute"]


def test_a_read_only_cache_is_said_to_be_one(sealed: Place, tmp_path: Path) -> None:
    words = ("run", "--model", sealed.model, "--prompt", "new", *SMALL)
    says = failed(sealed, *words, "--cache", tmp_path / "sealed", "--output", "film.mp4")
    assert "cannot be written" in says
    assert "use --cache" in says


def test_a_damaged_entry_in_a_read_only_cache_is_not_used(sealed: Place, tmp_path: Path) -> None:
    frames = next(sealed.cache.glob("decode/*/frames"))
    chunk = max(frames.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    data = bytearray(chunk.read_bytes())
    data[-6] ^= 1
    chunk.chmod(0o644)
    chunk.write_bytes(data)
    words = ("run", "--model", sealed.model, "--prompt", PROMPT, *SMALL, "--output", "new.mp4")
    assert "cannot be written" in failed(sealed, *words, "--cache", tmp_path / "sealed")
    assert not (sealed.root / "new.mp4").exists()
