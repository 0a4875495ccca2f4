"""Starting CUDA early, with a driver that only counts its calls."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from wanpipe.app import cli
from wanpipe.backend import cuda_start


class Library:
    """A library whose functions return `status`, and are remembered."""

    def __init__(self, status: int = 0) -> None:
        self.called: list[str] = []
        self.status = status

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*given: object) -> int:
            self.called.append(name)
            return self.status

        return call


def libraries(monkeypatch: pytest.MonkeyPatch, driver: Library, own: SimpleNamespace) -> None:
    """Give `ctypes` these libraries: the driver's, and that of the process."""
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver if name else own)


def test_the_context_is_made_and_the_library_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, loaded = Library(), []

    def load(path: bytes, mode: int) -> None:
        loaded.append(path)

    libraries(monkeypatch, driver, SimpleNamespace(dlopen=load))
    assert cuda_start.start()
    assert driver.called == ["cuInit", "cuDevicePrimaryCtxRetain"]
    [path] = loaded
    assert b"mlx" in path


def test_without_a_working_driver_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Library(status=100)  # no device
    libraries(monkeypatch, driver, SimpleNamespace())
    assert not cuda_start.start()
    assert driver.called == ["cuInit"]

    def missing(name: str | None) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert not cuda_start.start()


def test_only_commands_that_compute_start_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun: list[str] = []
    monkeypatch.setattr(cuda_start, "begin", lambda: begun.append("cuda"))
    monkeypatch.setenv("WANPIPE_CACHE", str(tmp_path))
    for words in (["run", "--help"], ["cache", "ls"], ["show", "none"]):
        CliRunner().invoke(cli, words)
    assert begun == []
    CliRunner().invoke(cli, ["encode-text", "--model", "none", "--prompt", "a ball"])
    assert begun == ["cuda"]
