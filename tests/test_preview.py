"""Contact sheets of drafts: the right colors in the right rows, without a VAE."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.preview import choose, drafts
from tests.store.builders import chain, text
from tests.workshop import SMALL, Place, inside
from wanpipe.errors import UsageError
from wanpipe.media.latent_rgb import MAPS, linear_frames
from wanpipe.store import Store

pytest_plugins = ["tests.workshop"]


def latent_of(color: tuple[float, float, float], channels: int) -> np.ndarray:
    """A latent (C, 2, 3, 4) that the published map turns into one color in [-1, 1]."""
    factors, bias = (np.array(part) for part in MAPS[channels])
    found, *_ = np.linalg.lstsq(factors.T, np.array(color) - bias, rcond=None)
    return np.broadcast_to(found[:, None, None, None], (channels, 2, 3, 4)).astype(np.float32)


@pytest.mark.parametrize("channels", [16, 48])
@pytest.mark.parametrize("color", [(1.0, -1.0, 0.0), (-0.5, 0.5, 0.25), (2.0, -3.0, 0.0)])
def test_a_latent_of_one_color_gives_frames_of_that_color(
    color: tuple[float, float, float], channels: int
) -> None:
    frames = linear_frames(latent_of(color, channels))
    assert frames.shape == (2, 3, 4, 3)
    expected = np.clip((np.array(color) + 1) * 127.5, 0, 255)
    assert np.abs(frames.astype(float) - expected).max() <= 1


def test_the_map_is_the_published_one() -> None:
    """The zero latent shows the bias; one channel adds its row."""
    latent = np.zeros((16, 1, 1, 2), np.float32)
    latent[14, 0, 0, 1] = 1.0
    bias, row = np.array([-0.1835, -0.0868, -0.336]), np.array([0.3477, 0.2275, 0.295])
    expected = np.rint((np.stack([bias, bias + row]) + 1) * 127.5)
    assert np.array_equal(linear_frames(latent)[0, 0], expected)
    assert [len(factors) for factors, _ in MAPS.values()] == [16, 48]


def test_a_latent_with_other_channels_is_refused() -> None:
    with pytest.raises(UsageError, match="16 or 48 channels, got 4; use --vae"):
        linear_frames(np.zeros((4, 1, 2, 2), np.float32))


def test_drafts_are_the_last_steps_of_unfinished_runs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    words = text(store)
    finished = chain(store, words, 8, seed=1)
    first = chain(store, words, 3, seed=2)
    second = chain(store, words, 2, seed=3)
    branch = chain(store, words, 6, after=finished[3], guide_scale=[6.0, 6.0])
    ends = {entry[-1].key for entry in (first, second, branch)}
    assert {place.rpartition("/")[2] for place in drafts(store)} == ends
    assert {entry.key for entry in choose((), True, store)} == ends


def drafted(place: Place, *seeds: int) -> list[str]:
    words = [word for seed in seeds for word in ("--seed", seed)]
    text = place.text()
    return place.do("denoise", "--from", text, *SMALL, *words, "--stop-at", 2).paths


def test_ten_drafts_make_one_sheet_of_ten_rows(place: Place) -> None:
    steps = drafted(place, *range(10))
    result = place.do("preview", "--all-drafts")
    sheet = Image.open(place.root / result.paths[0])
    assert sheet.size == (8 + 5 * 248, 8 + 10 * (20 + 240 + 8))
    assert not result.loaded()
    named = place.do("preview", *steps, "--output", "named.png")
    assert named.paths == ["named.png"]
    assert sorted(rows(sheet)) == sorted(rows(Image.open(place.root / "named.png")))


def rows(sheet: Image.Image) -> list[bytes]:
    """The pictures of each row, without the label."""
    return [
        sheet.crop((0, top + 20, sheet.width, top + 260)).tobytes()
        for top in range(8, sheet.height - 260, 268)
    ]


def test_a_row_shows_the_clean_video_predicted_by_its_step(place: Place) -> None:
    (step,) = drafted(place, 1)
    place.do("preview", step, "--output", "x.png", "--columns", 2)
    sheet = Image.open(place.root / "x.png")
    frames = linear_frames(place.entry(step).read("x0"))
    for index, left in ((0, 8), (1, 256)):
        expected = Image.fromarray(frames[index]).resize((240, 240))
        assert sheet.crop((left, 28, left + 240, 268)).tobytes() == expected.tobytes()


def test_with_vae_a_preview_is_decoded(place: Place) -> None:
    (step,) = drafted(place, 1)
    place.do("preview", step, "--vae", "--output", "vae.png")
    place.do("preview", step, "--output", "map.png")
    sheets = [Image.open(place.root / name) for name in ("vae.png", "map.png")]
    assert sheets[0].width == 8 + 5 * 248
    assert rows(sheets[0]) != rows(sheets[1])


def test_a_preview_reads_only_x0(place: Place) -> None:
    (step,) = drafted(place, 1)
    for chunk in (place.root / step).glob("latent/c.*"):
        chunk.unlink()
    assert place.do("preview", step).paths


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "give either steps or --all-drafts"),
        (("--all-drafts",), "no draft in cache"),
        (("nothing",), "no entry nothing"),
        (("TEXT",), "preview takes steps of denoise, got encode-text"),
        (("STEP", "--output", "x.jpg"), "a preview must end in .png"),
        (("STEP", "--columns", "0"), "columns must be 1 or more"),
        (("STEP", "--output", "missing/x.png"), "cannot be written"),
        (("STEP", "--output", "x" * 300 + ".png"), "cannot be written: File name too long"),
    ],
)
def test_invalid_arguments_are_one_line_errors(
    words: tuple[str, ...], says: str, place: Place
) -> None:
    text = place.text()
    named = {"TEXT": str(text)}
    if "STEP" in words:
        named["STEP"] = drafted(place, 1)[0]
    result = inside("preview", *(named.get(word, word) for word in words), cwd=place.root)
    assert result.code in (1, 2)
    assert says in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not list(place.root.glob("*.png"))


def test_an_output_that_is_no_place_for_a_preview_is_refused_before_any_work(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    (step,) = drafted(place, 1)
    (place.root / "folder.png").mkdir()

    def draw(*_: object) -> None:
        raise AssertionError("it was drawn")

    monkeypatch.setattr("stages.preview.linear_frames", draw)
    for name, code in (("folder.png", 2), ("/proc/x.png", 1), ("x" * 300 + ".png", 1)):
        place.refuse("preview", step, "--output", name, code=code, says=name[:12])


def test_a_damaged_draft_is_a_one_line_error(place: Place) -> None:
    (step,) = drafted(place, 1)
    next((place.root / step).glob("x0/c.*")).unlink()
    result = inside("preview", step, cwd=place.root)
    assert result.code == 1
    assert "x0 cannot be read" in result.stderr.splitlines()[-1]
