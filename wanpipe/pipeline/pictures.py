"""Reads the first and last image of a video, and fits them to its canvas as the VAE and CLIP take
them.

Knows nothing of networks or entries.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wanpipe.runtime.report import Report

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from wanpipe.media.image import Fit, Mode, Resample


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """The size of a video in pixels and frames, and how an image is fitted to it."""

    width: int
    height: int
    num_frames: int
    fit: "Mode"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image: its pixels (Y, X, 3) for the VAE, and (224, 224, 3) for CLIP if that is wanted."""

    pixels: "np.ndarray"
    clip: "np.ndarray | None"


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The canvas of a video, and its first image, its last image, or both."""

    canvas: Canvas
    first: Picture | None
    last: Picture | None

    @property
    def given(self) -> list[Picture]:
        """The given images, in order."""
        return [picture for picture in (self.first, self.last) if picture is not None]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How to read the images of a video.

    `choose` returns the canvas for an image of some width and height. `fit` is what the user asked
    for. `exif` turns images as their EXIF orientation says. `clip` asks for pixels for CLIP too.
    """

    choose: Callable[[int, int], Canvas]
    fit: "Fit | None"
    resample: "Resample"
    exif: bool
    clip: bool
    report: Report

    def read(self, first: Path | None, last: Path | None) -> Pictures:
        """Read and fit one or two images. The first one decides the canvas, if it is given.

        A last image of another size covers the canvas unless a fit was asked for. Raises UsageError
        if an image cannot be read.
        """
        from wanpipe.media.image import bicubic, crop_last, open_image

        lead = last if first is None else first
        assert lead is not None
        image = open_image(lead, self.exif, self.choose, self.report)
        canvas = self.choose(*image.size)
        picture = self.fitted(image, canvas, canvas.fit)
        if first is None:
            return Pictures(canvas=canvas, first=None, last=picture)
        if last is None:
            return Pictures(canvas=canvas, first=picture, last=None)
        other = open_image(last, self.exif, report=self.report)
        if other.size == image.size or self.fit not in (None, "official"):
            after = self.fitted(other, canvas, canvas.fit)
        elif self.fit is None:
            after = self.fitted(other, canvas, "cover")
        else:
            cropped = crop_last(other, image.size)
            after = self.picture(bicubic(cropped, canvas.height, canvas.width), cropped)
        return Pictures(canvas=canvas, first=picture, last=after)

    def fitted(self, image: "Image.Image", canvas: Canvas, mode: "Mode") -> Picture:
        """Fit an image to the canvas. CLIP always gets the whole image."""
        from wanpipe.media.image import fit

        return self.picture(fit(image, canvas.width, canvas.height, mode, self.resample), image)

    def picture(self, pixels: "np.ndarray", image: "Image.Image | np.ndarray") -> Picture:
        """Return the picture of these pixels, and of the pixels that CLIP gets."""
        from wanpipe.media.image import clip_pixels

        return Picture(pixels=pixels, clip=clip_pixels(image) if self.clip else None)
