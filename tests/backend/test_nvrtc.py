"""CUDA's compiler, as far as a machine without one can tell: what it is asked, and what it answers
when it fails.
"""

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest

from wanpipe.backend import nvrtc
from wanpipe.errors import WanpipeError


class Compiler:
    """Stands for the library: notes which programs are not destroyed, and gives its `texts`."""

    def __init__(self, status: int = 0, made: int = 0) -> None:
        self.status, self.made = status, made
        self.texts = {"CUBIN": b"a \0 cubin", "ProgramLog": b"kernel.cu(1): error: no\n\0"}
        self.held: list[bytes] = []
        self.options: list[bytes] = []

    def nvrtcCreateProgram(self, reference: Any, source: bytes, *more: object) -> int:
        self.held.append(source)
        return self.made

    def nvrtcCompileProgram(self, program: object, count: int, options: Any) -> int:
        self.options = [options[index] for index in range(count)]
        return self.status

    def nvrtcDestroyProgram(self, reference: object) -> int:
        self.held.pop()
        return 0

    def __getattr__(self, name: str) -> Any:
        what = name.removeprefix("nvrtcGet").removesuffix("Size")
        text = self.texts[what]

        def size(program: object, reference: Any) -> int:
            reference._obj.value = len(text)
            return 0

        def get(program: object, buffer: Any) -> int:
            buffer.raw = text
            return 0

        return size if name.endswith("Size") else get


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    nvrtc.library.cache_clear()
    yield
    nvrtc.library.cache_clear()


def load(monkeypatch: pytest.MonkeyPatch, compiler: Compiler) -> list[str]:
    """Let CUDA 12's library be the only one; return the names that are asked for."""
    names: list[str] = []

    def cdll(name: str) -> Compiler:
        names.append(name)
        if name != "libnvrtc.so.12":
            raise OSError(name)
        return compiler

    monkeypatch.setattr(ctypes, "CDLL", cdll)
    return names


def test_a_source_becomes_a_cubin(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler()
    names = load(monkeypatch, compiler)
    assert nvrtc.compile("source", "sm_86") == b"a \0 cubin"
    assert compiler.options == [b"--gpu-architecture=sm_86"]
    assert compiler.held == []
    assert names == ["libnvrtc.so.13", "libnvrtc.so.12"]


def test_what_does_not_compile_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler(status=6)
    load(monkeypatch, compiler)
    with pytest.raises(WanpipeError, match=r"not compile for sm_90: kernel.cu\(1\): error: no$"):
        nvrtc.compile("source", "sm_90")
    assert compiler.held == []


def test_a_program_that_cannot_be_made_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    load(monkeypatch, Compiler(made=1))
    with pytest.raises(WanpipeError, match="its status 1; update MLX"):
        nvrtc.compile("source", "sm_90")


def test_without_the_library_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def cdll(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", cdll)
    with pytest.raises(WanpipeError, match=r"no libnvrtc.so.13 or libnvrtc.so.12 .*install mlx"):
        nvrtc.compile("source", "sm_90")
