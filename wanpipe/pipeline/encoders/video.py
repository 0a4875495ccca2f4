"""Encodes prepared videos with the VAE: the context of VACE, a video to change, or the first frames
of a video that is continued.

Knows nothing of files, canvases or entries.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import mlx.core as mx
import numpy as np

from wanpipe.models.vae.vae import Encoder
from wanpipe.pipeline.video_inputs import Clip

SIDE = 8  # pixels of a mask along each side of a latent position; they become channels
Advance = Callable[[], object]


def encode_context(encoder: Encoder, clip: Clip, advance: Advance) -> mx.array:
    """Encode the context of VACE (96, R+F, H, W): R references first, then the video.

    Its channels are the latent of what is kept, the latent of what is made anew, and 64 of the
    mask. References have zeros in place of the second latent and the mask.
    Source: wan/vace.py, WanVace.vace_encode_frames, vace_encode_masks, vace_latent.
    """
    kept, anew = (encoder.encode(masked(clip, anew, advance)) for anew in (False, True))
    video = mx.concatenate([kept, anew, mask_channels(clip)])
    parts = []
    for reference in clip.references:
        latent = encoder(mx.array(reference)[None])
        rest = mx.zeros((len(video) - len(latent), *latent.shape[1:]))
        parts.append(mx.concatenate([latent, rest]))
        advance()
    return mx.concatenate([*parts, video], axis=1)


def encode_latent(encoder: Encoder, clip: Clip, advance: Advance) -> mx.array:
    """Encode a video to change (C, F, H, W)."""
    assert clip.frames is not None
    return encoder.encode(masked(clip, None, advance))


def masked(clip: Clip, anew: bool | None, advance: Advance) -> Iterator[mx.array]:
    """Yield one frame (1, Y, X, 3) in [-1, 1], then four at a time, with 0 in place of what the
    mask keeps, or of what it makes anew; None takes every pixel.

    What is all gray is the same array each time: the encoder recognizes constant input.
    """
    grays = {count: mx.zeros((count, clip.height, clip.width, 3)) for count in (1, 4)}
    for start, stop in pieces(clip.num_frames):
        frames = None if clip.frames is None else signed(clip.frames[start:stop])
        if frames is not None and anew is not None:
            chosen = is_anew(clip, start, stop) == anew
            frames = frames * chosen[..., None] if chosen.any() else None
        yield grays[stop - start] if frames is None else mx.array(frames)
        advance()


def pieces(num_frames: int) -> Iterator[tuple[int, int]]:
    """Yield the frames of each latent frame: one, then fours, as (start, stop)."""
    yield from pairwise([0, *range(1, num_frames + 1, 4)])


def is_anew(clip: Clip, start: int, stop: int) -> np.ndarray:
    """Return which pixels are made anew, (T, Y, X) bool: those of more than middle gray."""
    if clip.mask is None:
        return np.ones((stop - start, clip.height, clip.width), dtype=bool)
    found: np.ndarray = clip.mask[start:stop] > 127
    return found


def signed(frames: np.ndarray) -> np.ndarray:
    """Map uint8 pixels to float32 in [-1, 1], as the official code of VACE does."""
    return frames.astype(np.float32) / np.float32(127.5) - np.float32(1)


def mask_channels(clip: Clip) -> mx.array:
    """Return the mask of 8x8 pixels as 64 channels (64, F, H, W), with its gray levels.

    Each latent frame has the mask of one frame: that nearest to the middle of its share.
    """
    count = (clip.num_frames + 3) // 4
    shape = (count, clip.height // SIDE, SIDE, clip.width // SIDE, SIDE)
    values: np.ndarray = np.ones(shape, dtype=np.float32)
    if clip.mask is not None:
        nearest = [(2 * i + 1) * clip.num_frames // (2 * count) for i in range(count)]
        values = ((signed(clip.mask[nearest]) + 1) / 2).reshape(shape)
    channels = values.transpose(2, 4, 0, 1, 3)  # (row, column, F, H, W)
    return mx.array(channels.reshape(SIDE**2, *channels.shape[2:]))


def latent_mask(clip: Clip, side: int) -> np.ndarray:
    """Return which latent positions are made anew (1, F, H, W): 1 where any of their pixels is, of
    `side` x `side` pixels in one frame or four.
    """
    rows = []
    for start, stop in pieces(clip.num_frames):
        pixels = is_anew(clip, start, stop)
        blocks = pixels.reshape(-1, clip.height // side, side, clip.width // side, side)
        rows.append(blocks.any(axis=(0, 2, 4)))
    return np.stack(rows)[None].astype(np.float32)
