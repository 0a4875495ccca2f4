"""Every model of the family against the official sampling loops, through the command line. The
first run of each model takes a process a stage.
"""

from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.commands import Result, wanpipe
from tests.conftest import DATA, golden, relative_error, settings
from tests.workshop import inside

pytestmark = pytest.mark.slow

RUNS = [
    ("wan21-t2v", "e2e"),
    ("wan21-t2v", "e2e_dpmpp"),
    ("wan22-t2v-a14b", "e2e"),
    ("wan22-i2v-a14b", "e2e"),
    ("wan22-ti2v-5b", "e2e_t2v"),
    ("wan22-ti2v-5b", "e2e_i2v"),
    ("wan21-i2v", "e2e"),
    ("wan21-flf2v", "e2e"),
    ("wan21-flf2v", "e2e_short"),
    ("wan21-flf2v", "e2e_sizes"),
    ("wan22-i2v-a14b", "e2e_last"),  # of diffusers: the official code has no last image here
    ("wan21-vace", "e2e_inpaint"),
    ("wan21-vace", "e2e_reference"),
    ("wan21-vace", "e2e_control"),
    ("wan21-vace", "e2e_composite"),
    ("wan22-i2v-a14b", "e2e_last_alone"),
    # of diffusers, too: videos that are changed or continued
    ("wan21-t2v", "e2e_video"),
    ("wan21-t2v", "e2e_video_whole"),
    ("wan21-t2v", "e2e_video_mask"),
    ("wan22-t2v-a14b", "e2e_video"),
    ("wan22-i2v-a14b", "e2e_extend"),
    ("wan21-i2v", "e2e_extend"),
    ("wan22-ti2v-5b", "e2e_extend"),
]
CONDITIONS = settings("wan21-flf2v/condition")["cases"]
IMAGES = {"image": "--image", "first_frame": "--image", "last_frame": "--last-image"}
VIDEOS = {"src_video": "--video", "src_mask": "--mask"}
LATENT_TOLERANCE = 1e-4


def attributes(path: str | Path) -> dict:
    return dict(zarr.open_group(str(path), mode="r").attrs["wanpipe"])


def denoise_options(run: dict, size: tuple[int, int]) -> list:
    guide = run["guide_scale"]
    scale = ",".join(map(str, guide)) if isinstance(guide, list) else guide
    context = ["--context-scale", run["context_scale"]] if "context_scale" in run else []
    strength = ["--strength", run["strength"]] if "strength" in run else []
    grid = ["--timesteps", ",".join(map(str, run["timesteps"]))] if "timesteps" in run else []
    return [
        *grid,
        *context,
        *strength,
        *("--width", size[0], "--height", size[1], "--num-frames", run["frame_num"]),
        *("--steps", run["sampling_steps"], "--shift", run["shift"]),
        *("--guide-scale", scale, "--scheduler", run["solver"]),
    ]


def succeed(*arguments: object, cwd: Path, apart: bool = False) -> Result:
    """Run a command that must succeed, in a process of its own if it is `apart`."""
    result = (wanpipe if apart else inside)(*arguments, cwd=cwd)
    assert result.code == 0, result.stderr
    return result


@pytest.mark.parametrize(("checkpoint", "topic"), RUNS)
def test_five_stages_give_the_official_latents_and_video(
    checkpoint: str, topic: str, checkpoints: Path, tmp_path: Path
) -> None:
    first = next(other for name, other in RUNS if name == checkpoint)
    reference, run = golden(f"{checkpoint}/{topic}"), settings(f"{checkpoint}/{topic}")
    np.save(tmp_path / "noise.npy", reference["noise"])
    height, width = reference["video"].shape[2:]

    def made(*arguments: object) -> str:
        return succeed(*arguments, cwd=tmp_path, apart=topic == first).paths[-1]

    model = made("convert", "--checkpoint-dir", checkpoints / checkpoint, "--dtype", "float32")
    prompts = ["--prompt", run["prompt"], "--negative-prompt", run["n_prompt"]]
    sources = ["--from", made("encode-text", "--model", model, *prompts)]
    if images := image_options(checkpoint, run):
        canvas = ["--width", width, "--height", height, "--num-frames", run["frame_num"]]
        words = ("--model", model, *images, *canvas, "--fit", "official")
        image = made("encode-image", *words)
        check_image(tmp_path / image, reference)
        sources += ["--from", image]
    if words := video_options(checkpoint, run):
        video = made("encode-video", "--model", model, *words)
        check_video(tmp_path / video, reference, run)
        sources += ["--from", video]
    options = denoise_options(run, (width, height))
    step = made("denoise", "--model", model, *sources, "--noise", "noise.npy", *options)
    check_chain(tmp_path, step, reference)
    frames = made("decode", "--from", step, "--output", "video.mp4")
    ours = zarr.open_group(str(tmp_path / frames), mode="r")["frames"][...].astype(int)
    assert np.abs(ours - reference["video"].transpose(1, 2, 3, 0)).max() <= 1


@pytest.mark.parametrize("case", CONDITIONS)
def test_two_images_of_any_size_give_the_official_condition(
    case: str, checkpoints: Path, tmp_path: Path
) -> None:
    reference, run = golden("wan21-flf2v/condition"), CONDITIONS[case]
    source = checkpoints / "wan21-flf2v"
    words = ("convert", "--checkpoint-dir", source, "--dtype", "float32")
    model = succeed(*words, cwd=tmp_path).paths[-1]
    width, height = run["video_size"]
    canvas = ["--width", width, "--height", height, "--num-frames", run["frame_num"]]
    words = ("--model", model, *image_options("wan21-flf2v", run), *canvas, "--fit", "official")
    entry = succeed("encode-image", *words, cwd=tmp_path).paths[-1]
    names = {"y", "clip_fea"} & {name.removeprefix(f"{case}_") for name in reference}
    check_image(tmp_path / entry, {name: reference[f"{case}_{name}"] for name in names})


def image_options(checkpoint: str, run: dict) -> list:
    """The options of encode-image that name the images of a run."""
    pairs = [(option, run[name]) for name, option in IMAGES.items() if name in run]
    folder = DATA / "expected" / checkpoint
    return [word for option, file in pairs for word in (option, folder / file)]


def video_options(checkpoint: str, run: dict) -> list:
    """The options of encode-video for a run of VACE, or one that changes or continues a video."""
    folder = DATA / "expected" / checkpoint
    pairs = [(option, run[name]) for name, option in VIDEOS.items() if run.get(name)]
    pairs += [("--reference", file) for file in run.get("src_ref_images") or ()]
    if not pairs:
        return []
    words = [word for option, file in pairs for word in (option, folder / file)]
    size = ["--width", run["size"][0], "--height", run["size"][1]]
    thinned = "vace" in checkpoint and run["src_video"]
    extend = ["--extend", run["extend"]] if "extend" in run else []
    whole = ["--video-fit", "whole"] if thinned else ["--num-frames", run["frame_num"]]
    return [*words, *size, *extend, *whole]


def check_video(entry: Path, reference: dict[str, np.ndarray], run: dict) -> None:
    """The context is the official one, and its record counts the references; what is changed or
    continued is that of diffusers.
    """
    group = zarr.open_group(str(entry), mode="r")
    if "vace_context" in reference:
        assert relative_error(group["context"][...], reference["vace_context"]) <= 1e-6
        assert attributes(entry)["references"] == run["references"]
    elif "extend" in run:
        check_image(entry, reference)
    else:
        assert relative_error(group["latent"][...], reference["z"]) <= 1e-5
        assert ("mask" in group) == ("mask" in reference)
        if "mask" in reference:
            assert np.array_equal(group["mask"][...], reference["mask"])


def check_image(entry: Path, reference: dict[str, np.ndarray]) -> None:
    group = zarr.open_group(str(entry), mode="r")
    if "condition" in group:
        assert np.array_equal(group["condition"][:4], reference["y"][:4])
        assert relative_error(group["condition"][...], reference["y"]) <= 1e-5
    else:
        assert relative_error(group["latent"][...], reference["image_latent"]) <= 1e-5
    if "clip_fea" in reference:
        tokens = np.concatenate(reference["clip_fea"])  # of the first image, then of the last
        assert relative_error(group["clip"][...], tokens) <= 1e-5


def check_chain(root: Path, last: str, reference: dict[str, np.ndarray]) -> None:
    """Follow the parents from the last step to the noise, comparing every latent and timestep."""
    key, steps = Path(last).name, []
    while key is not None:
        path = root / "cache" / "denoise" / key
        record = attributes(path)
        latent = zarr.open_group(str(path), mode="r")["latent"][...]
        steps.append((record["step"], record["material"]["timestep"], latent))
        key = record["parent"]
    assert [step for step, _, _ in reversed(steps)] == list(range(len(reference["latents"])))
    for step, timestep, latent in steps:
        assert timestep == reference["timesteps"][step]
        assert relative_error(latent, reference["latents"][step]) <= LATENT_TOLERANCE, step
