"""Compiled kernels are kept on disk, and never taken for others."""

from pathlib import Path

import pytest

from wanpipe.backend import kernel_cache
from wanpipe.backend.kernel_cache import compiled


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the kernels."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "wanpipe" / "kernels"


def never() -> bytes:
    raise AssertionError("compiled again")


def test_a_kernel_is_compiled_once(home: Path) -> None:
    assert compiled("norm", lambda: b"code") == b"code"
    assert compiled("norm", never) == b"code"
    assert [path.name for path in home.iterdir()] == ["norm"]
    assert compiled("other", lambda: b"else") == b"else"


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 100])
def test_a_damaged_kernel_is_compiled_again(damage: bytes, home: Path) -> None:
    compiled("norm", lambda: b"code")
    (home / "norm").write_bytes(damage)
    assert compiled("norm", lambda: b"code") == b"code"
    assert compiled("norm", never) == b"code"


def test_a_kernel_under_another_name_is_not_taken(home: Path) -> None:
    compiled("norm", lambda: b"code")
    (home / "norm").rename(home / "rope")
    assert compiled("rope", lambda: b"rope") == b"rope"


def test_a_folder_that_cannot_be_made_costs_only_time(home: Path) -> None:
    home.parent.write_text("a file")
    assert compiled("norm", lambda: b"code") == b"code"


def test_without_a_home_every_process_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(kernel_cache.Path, "home", homeless)
    assert compiled("norm", lambda: b"code") == b"code"
