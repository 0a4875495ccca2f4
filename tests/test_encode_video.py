"""encode-video: what VACE, video-to-video and continuation get from videos, masks and images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.test_show import show
from tests.workshop import SMALL, Models, Place
from wanpipe.media.latent_rgb import linear_frames
from wanpipe.media.resize import resize_crop

SIDES, FRAMES, STEPS = SMALL[:4], SMALL[4:6], SMALL[6:]
SIDE, COUNT = 32, 9  # pixels of the frames of clip, and how many it has
GRAY, WHITE = 127, 255
NINE = (*SIDES, "--num-frames", 9)


def pictures(seed: int, count: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Random frames (T, Y, X, 3) uint8."""
    shape = (count, height, width, 3)
    return np.random.Generator(np.random.Philox(seed)).integers(0, 256, shape, np.uint8)


def save(folder: Path, frames: np.ndarray) -> Path:
    """Write frames as a folder of PNG files."""
    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number}.png")
    return folder


def masks(anew: np.ndarray) -> np.ndarray:
    """Frames of a mask, white where `anew` (T, Y, X)."""
    return np.repeat(anew[..., None] * np.uint8(WHITE), 3, axis=-1)


def with_mask(root: Path, frames: np.ndarray, anew: np.ndarray) -> tuple[object, ...]:
    """The options that give frames, and a mask of what is made `anew`."""
    return ("--video", save(root / "v", frames), "--mask", save(root / "m", masks(anew)))


def furnished(family: str, models: Models, root: Path) -> Place:
    """A folder with a clip of nine frames, images, and a model."""
    save(root / "clip", pictures(1, COUNT))
    Image.fromarray(pictures(2, 1)[0]).save(root / "first.png")
    Image.fromarray(pictures(3, 1)[0]).save(root / "last.png")
    Image.fromarray(pictures(4, 1, 48, 80)[0]).save(root / "wide.png")
    half = np.zeros((SIDE, SIDE), dtype=bool)
    half[:, SIDE // 2 :] = True
    Image.fromarray(masks(half[None])[0]).save(root / "right.png")
    return Place(root, models(family))


@pytest.fixture
def vace(models: Models, tmp_path: Path) -> Place:
    return furnished("wan21-vace", models, tmp_path)


@pytest.fixture
def t2v(models: Models, tmp_path: Path) -> Place:
    return furnished("wan21-t2v", models, tmp_path)


@pytest.fixture
def ti2v(models: Models, tmp_path: Path) -> Place:
    return furnished("wan22-ti2v-5b", models, tmp_path)


@pytest.fixture
def i2v(models: Models, tmp_path: Path) -> Place:
    return furnished("wan22-i2v-a14b", models, tmp_path)


def encode(place: Place, *words: object) -> Path:
    return place.made("encode-video", "--model", place.model, *words)


def denoise(place: Place, video: Path, *words: object) -> Path:
    sources = ("--from", place.text(), "--from", video)
    return place.made("denoise", "--model", place.model, *sources, *words)


def test_key_frames_are_a_gray_video_whose_mask_keeps_them(vace: Place) -> None:
    frames = np.full((COUNT, SIDE, SIDE, 3), GRAY, dtype=np.uint8)
    frames[0], frames[-1] = pictures(2, 1)[0], pictures(3, 1)[0]
    anew = np.ones((COUNT, SIDE, SIDE), dtype=bool)
    anew[[0, -1]] = False
    by_hand = (
        "--video",
        save(vace.root / "v", frames),
        "--mask",
        save(vace.root / "m", masks(anew)),
    )
    images = ("--keyframe", 0, "first.png", "--keyframe", -1, "last.png")
    assert encode(vace, *NINE, *images) == encode(vace, *NINE, *by_hand)


def test_outpainting_adds_gray_edges_that_are_made(vace: Place) -> None:
    frames = np.full((5, SIDE + 16, SIDE + 48, 3), GRAY, dtype=np.uint8)
    frames[:, 16:, 16 : 16 + SIDE] = pictures(1, COUNT)[:5]
    anew = np.ones(frames.shape[:3], dtype=bool)
    anew[:, 16:, 16 : 16 + SIDE] = False
    by_hand = (
        "--video",
        save(vace.root / "v", frames),
        "--mask",
        save(vace.root / "m", masks(anew)),
    )
    outpaint = encode(vace, *FRAMES, "--video", "clip", "--outpaint", "16,16,32,0")
    assert outpaint == encode(vace, *FRAMES, *by_hand)
    material = vace.entry(outpaint).material
    assert (material.width, material.height) == (SIDE + 48, SIDE + 16)


def test_extending_keeps_the_last_frames_and_makes_the_rest(vace: Place) -> None:
    frames = np.full((COUNT, SIDE, SIDE, 3), GRAY, dtype=np.uint8)
    frames[:5] = pictures(1, COUNT)[-5:]
    anew = np.arange(COUNT)[:, None, None] >= np.full((1, SIDE, SIDE), 5)
    by_hand = (
        "--video",
        save(vace.root / "v", frames),
        "--mask",
        save(vace.root / "m", masks(anew)),
    )
    extended = vace.entry(encode(vace, *NINE, "--video", "clip", "--extend", 5))
    same = vace.entry(encode(vace, *NINE, *by_hand))
    assert np.array_equal(extended.read("context"), same.read("context"))
    assert (extended.material.known_frames, same.material.known_frames) == (5, 0)


def test_a_still_mask_holds_for_every_frame(vace: Place) -> None:
    half = np.array(Image.open(vace.root / "right.png"))
    masked = save(vace.root / "m", np.repeat(half[None], COUNT, axis=0))
    words = (*NINE, "--video", "clip", "--mask")
    assert encode(vace, *words, "right.png") == encode(vace, *words, masked)


def test_a_mask_of_another_size_is_scaled_before_edges_are_added(vace: Place) -> None:
    large = np.array(Image.open(vace.root / "right.png")).repeat(2, axis=0).repeat(2, axis=1)
    Image.fromarray(large).save(vace.root / "large.png")
    words = (*NINE, "--video", "clip", "--outpaint", "0,0,32,0", "--mask")
    masks = [vace.entry(encode(vace, *words, name)) for name in ("right.png", "large.png")]
    anew = [entry.read("context")[32:].mean(axis=(0, 1, 2)) for entry in masks]
    assert np.abs(anew[0] - anew[1]).max() < 0.1


def test_a_mask_that_is_all_white_is_none(vace: Place) -> None:
    Image.new("RGB", (SIDE, SIDE), "white").save(vace.root / "white.png")
    words = (*NINE, "--video", "clip")
    assert encode(vace, *words, "--mask", "white.png") == encode(vace, *words)


def test_references_come_before_the_video_and_are_not_decoded(
    vace: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*NINE, "--reference", "first.png", "--reference", "wide.png")
    done = vace.do("encode-video", "--model", vace.model, *words)
    progress = [event for event in done.events if event["event"] == "progress"]
    assert [event["done"] for event in progress] == list(range(1, 9))
    assert {event["total"] for event in progress} == {8}
    video = vace.root / done.paths[-1]
    entry = vace.entry(video)
    assert entry.shape("context") == (96, 5, 4, 4)
    assert entry.record.references == 2
    other = vace.entry(encode(vace, *NINE, "--reference", "wide.png"))
    assert np.array_equal(entry.read("context")[:, 1:], other.read("context"))
    step = denoise(vace, video, *STEPS)
    assert vace.entry(step).shape("latent") == (16, 5, 4, 4)
    frames = vace.entry(vace.made("decode", "--from", step))
    assert frames.shape("frames") == (9, SIDE, SIDE, 3)
    drawn = []
    monkeypatch.setattr(
        "stages.preview.linear_frames", lambda x: drawn.append(x.shape) or linear_frames(x)
    )
    vace.made("preview", step)
    assert drawn == [(16, 3, 4, 4)]


def test_vace_makes_a_video_from_a_prompt_alone(vace: Place) -> None:
    alone = vace.film()
    stages = [event["stage"] for event in alone.events if event["event"] == "computed"]
    assert stages[:2] == ["encode-text", "encode-video"]
    context = vace.entry(next((vace.cache / "encode-video").iterdir())).read("context")
    assert (context[32:] == 1).all()
    assert np.array_equal(context[:16], context[16:32])


def test_a_video_is_fitted_as_the_official_resize_does(vace: Place) -> None:
    large = save(vace.root / "large", pictures(5, 5, 45, 70))
    fitted = np.stack([resize_crop(frame, SIDE, SIDE) for frame in pictures(5, 5, 45, 70)])
    small = save(vace.root / "small", fitted)
    words = (*SIDES, *FRAMES, "--video")
    assert encode(vace, *words, large) == encode(vace, *words, small)


def test_a_short_video_gives_as_many_frames_as_it_has(vace: Place) -> None:
    done = vace.do("encode-video", "--model", vace.model, *SIDES, "--video", "clip")
    assert "clip has 9 frames at 16 per second, so 9 frames are made instead of 81" in done.stderr
    entry = vace.entry(next((vace.cache / "encode-video").iterdir()))
    assert entry.material.num_frames == COUNT
    step = vace.entry(denoise(vace, entry.path, *STEPS))
    assert step.shape("latent")[1] == 3


def test_a_part_of_the_steps_changes_a_video(t2v: Place) -> None:
    video = encode(t2v, *NINE, "--video", "clip")
    latent = t2v.entry(video).read("latent")
    last = denoise(t2v, video, "--steps", 10, "--strength", 0.3)
    steps = t2v.chain(last)
    assert [step.step for step in steps] == [0, 1, 2]
    whole = t2v.chain(denoise(t2v, video, "--steps", 10, "--strength", 1))
    assert [step.material.sigma for step in steps] == [step.material.sigma for step in whole[-3:]]
    distances = [np.abs(chain[-1].read("latent") - latent).mean() for chain in (steps, whole)]
    assert distances[0] < distances[1]


def test_only_the_first_step_of_a_changed_video_names_it(t2v: Place) -> None:
    video = encode(t2v, *NINE, "--video", "clip")
    first, *others = t2v.chain(denoise(t2v, video, *STEPS))
    assert first.material.video == Path(video).name
    assert not any(step.material.video for step in others)
    assert "video" not in others[0].inputs


def test_a_changed_video_does_not_reset_the_step_cache(t2v: Place) -> None:
    video = encode(t2v, *NINE, "--video", "clip")
    words = ("--steps", 16, "--guide-scale", 1, "--step-cache", 0.05, "--stop-at", 3)
    steps = t2v.chain(denoise(t2v, video, *words))
    assert [step.material.step_cache.since for step in steps] == [0, 1, 2]


def test_what_a_mask_keeps_is_the_video_itself(t2v: Place) -> None:
    video = encode(t2v, *NINE, "--video", "clip", "--mask", "right.png")
    entry = t2v.entry(video)
    mask, latent = entry.read("mask"), entry.read("latent")
    assert mask.shape == (1, 3, 4, 4)
    assert np.array_equal(mask[0, :, :, 0], np.zeros((3, 4)))
    assert np.array_equal(mask[0, :, :, 3], np.ones((3, 4)))
    steps = t2v.chain(denoise(t2v, video, *STEPS, "--strength", 1))
    kept = np.broadcast_to(mask == 0, latent.shape)
    for step in steps:
        assert np.abs(step.read("x0") - latent)[kept].max() <= 1e-5
        assert step.material.video == entry.key
    assert np.abs(steps[-1].read("latent") - latent)[kept].max() <= 1e-5
    assert np.abs(steps[-1].read("latent") - latent)[~kept].max() > 0.1


def test_i2v_gets_the_first_frames_as_it_gets_an_image(i2v: Place) -> None:
    image = i2v.made("encode-image", "--model", i2v.model, *NINE, "--image", "first.png")
    save(i2v.root / "one", pictures(2, 1))
    one = encode(i2v, *NINE, "--video", "one", "--extend", 1)
    condition = i2v.entry(one).read("condition")
    assert np.array_equal(condition, i2v.entry(image).read("condition"))
    five = i2v.entry(encode(i2v, *NINE, "--video", "clip", "--extend", 5)).read("condition")
    assert np.array_equal(five[:4, :, 0, 0], [[1, 1, 0]] * 4)


def test_ti2v_keeps_the_first_frames_at_every_step(ti2v: Place) -> None:
    video = encode(ti2v, *SIDES, "--num-frames", 13, "--video", "clip", "--extend", 5)
    known = ti2v.entry(video).read("latent")
    assert known.shape == (48, 2, 2, 2)
    for step in ti2v.chain(denoise(ti2v, video, "--num-frames", 13, *STEPS)):
        latent = step.read("latent")
        assert np.array_equal(latent[:, :2], known)
        assert not np.array_equal(latent[:, 2:4], known)


def test_wan21_i2v_gives_clip_the_first_of_the_frames(models: Models, tmp_path: Path) -> None:
    place = furnished("wan21-i2v", models, tmp_path)
    Image.fromarray(pictures(1, COUNT)[-5]).save(tmp_path / "start.png")
    image = place.made("encode-image", "--model", place.model, *NINE, "--image", "start.png")
    video = encode(place, *NINE, "--video", "clip", "--extend", 5)
    tokens = [place.entry(entry).read("clip") for entry in (image, video)]
    assert np.array_equal(*tokens)


def test_a_continued_video_fades_in_where_both_show_the_same(i2v: Place) -> None:
    video = encode(i2v, *NINE, "--video", "clip", "--extend", 5)
    step = denoise(i2v, video, *STEPS)
    frames = i2v.entry(i2v.made("decode", "--from", step)).read("frames")
    i2v.do("decode", "--from", step, "--after", "clip", "--output", "joined.png")
    paths = sorted((i2v.root / "joined.png").iterdir())
    joined = np.stack([np.array(Image.open(path)) for path in paths])
    clip, share = pictures(1, COUNT), np.arange(1, 6).reshape(-1, 1, 1, 1) / 6
    common = np.rint((1 - share) * clip[-5:] + share * frames[:5])
    assert np.array_equal(joined, np.concatenate([clip[:-5], common, frames[5:]]))


def test_an_output_never_replaces_an_input(i2v: Place) -> None:
    step = denoise(i2v, encode(i2v, *NINE, "--video", "clip", "--extend", 5), *STEPS)
    i2v.do("decode", "--from", step, "--output", "made.png")
    says = "would replace the input of the same name"
    same = ("--after", "made.png", "--output", "made.png")
    i2v.refuse("decode", "--from", step, *same, code=2, says=says)
    run = ("run", "--prompt", "cat", "--model", i2v.model, *NINE, *STEPS, "--extend", 5)
    i2v.refuse(*run, "--video", "made.png", "--output", "made.png", code=2, says=says)


def test_a_video_trimmed_beyond_the_common_frames_is_not_joined(i2v: Place) -> None:
    video = encode(i2v, *NINE, "--video", "clip", "--extend", 5)
    for trim, common in ((1, 1), (2, None)):
        step = denoise(
            i2v, video, *STEPS, "--trim-first-frames", trim, "--num-frames", 9 - 4 * trim
        )
        words = ("decode", "--from", step, "--after", "clip", "--output", f"{trim}.png")
        if common is None:
            i2v.refuse(*words, code=2, says="are trimmed; leave it out")
        else:
            i2v.do(*words)
            assert len(list((i2v.root / f"{trim}.png").iterdir())) == COUNT + 5 - common


def test_a_run_from_a_video_is_resumed_and_branched(vace: Place) -> None:
    video = encode(vace, *NINE, "--video", "clip", "--mask", "right.png")
    whole = denoise(vace, video, *STEPS)
    half = denoise(vace, video, *STEPS, "--seed", 1, "--stop-at", 2)
    resumed = vace.made("denoise", "--from", half)
    assert [step.material.video for step in vace.chain(resumed)] == [video.name] * 4
    branch = vace.chain(vace.made("denoise", "--from", half, "--context-scale", 0.5))
    assert [step.material.context_scale for step in branch] == [1, 1, 0.5, 0.5]
    assert whole != resumed


def test_a_changed_video_is_exported_with_what_its_run_is_resumed_with(t2v: Place) -> None:
    video = encode(t2v, *NINE, "--video", "clip")
    half = denoise(t2v, video, *STEPS, "--stop-at", 2)
    t2v.do("cache", "export", half, "half.zip")
    copy = Place(t2v.root / "copy", t2v.model)
    copy.root.mkdir()
    copy.do("cache", "import", "../half.zip")
    last = copy.made("denoise", "--model", copy.model, "--from", half.name)
    assert last.name == t2v.made("denoise", "--from", half).name


def test_an_entry_of_a_video_is_shown_exported_and_kept(vace: Place) -> None:
    words = ("--video", "clip", "--mask", "right.png", "--reference", "wide.png")
    video = encode(vace, *NINE, *words)
    step = denoise(vace, video, *STEPS)
    name = "clip with mask right.png and reference wide.png"
    assert show(vace, step)["from video"] == f"encode-video/{video.name}: {name}"
    vace.do("decode", "--from", step, "--output", "film.mp4")
    film = show(vace, "film.mp4")
    assert [film[name] for name in ("video", "mask", "references")] == [
        "clip",
        "right.png",
        ["wide.png"],
    ]
    vace.do("cache", "export", step, "run.zip")
    copy = Place(vace.root / "copy", vace.model)
    copy.root.mkdir()
    copy.do("cache", "import", "../run.zip")
    assert (copy.cache / "encode-video" / video.name).is_dir()
