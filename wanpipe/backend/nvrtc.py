"""CUDA's runtime compiler (NVRTC), from the library that MLX loads."""

import ctypes
from functools import cache

from wanpipe.errors import WanpipeError

VERSIONS = (13, 12)  # of CUDA, for which MLX has builds


@cache
def library() -> ctypes.CDLL:
    """Load the library that MLX installs. Raises WanpipeError if it is missing."""
    for version in VERSIONS:
        try:
            return ctypes.CDLL(f"libnvrtc.so.{version}")
        except OSError:
            continue
    wanted = " or ".join(f"libnvrtc.so.{version}" for version in VERSIONS)
    raise WanpipeError(f"no {wanted} was found; reinstall mlx[cuda13]")


def version() -> str:
    """Return the version of the compiler, such as 13.0."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


def compile(source: str, architecture: str) -> bytes:
    """Compile C++ without includes to a cubin for an architecture such as sm_90.

    Raises WanpipeError with the compiler's log.
    """
    nvrtc, program = library(), ctypes.c_void_p()
    reference = ctypes.byref(program)
    _check(nvrtc.nvrtcCreateProgram(reference, source.encode(), b"kernel.cu", 0, None, None))
    try:
        options = (ctypes.c_char_p * 1)(f"--gpu-architecture={architecture}".encode())
        if nvrtc.nvrtcCompileProgram(program, 1, options):
            log = _read("ProgramLog", program).decode().strip("\0\n")
            raise WanpipeError(f"a CUDA kernel does not compile for {architecture}: {log}")
        return _read("CUBIN", program)
    finally:
        nvrtc.nvrtcDestroyProgram(reference)


def _read(name: str, program: ctypes.c_void_p) -> bytes:
    """Read an output of a compiled program."""
    nvrtc, size = library(), ctypes.c_size_t()
    _check(getattr(nvrtc, f"nvrtcGet{name}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(nvrtc, f"nvrtcGet{name}")(program, buffer))
    return buffer.raw


def _check(status: int) -> None:
    if status:
        raise WanpipeError(f"NVRTC failed with status {status}; update MLX")
