"""What a user is told of a lock that another process holds."""

import threading
from pathlib import Path

import pytest

from wanpipe.runtime.report import Report
from wanpipe.store import locks
from wanpipe.store.locks import Locks

KEY = "0" * 32


class Remarks(Report):
    """Lists remarks, and tells that there is one."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.told = threading.Event()

    def remark(self, text: str) -> None:
        self.said.append(text)
        self.told.set()


def hold_and_wait(root: Path, report: Remarks, until: float) -> None:
    """Hold a lock until the waiting one is told, for `until` seconds at most, and take it then."""
    held = threading.Event()

    def other() -> None:
        with Locks(root, Report()).hold("denoise", KEY, lambda: False):
            held.set()
            report.told.wait(until)

    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    with Locks(root, report).hold("denoise", KEY, lambda: True):
        pass
    thread.join()


def test_a_long_wait_for_another_process_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "TELL_SECONDS", 0.0)
    report = Remarks()
    hold_and_wait(tmp_path, report, 60.0)
    assert report.said == ["another process is making denoise/00000000; waiting for it"]


def test_a_short_wait_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "TELL_SECONDS", 60.0)
    report = Remarks()
    hold_and_wait(tmp_path, report, 0.1)
    assert report.said == []
