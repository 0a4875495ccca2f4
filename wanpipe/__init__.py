"""Wan2.1 / Wan2.2 video generation with MLX, as stages over a content-addressed cache.

`wanpipe.encode_text`, `wanpipe.denoise` and the other stages are functions. They load on first use.
"""

from importlib import import_module

TYPE_CHECKING = False  # type checkers know the name; `typing` itself takes time to import
if TYPE_CHECKING:
    from typing import Any

EXPORTS = {
    "convert": ("stages.convert", "run"),
    "encode_text": ("stages.encode_text", "run"),
    "encode_image": ("stages.encode_image", "run"),
    "encode_video": ("stages.encode_video", "run"),
    "denoise": ("stages.denoise", "run"),
    "decode": ("stages.decode", "run"),
    "Inputs": ("wanpipe.pipeline.inputs", "Inputs"),
    "Store": ("wanpipe.store", "Store"),
    "open_model": ("wanpipe.weights.model", "open_model"),
}
__all__ = sorted(EXPORTS)


def __getattr__(name: str) -> "Any":
    if name == "__version__":
        from wanpipe.runtime.version import version

        return version()
    if name in EXPORTS:
        module, attribute = EXPORTS[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'wanpipe' has no attribute {name!r}")
