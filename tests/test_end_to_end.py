"""Every model of the family against the official sampling loops, through the command line, each
stage a process.
"""

from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.commands import succeed
from tests.conftest import DATA, golden, relative_error, settings

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
    ("wan22-i2v-a14b", "e2e_last_alone"),
]
CONDITIONS = settings("wan21-flf2v/condition")["cases"]
IMAGES = {"image": "--image", "first_frame": "--image", "last_frame": "--last-image"}
LATENT_TOLERANCE = 1e-4


def attributes(path: str | Path) -> dict:
    return dict(zarr.open_group(str(path), mode="r").attrs["wanpipe"])


def denoise_options(run: dict, size: tuple[int, int]) -> list:
    guide = run["guide_scale"]
    scale = ",".join(map(str, guide)) if isinstance(guide, list) else guide
    grid = ["--timesteps", ",".join(map(str, run["timesteps"]))] if "timesteps" in run else []
    return [
        *grid,
        *("--width", size[0], "--height", size[1], "--num-frames", run["frame_num"]),
        *("--steps", run["sampling_steps"], "--shift", run["shift"]),
        *("--guide-scale", scale, "--scheduler", run["solver"]),
    ]


@pytest.mark.parametrize(("checkpoint", "topic"), RUNS)
def test_five_processes_give_the_official_latents_and_film(
    checkpoint: str, topic: str, checkpoints: Path, tmp_path: Path
) -> None:
    reference, run = golden(f"{checkpoint}/{topic}"), settings(f"{checkpoint}/{topic}")
    np.save(tmp_path / "noise.npy", reference["noise"])
    height, width = reference["video"].shape[2:]

    def made(*arguments: object) -> str:
        return succeed(*arguments, cwd=tmp_path).paths[-1]

    model = made("convert", "--checkpoint-dir", checkpoints / checkpoint, "--dtype", "float32")
    prompts = ["--prompt", run["prompt"], "--negative-prompt", run["n_prompt"]]
    sources = ["--from", made("encode-text", "--model", model, *prompts)]
    if images := image_options(checkpoint, run):
        canvas = ["--width", width, "--height", height, "--num-frames", run["frame_num"]]
        words = ("--model", model, *images, *canvas, "--fit", "official")
        image = made("encode-image", *words)
        check_image(tmp_path / image, reference)
        sources += ["--from", image]
    options = denoise_options(run, (width, height))
    step = made("denoise", "--model", model, *sources, "--noise", "noise.npy", *options)
    check_chain(tmp_path, step, reference)
    frames = made("decode", "--from", step, "--output", "film.mp4")
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
