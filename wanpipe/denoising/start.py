"""Where a trajectory starts: noise from a seed, noise from a file, or a step of an earlier run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanpipe.denoising.request import Request
from wanpipe.denoising.settings import Params
from wanpipe.errors import UsageError
from wanpipe.runtime.documents import convert
from wanpipe.sampling.noise import draw
from wanpipe.store.keys import hash_array
from wanpipe.store.schema import Noise

if TYPE_CHECKING:
    import numpy as np

ALGORITHM = "numpy-philox-normal"


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

    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(
            f"noise {path} cannot be read as .npy: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.shape != shape:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise UsageError(f"noise {path} must be floats of shape {shape}, got {found}")
    if not np.isfinite(array).all():
        raise UsageError(f"noise {path} must be finite, got NaN or infinite values")
    return np.ascontiguousarray(array, dtype=np.float32)
