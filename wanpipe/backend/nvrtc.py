"""CUDA's compiler at run time (NVRTC), the one that MLX has loaded: a source to a kernel.

`mx.fast.cuda_kernel` compiles through it too, but with headers that take it 2.5 s a kernel, in
every process again. A source that includes nothing takes it 0.06 s.
"""

import ctypes
from functools import cache

from wanpipe.errors import WanpipeError

VERSIONS = (13, 12)  # of CUDA, as MLX is built for


@cache
def library() -> ctypes.CDLL:
    """The library that MLX brings. Raises WanpipeError where there is none."""
    for version in VERSIONS:
        try:
            return ctypes.CDLL(f"libnvrtc.so.{version}")
        except OSError:
            continue
    wanted = " or ".join(f"libnvrtc.so.{version}" for version in VERSIONS)
    raise WanpipeError(f"no {wanted} was found; install mlx[cuda13] again")


def compile(source: str, architecture: str) -> bytes:
    """Compile C++ that includes nothing for an architecture such as sm_90: a cubin.

    Raises WanpipeError with the compiler's words.
    """
    nvrtc, program = library(), ctypes.c_void_p()
    reference = ctypes.byref(program)
    _check(nvrtc.nvrtcCreateProgram(reference, source.encode(), b"kernel.cu", 0, None, None))
    try:
        options = (ctypes.c_char_p * 1)(f"--gpu-architecture={architecture}".encode())
        if nvrtc.nvrtcCompileProgram(program, 1, options):
            said = _read("ProgramLog", program).decode().strip("\0\n")
            raise WanpipeError(f"a CUDA kernel does not compile for {architecture}: {said}")
        return _read("CUBIN", program)
    finally:
        nvrtc.nvrtcDestroyProgram(reference)


def _read(what: str, program: ctypes.c_void_p) -> bytes:
    """What NVRTC made of a program: its size is asked first."""
    nvrtc, size = library(), ctypes.c_size_t()
    _check(getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(nvrtc, f"nvrtcGet{what}")(program, buffer))
    return buffer.raw


def _check(status: int) -> None:
    if status:
        raise WanpipeError(f"CUDA's compiler answers with its status {status}; update MLX")
