"""What a user asked for gets into place whole, where links lead to, and nothing else is touched."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from wanpipe.errors import UsageError
from wanpipe.runtime import disk
from wanpipe.runtime.output import check_writable, replace_output

ROOT = Path(__file__).parent.parent.parent


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, text: str) -> None:
    with replace_output(path) as draft:
        draft.write_text(text)


def write_folder(path: Path, count: int, text: str) -> None:
    with replace_output(path) as draft:
        draft.mkdir()
        for number in range(count):
            (draft / str(number)).write_text(text)


def contents(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("existing", [True, False])
def test_a_link_stays_and_its_target_is_replaced(existing: bool, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "here").mkdir()
    link, target = tmp_path / "here" / "film.mp4", tmp_path / "disk" / "film"
    if existing:
        target.write_text("old")
    link.symlink_to("../disk/film")
    write(link, "new")
    assert link.is_symlink() and target.read_text() == "new"
    assert (names(tmp_path / "here"), names(tmp_path / "disk")) == (["film.mp4"], ["film"])


def test_a_link_to_a_folder_stays(tmp_path: Path) -> None:
    write_folder(tmp_path / "frames", 3, "old")
    (tmp_path / "link").symlink_to("frames")
    write_folder(tmp_path / "link", 2, "new")
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "frames") == ["new", "new"]
    assert names(tmp_path) == ["frames", "link"]


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(UsageError, match="a link that leads to itself"):
        write(tmp_path / "a", "new")
    assert names(tmp_path) == ["a", "b"]


def test_what_is_there_stays_where_the_check_refuses_it(tmp_path: Path) -> None:
    write(tmp_path / "film", "old")

    def refuse() -> None:
        raise UsageError("keep it")

    with pytest.raises(UsageError), replace_output(tmp_path / "film", refuse) as draft:
        draft.write_text("new")
    assert (tmp_path / "film").read_text() == "old"
    assert names(tmp_path) == ["film"]


def test_trying_out_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "film.mp4")
    assert not names(tmp_path)
    with pytest.raises(OSError):
        check_writable(Path("/proc/film.mp4"))


def python(code: str, cwd: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )


KILLED = """
import os, signal
from pathlib import Path
from wanpipe.runtime.output import replace_output
with replace_output(Path("film.mp4")) as draft:
    draft.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    assert python(KILLED, tmp_path).returncode == -9
    assert len(names(tmp_path)) == 1
    (tmp_path / ".wanpipe-notes").mkdir()
    (tmp_path / f".wanpipe-{'0' * 32}").symlink_to("/")
    write(tmp_path / "other.mp4", "new")
    assert names(tmp_path) == [f".wanpipe-{'0' * 32}", ".wanpipe-notes", "other.mp4"]


def test_a_draft_of_a_living_process_stays(tmp_path: Path) -> None:
    with replace_output(tmp_path / "slow") as slow:
        slow.write_text("slow")
        write(tmp_path / "fast", "fast")
        assert slow.read_text() == "slow"
    assert names(tmp_path) == ["fast", "slow"]


def test_a_file_system_without_locks_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with replace_output(tmp_path / "slow") as slow:
        slow.write_text("slow")
        write(tmp_path / "fast", "fast")
    assert names(tmp_path) == ["fast", "slow"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_many_write_the_same_folder_and_the_last_one_stays_whole(
    exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanges:
        monkeypatch.setattr(disk, "rename_exchange", no_exchange)
    for _ in range(5):
        ready, failed = threading.Barrier(6), []

        def one(text: str, ready: threading.Barrier, failed: list[BaseException]) -> None:
            try:
                with replace_output(tmp_path / "frames") as draft:
                    draft.mkdir()
                    for number in range(3):
                        (draft / str(number)).write_text(text)
                    ready.wait(30)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=one, args=(text, ready, failed)) for text in "abcdef"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        assert contents(tmp_path / "frames") in [[text] * 3 for text in "abcdef"]
        assert names(tmp_path) == ["frames"]


def no_exchange(*_: object) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


# ends a copy of the process before each of its file operations in turn; prints what is left
CRASHES = """
import errno, os, shutil, sys
from pathlib import Path
from wanpipe.runtime import disk, output
from filelock import FileLock

def refuse(*_):
    raise OSError(errno.ENOSYS, "no exchange")

def write(text):
    with output.replace_output(Path("frames")) as draft:
        draft.mkdir()
        for number in range(3):
            (draft / str(number)).write_text(text)

EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "ctypes.dlsym"}
if sys.argv[1] == "two steps":
    disk.rename_exchange = refuse
at = 0
while True:
    shutil.rmtree("frames", ignore_errors=True)
    write("old")
    left = at = at + 1
    child = os.fork()
    if not child:
        def crash(event, _):
            global left
            if event in EVENTS:
                left -= 1
                if not left:
                    os._exit(9)
        sys.addaudithook(crash)
        write("new")
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    there = Path("frames").exists()
    if not there:
        assert sys.argv[1] == "two steps"
    output.sweep(Path("."))  # as the next one that writes there does
    texts = {path.read_text() for path in Path("frames").iterdir()}
    assert len(texts) == 1 and len(list(Path("frames").iterdir())) == 3, (at, texts)
    young = [path for path in Path(".").glob(".wanpipe-*") if any(path.iterdir())]
    assert not young, (at, young)
    print(at, *texts)
    if code == 0:
        break
"""


@pytest.mark.parametrize("way", ["one step", "two steps"])
def test_a_folder_is_the_old_or_the_new_one_wherever_a_process_is_killed(
    way: str, tmp_path: Path
) -> None:
    done = python(CRASHES, tmp_path, way)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) > 15
    assert {line.split()[1] for line in lines} == {"old", "new"}
    assert lines[-1].endswith("new")
