"""Previews of unfinished videos: the x0 of a step as small RGB frames, without the VAE.

A linear map of the latent gives the right colors and shapes, one frame per latent frame, no detail.
"""

from typing import TYPE_CHECKING

from wanpipe.errors import UsageError
from wanpipe.media.latent_rgb import MAPS
from wanpipe.store import Entry, Run, Store
from wanpipe.weights.model import Model

if TYPE_CHECKING:
    import numpy as np


def linear_frames(latent: "np.ndarray") -> "np.ndarray":
    """Map a normalized latent (C, F, H, W) to frames (F, H, W, 3) uint8.

    Raises UsageError for a number of channels that has no map.
    """
    import numpy as np

    if len(latent) not in MAPS:
        known = " or ".join(map(str, MAPS))
        raise UsageError(f"a preview needs {known} channels, got {len(latent)}; use --vae")
    factors, bias = (np.asarray(part, np.float32) for part in MAPS[len(latent)])
    # the product over (C, F*H*W): channels last would first copy the whole latent
    colors = factors.T @ latent.reshape(len(latent), -1) + bias[:, None]  # (3, F*H*W)
    frames = colors.T.reshape(*latent.shape[1:], 3)  # (F, H, W, 3)
    rounded: np.ndarray = np.rint(np.clip((frames + 1) * 127.5, 0, 255))
    return rounded.astype(np.uint8)


def true_frames(latent: "np.ndarray", model: Model, store: Store) -> "np.ndarray":
    """Decode a normalized latent (C, F, H, W) with the model's VAE to frames (T, Y, X, 3) uint8."""
    import mlx.core as mx

    from wanpipe.backend.device import compute_dtype, mlx_dtype
    from wanpipe.models import vae
    from wanpipe.weights.load import load_network

    network = vae.Decoder(model.config.vae)
    dtype = mlx_dtype(compute_dtype(model.config.dtype))
    load_network(network, model.checked("vae", store), dtype)
    return vae.video_uint8(network.frames(mx.array(latent)))


def label(step: Entry, run: Run | None) -> str:
    """Return the label of a row of frames: seed, step and key."""
    seed = "given noise" if run is None or run.seed is None else f"seed {run.seed}"
    of = f" of {run.step_count}" if run else ""
    return f"{seed}   step {step.step + 1}{of}   {step.key[:8]}"
