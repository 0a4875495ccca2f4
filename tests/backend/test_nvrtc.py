"""CUDA's runtime compiler, with a fake library: its calls, and errors."""

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest

from wanpipe.backend import nvrtc
from wanpipe.errors import WanpipeError


class Compiler:
    """A fake library that returns `texts`, and records programs until they are destroyed."""

    def __init__(self, status: int = 0, created: int = 0) -> None:
        self.status, self.created = status, created
        self.texts = {"CUBIN": b"a \0 cubin", "ProgramLog": b"kernel.cu(1): error: no\n\0"}
        self.programs: list[bytes] = []
        self.options: list[bytes] = []

    def nvrtcCreateProgram(self, reference: Any, source: bytes, *more: object) -> int:
        self.programs.append(source)
        return self.created

    def nvrtcCompileProgram(self, program: object, count: int, options: Any) -> int:
        self.options = [options[index] for index in range(count)]
        return self.status

    def nvrtcDestroyProgram(self, reference: object) -> int:
        self.programs.pop()
        return 0

    def nvrtcVersion(self, major: Any, minor: Any) -> int:
        major._obj.value, minor._obj.value = 12, 9
        return 0

    def __getattr__(self, name: str) -> Any:
        output = name.removeprefix("nvrtcGet").removesuffix("Size")
        text = self.texts[output]

        def size(program: object, reference: Any) -> int:
            reference._obj.value = len(text)
            return 0

        def get(program: object, buffer: Any) -> int:
            buffer.raw = text
            return 0

        return size if name.endswith("Size") else get


@pytest.fixture(autouse=True)
def no_cached_library() -> Iterator[None]:
    nvrtc.library.cache_clear()
    yield
    nvrtc.library.cache_clear()


def load(monkeypatch: pytest.MonkeyPatch, compiler: Compiler) -> list[str]:
    """Install only the library of CUDA 12, and record the names that are loaded."""
    names: list[str] = []

    def cdll(name: str) -> Compiler:
        names.append(name)
        if name != "libnvrtc.so.12":
            raise OSError(name)
        return compiler

    monkeypatch.setattr(ctypes, "CDLL", cdll)
    return names


def test_compile_returns_a_cubin(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler()
    names = load(monkeypatch, compiler)
    assert nvrtc.compile("source", "sm_86") == b"a \0 cubin"
    assert compiler.options == [b"--gpu-architecture=sm_86"]
    assert compiler.programs == []
    assert names == ["libnvrtc.so.13", "libnvrtc.so.12"]


def test_a_compile_error_includes_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler(status=6)
    load(monkeypatch, compiler)
    with pytest.raises(WanpipeError, match=r"not compile for sm_90: kernel.cu\(1\): error: no$"):
        nvrtc.compile("source", "sm_90")
    assert compiler.programs == []


def test_a_program_that_cannot_be_created_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    load(monkeypatch, Compiler(created=1))
    with pytest.raises(WanpipeError, match="NVRTC failed with status 1; update MLX"):
        nvrtc.compile("source", "sm_90")


def test_a_missing_library_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def cdll(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", cdll)
    with pytest.raises(WanpipeError, match=r"no libnvrtc.so.13 or libnvrtc.so.12 .*reinstall mlx"):
        nvrtc.compile("source", "sm_90")


def test_the_version_is_that_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    load(monkeypatch, Compiler())
    assert nvrtc.version() == "12.9"
