"""Packs the golden values that the tests use out of a folder of reference fixtures.

    python tests/data/pack.py FIXTURES

Checkpoints are kept whole, expected outputs without the intermediates that only serve bisecting;
videos become
uint8, as the tests compare them to within one level. Everything large is xz-compressed, each file
once.
"""

import json
import lzma
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

HERE = Path(__file__).parent
CHECKPOINTS = [
    *("wan21-t2v", "wan22-t2v-a14b", "wan22-i2v-a14b", "wan22-ti2v-5b", "wan21-i2v"),
    "wan21-flf2v",
    "wan21-vace",
]
TOPICS = [*CHECKPOINTS, "schedulers", "bad"]
CLIP = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
COMMON = ["Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/tokenizer.json"]
COMMON += [CLIP]
BAD = [
    *("NOTES.json", "alpha.png", "animated.gif", "cmyk.jpg", "gray16.png", "one_by_one.png"),
    *("text.png", "legacy_format.pth", "lora_no_match.safetensors", "lora_wrong_rank.safetensors"),
    *("os_system.pth", "wrong_dim/config.json"),
]
BISECTION = (
    "bisect_",
    "cond_",
    "uncond_",
    "latent_in",
    "token_timesteps",
    "context",
    "image_tensor",
    "last_image_tensor",
    "noise_pred",
    "x0",
    "latent_decoded",
)


# lp and lc of 4-byte words: float32 data packs 8 % smaller than with the defaults
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 2, "pb": 2}]


def write(data: bytes, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if len(data) > 4000 and target.suffix not in {".png", ".jpg", ".gif", ".mp4"}:
        target.with_name(target.name + ".xz").write_bytes(lzma.compress(data, filters=FILTERS))
    else:
        target.write_bytes(data)


def wanted(topic: str, name: str) -> bool:
    if topic.startswith("dit"):
        return name.partition("_")[2] in {
            "x",
            "t",
            "context",
            "y",
            "out",
            "t_tokt",
            "out_tokt",
            "out_scale0.5",
            "out_scale0",
            "vace_context",
            "fea",
            "rope_q",
            "rope_q_in",
        }
    if topic == "context":  # the rest is in the runs
        return name.startswith("mask_frames")
    if topic.startswith("t5"):
        return not name.startswith("p00_block")
    if topic.startswith(("e2e", "vae")):
        return not name.startswith(BISECTION)
    return True


def expected(source: Path, target: Path) -> None:
    arrays = {name: array for name, array in load_file(source).items() if wanted(source.stem, name)}
    if "video" in arrays:
        arrays["video"] = np.round((arrays["video"].clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    write(save(arrays), target)
    if not source.stem.startswith("dit"):
        settings = json.loads(source.with_suffix(".json").read_text())["settings"]
        target.with_suffix(".json").write_text(
            json.dumps(settings, indent=1, ensure_ascii=False) + "\n"
        )


def main(fixtures: Path) -> None:
    for name in CHECKPOINTS:
        for source in sorted((fixtures / name).rglob("*")):
            inside = source.relative_to(fixtures / name).as_posix()
            shared = inside in COMMON or inside.startswith("google/")
            twin = (
                inside.startswith("low_noise_model/") and source.suffix == ".json"
            )  # the high expert's again
            if source.is_file() and not shared and not twin:
                write(source.read_bytes(), HERE / name / inside)
    for inside in COMMON:
        family = "wan21-i2v" if inside == CLIP else "wan21-t2v"
        write((fixtures / family / inside).read_bytes(), HERE / "common" / inside)
    for inside in BAD:
        write((fixtures / "bad" / inside).read_bytes(), HERE / "bad" / inside)
    for source in sorted((fixtures / "expected").rglob("*.safetensors")):
        inside = source.relative_to(fixtures / "expected")
        if inside.parts[0] not in TOPICS:
            continue
        if inside.parts[-2] == "lora_files":
            write(source.read_bytes(), HERE / "expected" / inside)
        else:
            expected(source, HERE / "expected" / inside)
    for source in sorted((fixtures / "expected").rglob("*.[mp][pn][4g]")):
        inside = source.relative_to(fixtures / "expected")
        if inside.parts[0] in TOPICS:
            write(source.read_bytes(), HERE / "expected" / inside)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
