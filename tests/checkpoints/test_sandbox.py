"""A child process with limits: what it gives, and how each way to go wrong ends in one line."""

import sys
from pathlib import Path

import pytest

from wanpipe.checkpoints import sandbox
from wanpipe.checkpoints.sandbox import SandboxError, run_limited


def run(
    tmp_path: Path, program: str, data: bytes = b"", seconds: int = 10, memory: int = 1 << 29
) -> bytes:
    path = tmp_path / f"program-{len(list(tmp_path.iterdir()))}.py"
    path.write_text(program)
    return run_limited(path, data, seconds, memory)


def test_what_it_writes_is_given(tmp_path: Path) -> None:
    program = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read()[::-1])"
    assert run(tmp_path, program, b"\0abc") == b"cba\0"


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("raise SystemExit('it refers to x')", "^it refers to x$"),
        ("raise ValueError('one\\ntwo')", "^two$"),
        ("print('said'); 1 / 0", "^ZeroDivisionError: division by zero$"),
        ("import os; os.abort()", "^it ended with signal 6$"),
        ("import os, sys; print('a\\nb', file=sys.stderr, flush=True); os.abort()", "^a$"),
        ("import os; os._exit(3)", "^it ended with an error$"),
        ("import sys; sys.stderr.write('x' * 9000); raise SystemExit(1)", "^x{300}$"),
        ("raise SystemExit('a\\x1b[2J\\ud800')", "^a"),
    ],
)
def test_how_it_ends_is_told_in_one_line(tmp_path: Path, program: str, says: str) -> None:
    with pytest.raises(SandboxError, match=says) as caught:
        run(tmp_path, program)
    assert len(str(caught.value).splitlines()) == 1


def test_an_endless_loop_is_ended(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="more than 1 s of processor time"):
        run(tmp_path, "while True: pass", seconds=1)


def test_equal_work_is_done_once(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import os; print(os.getpid())")
    first, second = (run_limited(program, b"", 10, 1 << 29) for _ in range(2))
    assert first == second != run_limited(program, b"other", 10, 1 << 29)


def test_what_waits_for_ever_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "TIMEOUT_SECONDS", 0.5)
    with pytest.raises(SandboxError, match="more than 0 s"):
        run(tmp_path, "import threading; threading.Event().wait()")


@pytest.mark.skipif(sys.platform != "linux", reason="no other system limits memory")
def test_memory_is_limited(tmp_path: Path) -> None:
    assert run(tmp_path, "bytearray(100 << 20)") == b""
    with pytest.raises(SandboxError, match="MemoryError"):
        run(tmp_path, "bytearray(600 << 20)")
    assert run(tmp_path, "bytearray(600 << 20)", memory=1 << 30) == b""
