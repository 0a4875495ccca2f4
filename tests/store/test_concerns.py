"""Results that are valid but look wrong: one color, or no motion, is noted and reported."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.test_show import show
from tests.workshop import SMALL, Place
from wanpipe.denoising.sampler import Sampler
from wanpipe.pipeline.frames import Decoding
from wanpipe.store.draft import FLAT_FRAMES, STILL_FRAMES, Draft
from wanpipe.store.schema import LEAST_IN_LATENT, STAGES

SIZE = (5, 48, 80, 3)
RANDOM = np.random.default_rng(7)


def plain(color: int = 255) -> np.ndarray:
    return np.full(SIZE, color, np.uint8)


def noisy(frames: np.ndarray, levels: int) -> np.ndarray:
    """Frames with noise of some levels in each pixel."""
    noise = RANDOM.integers(-levels, levels + 1, frames.shape)
    return (frames.astype(int) + noise).clip(0, 255).astype(np.uint8)


def fading() -> np.ndarray:
    """Frames of one color each, from black to white."""
    return np.repeat(np.linspace(0, 255, 5).astype(np.uint8), 48 * 80 * 3).reshape(SIZE)


def dotted(move: int, size: int = 3) -> np.ndarray:
    """A dark dot on white, which moves by some pixels in each frame."""
    frames = plain()
    for number, frame in enumerate(frames):
        frame[20 : 20 + size, move * number : move * number + size] = 30
    return frames


def concerns(stage: str, name: str, array: np.ndarray, folder: Path, rows: int = 4) -> list[str]:
    """What a draft notes of an array that is written some rows at a time."""
    draft = Draft(folder / str(len(list(folder.iterdir()))), STAGES[stage])
    with draft.stream(name, array.shape) as writer:
        for start in range(0, len(array), rows):
            writer.append(array[start : start + rows])
    return draft.concerns


@pytest.mark.parametrize("rows", [1, 4, 5])
@pytest.mark.parametrize(
    ("frames", "found"),
    [
        (lambda: noisy(plain(54), 1), [FLAT_FRAMES]),
        (lambda: noisy(plain(54), 2), [FLAT_FRAMES]),
        (fading, [FLAT_FRAMES]),
        (lambda: noisy(fading(), 1), [FLAT_FRAMES]),
        (lambda: dotted(0), [STILL_FRAMES]),
        (lambda: noisy(dotted(0), 1), [STILL_FRAMES]),
        (lambda: dotted(0)[:1], []),
        (lambda: dotted(2), []),
        (lambda: noisy(dotted(2), 1), []),
        (lambda: np.concatenate([dotted(0)[:4], dotted(1)[4:]]), []),
        (lambda: np.concatenate([plain(54)[:4], dotted(1)[4:]]), []),
        (lambda: noisy(plain(128), 9), []),
    ],
)
def test_frames_of_one_color_or_without_motion_are_noted(
    frames: Callable[[], np.ndarray], found: list[str], rows: int, tmp_path: Path
) -> None:
    assert concerns("decode", "frames", frames(), tmp_path, rows) == found


@pytest.mark.parametrize("rows", [1, 3, 16])
@pytest.mark.parametrize(
    ("spread", "flat"), [(0.004, True), (0.05, True), (0.3, False), (1, False)]
)
def test_a_nearly_constant_x0_is_noted(
    spread: float, flat: bool, rows: int, tmp_path: Path
) -> None:
    """Channels differ from each other, as those of a gray video do."""
    means = RANDOM.normal(size=(16, 1, 1, 1))
    x0 = (means + spread * RANDOM.normal(size=(16, 3, 6, 8))).astype(np.float32)
    found = concerns("denoise", "x0", x0, tmp_path, rows)
    assert [line.startswith("x0 is nearly constant in every channel") for line in found] == (
        [True] if flat else []
    )


def test_one_channel_that_varies_is_enough(tmp_path: Path) -> None:
    x0 = np.zeros((16, 3, 6, 8), np.float32)
    x0[5] = 3 * LEAST_IN_LATENT * RANDOM.normal(size=(3, 6, 8))
    assert concerns("denoise", "x0", x0, tmp_path) == []


def test_statistics_are_those_of_the_whole_array(tmp_path: Path) -> None:
    x0 = RANDOM.normal(2, 3, (16, 3, 6, 8)).astype(np.float32)
    draft = Draft(tmp_path / "draft", STAGES["denoise"])
    with draft.stream("x0", x0.shape) as writer:
        writer.append(x0)
    noted = draft.statistics["x0"]
    assert noted["mean"] == pytest.approx(x0.mean(dtype=np.float64), rel=1e-12)
    assert noted["std"] == pytest.approx(x0.std(dtype=np.float64), rel=1e-12)


def remarks(result: Any) -> list[str]:
    return [event["text"] for event in result.events if event["event"] == "remark"]


def test_flat_frames_are_reported_with_their_entry_and_shown(
    studio: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slices(*_: object) -> Iterator[np.ndarray]:
        yield noisy(np.full((5, 32, 32, 3), 54, np.uint8), 1)

    monkeypatch.setattr(Decoding, "slices", slices)
    made = studio.film("--seed", 3)
    key = made.computed("decode")[0]["key"]
    assert remarks(made) == [f"decode {key[:8]}: {FLAT_FRAMES}"]
    assert show(studio, key)["concerns"] == FLAT_FRAMES
    assert remarks(studio.film("--seed", 3)) == []


def test_a_flat_x0_is_reported_once_for_the_steps_of_a_run(
    studio: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = Sampler.advance

    def flat(self: Sampler, *rest: Any) -> Any:
        arrays, ran = advance(self, *rest)
        return {**arrays, "x0": 0.01 * arrays["x0"] + mx.arange(16).reshape(16, 1, 1, 1)}, ran

    monkeypatch.setattr(Sampler, "advance", flat)
    text = studio.text()
    made = studio.do("denoise", "--from", text, *SMALL, "--seed", "5-6")
    steps = [event["key"][:8] for event in made.computed("denoise")]
    assert len(steps) == 8
    assert [line.split(":")[0] for line in remarks(made)] == [
        f"denoise {steps[0]}",
        f"denoise {steps[4]}",
    ]
    assert "check the weights, --dtype and --shift" in remarks(made)[0]
