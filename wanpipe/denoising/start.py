"""Where a trajectory starts: noise from a seed, noise from a file, or a step of an earlier run."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, BinaryIO

from wanpipe.denoising.request import Request
from wanpipe.denoising.settings import Params
from wanpipe.errors import UsageError
from wanpipe.runtime.documents import convert, first_line, open_regular
from wanpipe.sampling.noise import draw
from wanpipe.store.keys import hash_array
from wanpipe.store.materials import Noise

if TYPE_CHECKING:
    import numpy as np

ALGORITHM = "numpy-philox-normal"
WIDEST = 16  # bytes of a float
HEADER = 1 << 16  # bytes that a .npy file may have before its numbers


@dataclass(frozen=True, kw_only=True)
class Start:
    """The start noise: `material` names it in keys, `draw` makes it, (C, F, H, W) float32.

    Both are None if a step of an earlier run is continued.
    """

    material: Noise | None = None
    draw: "Callable[[], np.ndarray] | None" = None


def starts(request: Request, params: Params) -> list[Start]:
    """Return a start for each seed, for the noise of a file, or for the continued step.

    Raises UsageError for a seed or a file that is invalid.
    """
    if request.step is not None:
        return [Start()]
    shape = (request.model.config.vae.z_dim, *request.latent_shape)
    trim = request.settings.trim_first_frames
    if params.noise is None:
        return [start_of_seed(seed, shape, trim) for seed in params.seeds or (0,)]
    if params.seeds:
        raise UsageError("--seed and --noise exclude each other; give one")
    array = read_noise(params.noise, shape)
    given = {"algorithm": "given", "digest": hash_array(array), "shape": list(array.shape)}
    return [Start(material=convert(given | trimmed(trim), Noise), draw=lambda: array)]


def start_of_seed(seed: int, shape: Sequence[int], trim: int) -> Start:
    """Return the start of a seed. Raises UsageError for a negative one."""
    if seed < 0:
        raise UsageError(f"seed must not be negative, got {seed}; use 0 or more")
    drawn = {"algorithm": ALGORITHM, "seed": seed, "shape": list(shape)}
    return Start(material=convert(drawn | trimmed(trim), Noise), draw=partial(draw, seed, shape))


def trimmed(trim: int) -> dict[str, Any]:
    """Return the field for trimmed frames in the material of noise."""
    return {"trim_first_frames": trim} if trim else {}


def read_noise(path: Path, shape: tuple[int, ...]) -> "np.ndarray":
    """Read a .npy file of floats shaped like the latent, (C, F, H, W).

    Raises UsageError for anything else.
    """
    import numpy as np

    largest = WIDEST * math.prod(shape) + HEADER
    try:
        with warnings.catch_warnings(), open_regular(path, largest) as file:
            warnings.simplefilter("ignore")  # of files that Python 2 wrote
            found, dtype = read_header(file)  # before anything is allocated
            if found != shape or dtype.kind != "f":
                raise UsageError(
                    f"noise {path} must be floats of shape {shape}, got {dtype} {found}"
                )
            file.seek(0)
            array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UsageError(f"noise {path} cannot be read as .npy: {reason}") from error
    if not np.isfinite(array).all():
        raise UsageError(f"noise {path} must be finite, got NaN or infinite values")
    return np.ascontiguousarray(array, dtype=np.float32)


def read_header(file: BinaryIO) -> "tuple[tuple[int, ...], np.dtype[Any]]":
    """Read shape and dtype of a .npy file. Raises ValueError."""
    from numpy.lib import format as npy

    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(file)
    if version not in read:
        raise ValueError(f"version {version} is for structured arrays")
    try:
        shape, _, dtype = read[version](file)
    # NumPy has Python parse the header, which raises all of these
    except (TypeError, TokenError, RecursionError, MemoryError, OverflowError) as error:
        raise ValueError("its header is damaged") from error
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return shape, dtype
