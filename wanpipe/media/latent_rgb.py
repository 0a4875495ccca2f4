"""Maps normalized latents to small RGB frames without the VAE, by the published linear maps.

A linear map gives the right colors and shapes, one frame per latent frame, no detail. The maps are
to [-1, 1], with one row per channel.
Source: ComfyUI, comfy/latent_formats.py, classes Wan21 (16 channels) and Wan22 (48 channels).
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from wanpipe.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

Row = tuple[float, float, float]

WAN21: tuple[Row, ...] = (
    (-0.1299, -0.1692, 0.2932),
    (0.0671, 0.0406, 0.0442),
    (0.3568, 0.2548, 0.1747),
    (0.0372, 0.2344, 0.142),
    (0.0313, 0.0189, -0.0328),
    (0.0296, -0.0956, -0.0665),
    (-0.3477, -0.4059, -0.2925),
    (0.0166, 0.1902, 0.1975),
    (-0.0412, 0.0267, -0.1364),
    (-0.1293, 0.074, 0.1636),
    (0.068, 0.3019, 0.1128),
    (0.0032, 0.0581, 0.0639),
    (-0.1251, 0.0927, 0.1699),
    (0.006, -0.0633, 0.0005),
    (0.3477, 0.2275, 0.295),
    (0.1984, 0.0913, 0.1861),
)
WAN21_BIAS: Row = (-0.1835, -0.0868, -0.336)

WAN22: tuple[Row, ...] = (
    (0.0119, 0.0103, 0.0046),
    (-0.1062, -0.0504, 0.0165),
    (0.014, 0.0409, 0.0491),
    (-0.0813, -0.0677, 0.0607),
    (0.0656, 0.0851, 0.0808),
    (0.0264, 0.0463, 0.0912),
    (0.0295, 0.0326, 0.059),
    (-0.0244, -0.027, 0.0025),
    (0.0443, -0.0102, 0.0288),
    (-0.0465, -0.009, -0.0205),
    (0.0359, 0.0236, 0.0082),
    (-0.0776, 0.0854, 0.1048),
    (0.0564, 0.0264, 0.0561),
    (0.0006, 0.0594, 0.0418),
    (-0.0319, -0.0542, -0.0637),
    (-0.0268, 0.0024, 0.026),
    (0.0539, 0.0265, 0.0358),
    (-0.0359, -0.0312, -0.0287),
    (-0.0285, -0.1032, -0.1237),
    (0.1041, 0.0537, 0.0622),
    (-0.0086, -0.0374, -0.0051),
    (0.039, 0.067, 0.2863),
    (0.0069, 0.0144, 0.0082),
    (0.0006, -0.0167, 0.0079),
    (0.0313, -0.0574, -0.0232),
    (-0.1454, -0.0902, -0.0481),
    (0.0714, 0.0827, 0.0447),
    (-0.0304, -0.0574, -0.0196),
    (0.0401, 0.0384, 0.0204),
    (-0.0758, -0.0297, -0.0014),
    (0.0568, 0.1307, 0.1372),
    (-0.0055, -0.031, -0.038),
    (0.0239, -0.0305, 0.0325),
    (-0.0663, -0.0673, -0.014),
    (-0.0416, -0.0047, -0.0023),
    (0.0166, 0.0112, -0.0093),
    (-0.0211, 0.0011, 0.0331),
    (0.1833, 0.1466, 0.225),
    (-0.0368, 0.037, 0.0295),
    (-0.3441, -0.3543, -0.2008),
    (-0.0479, -0.0489, -0.042),
    (-0.066, -0.0153, 0.08),
    (-0.0101, 0.0068, 0.0156),
    (-0.069, -0.0452, -0.0927),
    (-0.0145, 0.0041, 0.0015),
    (0.0421, 0.0451, 0.0373),
    (0.0504, -0.0483, -0.0356),
    (-0.0837, 0.0168, 0.0055),
)
WAN22_BIAS: Row = (0.0317, -0.0878, -0.1388)

# by the number of latent channels: factors and bias
MAPS = {len(WAN21): (WAN21, WAN21_BIAS), len(WAN22): (WAN22, WAN22_BIAS)}


WEIGHT = 0.01  # of the published map in a fit, relative to that of all samples


def linear_frames(latent: "np.ndarray", colors: "np.ndarray | None" = None) -> "np.ndarray":
    """Map a normalized latent (C, F, H, W) to frames (F, H, W, 3) uint8.

    `colors` (C+1, 3) is a map that `fit` returned; by default the published one is used. Raises
    UsageError for a number of channels that has no map.
    """
    import numpy as np

    if colors is None:
        colors = published(len(latent))
        if colors is None:
            known = " or ".join(map(str, MAPS))
            raise UsageError(f"a preview needs {known} channels, got {len(latent)}; use --vae")
    # the product over (C, F*H*W): channels last would first copy the whole latent
    mapped = colors[:-1].T @ latent.reshape(len(latent), -1) + colors[-1][:, None]  # (3, F*H*W)
    frames = mapped.T.reshape(*latent.shape[1:], 3)  # (F, H, W, 3)
    rounded: np.ndarray = np.rint(np.clip((frames + 1) * 127.5, 0, 255))
    return rounded.astype(np.uint8)


def published(channels: int) -> "np.ndarray | None":
    """Return the published map for latents of so many channels as (C+1, 3) float32, the bias last;
    None if there is none.
    """
    import numpy as np

    if channels not in MAPS:
        return None
    factors, bias = MAPS[channels]
    return np.asarray([*factors, bias], np.float32)


def fit(samples: "Iterable[tuple[np.ndarray, np.ndarray]]") -> "np.ndarray | None":
    """Fit a map (C+1, 3) to latents (C, F, H, W) and the colors (F, H, W, 3) in [-1, 1] that a VAE
    decoded them to; None without samples.

    Least squares with a small weight on the published map (ridge regression), so what the samples
    do not determine stays as published. For a VAE that is not an official one.
    """
    import numpy as np

    squares = products = None
    for latent, colors in samples:
        columns = latent.reshape(len(latent), -1).astype(np.float64)
        columns = np.vstack([columns, np.ones_like(columns[:1])])  # (C+1, F*H*W)
        square, product = columns @ columns.T, columns @ colors.reshape(-1, 3)
        squares = square if squares is None else squares + square
        products = product if products is None else products + product
    if squares is None or products is None:
        return None
    prior = published(len(squares) - 1)
    weight = WEIGHT * squares[-1, -1]  # the number of samples
    known = np.zeros_like(products) if prior is None else prior
    found = np.linalg.solve(squares + weight * np.eye(len(squares)), products + weight * known)
    return found.astype(np.float32)
