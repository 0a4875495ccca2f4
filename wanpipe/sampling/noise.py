"""Draws the noise of a seed: the same bits on every machine and with every NumPy release.

NumPy guarantees the raw bits of Philox, but not the normal numbers made from them (NEP 19). So this
module has its own float32 ziggurat (Marsaglia and Tsang 2000), with the results of NumPy 2.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

STRIPS = 256
EDGE = 3.6541528853610088  # start of the tail
AREA = 0.00492867323399  # of each strip
SCALE = 1 << 23  # a word has 8 bits for the strip, 1 for the sign and 23 for the offset in it
UNIT = 1 << 24  # a uniform number is made from the upper 24 bits of a word
# for log1p: log(2) in two parts, and the coefficients of its series in powers of s^2
LN2, LN2_REST = 0.69313812256, 9.0580006145e-06
SERIES = (0.66666668653, 0.4, 0.28571429849, 0.22222198546, 0.1818357259, 0.15313838422)
SERIES_END = 0.1479819864
NEAR = -0.2928933799266815  # from here up, log(1 + x) needs no argument reduction


def draw(seed: int, shape: Sequence[int], stream: int = 0) -> "np.ndarray":
    """Draw standard normal float32 numbers; a longer draw of a seed starts with the shorter one.

    The streams of a seed have no word in common: one starts 2^128 blocks of words after another.
    """
    import numpy as np

    count = math.prod(shape)
    length = count + count // 32 + 64  # 1.2 % of numbers take more than one word
    while True:
        words = np.random.Philox(seed).jumped(stream)
        raw = words.random_raw(length // 2).astype("<u8", copy=False)
        numbers = normal(raw.view("<u4"))
        if len(numbers) >= count:
            return numbers[:count].reshape(tuple(shape))
        length *= 2


def normal(words: "np.ndarray") -> "np.ndarray":
    """Convert 32-bit words to normal numbers, as many as the words allow."""
    import numpy as np

    heights, widths, limits = tables()
    strip = words & 0xFF
    offset = words >> 9
    numbers = offset.astype(np.float32) * widths[strip]
    np.negative(numbers, out=numbers, where=(words & 0x100) != 0)
    unsure = np.flatnonzero(offset >= limits[strip])  # all others are below the curve
    below = is_below(numbers[unsure], strip[unsure], words[(unsure + 1) % len(words)], heights)
    used = np.ones(len(words), bool)  # whether a word becomes a number
    following = 0
    for at, fits in zip(unsure.tolist(), below.tolist(), strict=True):
        if at < following:
            continue  # an earlier number used this word
        if strip[at]:
            following = at + 2
            used[at] = fits
        else:
            following, far = tail(words, at + 1)
            numbers[at] = -far if offset[at] & 0x100 else far
        if following > len(words):
            used[at:] = False
            break
        used[at + 1 : following] = False
    drawn: np.ndarray = numbers[used]
    return drawn


def is_below(
    numbers: "np.ndarray", strip: "np.ndarray", words: "np.ndarray", heights: "np.ndarray"
) -> "np.ndarray":
    """Return whether a uniform height in the strip of each number is below the curve."""
    import numpy as np

    top, bottom = heights[strip.astype(np.intp) - 1], heights[strip]
    height = (top - bottom) * uniform(words) + bottom
    wide = numbers.astype(np.float64)
    fits: np.ndarray = height < np.exp(-0.5 * wide * wide)
    return fits


def tail(words: "np.ndarray", at: int) -> "tuple[int, np.float32]":
    """Draw a number beyond EDGE from the words at `at`, and return the index of the next word.

    If there are too few words, that index is past their end.
    """
    import numpy as np

    edge, inverse = np.float32(EDGE), np.float32(1 / EDGE)
    while at + 1 < len(words):
        beyond, height = (-log1p(-one) for one in uniform(words[at : at + 2]))
        at += 2
        beyond = inverse * beyond
        if height + height > beyond * beyond:
            return at, edge + beyond
    return len(words) + 1, edge


def uniform(words: "np.ndarray") -> "np.ndarray":
    """Convert words to uniform float32 numbers in [0, 1)."""
    import numpy as np

    return (words >> 8).astype(np.float32) * np.float32(1 / UNIT)


@cache
def tables() -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
    """Return the strips under exp(-x^2/2): upper heights, widths per offset, and limits.

    An offset below the limit of its strip is certainly below the curve.
    """
    import numpy as np

    edges = [EDGE]  # from the bottom strip up
    heights = [math.exp(-0.5 * EDGE * EDGE)]
    while len(edges) < STRIPS - 1:
        heights.append(AREA / edges[-1] + heights[-1])
        edges.append(math.sqrt(-2 * math.log(heights[-1])))
        heights[-1] = math.exp(-0.5 * edges[-1] * edges[-1])
    base = AREA / heights[0]  # the bottom strip includes the tail
    widths = [base, *reversed(edges)]
    inner = [EDGE, 0.0, *widths[1:-1]]
    limits = [round(short / long * SCALE) for short, long in zip(inner, widths, strict=True)]
    return (
        np.array([1.0, *reversed(heights)], np.float32),
        (np.array(widths) / SCALE).astype(np.float32),
        np.array(limits, np.uint32),
    )


def log1p(x: "np.float32") -> "np.float32":
    """Compute log(1 + x) within an ulp, for x in (-1, 0] that is a multiple of 2^-24.

    C libraries round it differently. This rounds like FreeBSD's, and like glibc's for x86-64 before
    2.41, which version 0.1.0 used. Source: FreeBSD, lib/msun/src/s_log1pf.c.
    """
    import numpy as np

    exponent, f = 0, x  # 1 + x = 2^exponent * (1 + f)
    if x < NEAR:
        fraction, exponent = math.frexp(1 + float(x))
        if fraction < math.sqrt(0.5):
            fraction, exponent = 2 * fraction, exponent - 1
        f = np.float32(fraction - 1)
    half = np.float32(0.5) * f * f
    s = f / (2 + f)
    z = s * s
    series = np.float32(SERIES_END)
    for coefficient in reversed(SERIES):
        series = np.float32(coefficient) + z * series
    odd = s * (half + z * series)
    k = np.float32(exponent)
    if exponent == 0:
        return f - (half - odd)
    rest = odd + k * np.float32(LN2_REST)
    return k * np.float32(LN2) - ((half - rest) - f)
