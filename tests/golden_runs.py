"""The commands whose entries have pinned keys, for every kind of model, and what they are given.

Runs them through any function that takes a command's words; imports nothing of wanpipe, so that an
older version can be recorded with the same commands.
"""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parent / "data"
Run = Callable[[list[str]], list[str]]  # words of a command to the paths that it prints
Record = dict[str, Any]  # an entry's attrs["wanpipe"]

PROMPT = '--prompt "a cat plays the piano"'
SMALL = "--width 32 --height 32 --num-frames 5 --steps 4"
TEXT = f"encode-text --model {{model}} {PROMPT}"
IMAGE = "encode-image --model {model} --image image.png --width 32 --height 32 --num-frames 5"
STEP = f"denoise --model {{model}} --from {{text}} {SMALL}"
IMAGE_STEP = f"denoise --model {{model}} --from {{text}} --from {{image}} {SMALL}"
CONVERT = "convert --checkpoint-dir {checkpoint}"
FLOAT32 = f"{CONVERT} --dtype float32"
SHRINK = "--quantize --quantize-text-encoder --bits 8 --group-size 32"

# name of each result: its command, in which {name} stands for the path of an earlier result
RUNS: dict[str, dict[str, str]] = {
    "wan21-t2v": {
        "model": FLOAT32,
        "bfloat16": CONVERT,
        "quantized": f"{FLOAT32} {SHRINK}",
        "quantized transformer": f"{FLOAT32} --quantize --group-size 32",
        "quantized model": f"convert --from-model {{model}} {SHRINK}",
        "text": TEXT,
        "negative prompt": f"{TEXT} --negative-prompt blurry",
        "no negative prompt": f"{TEXT} --no-negative-prompt",
        "unipc": STEP,
        "dpm++": f"{STEP} --scheduler dpm++",
        "euler": f"{STEP} --scheduler euler",
        "guidance 1": f"{STEP} --guide-scale 1",
        "branch": "denoise --model {model} --from {unipc 1} --guide-scale 2.5",
        "branch to guidance 1": "denoise --model {model} --from {unipc 1} --guide-scale 1",
        "seed, size, shift": f"{STEP} --seed 7 --width 48 --num-frames 9 --shift 3.5 --stop-at 1",
        "loras": f"{STEP} --lora style.safetensors 0.5 --lora other.safetensors -1 --stop-at 2",
        "step cache": f"{STEP} --steps 10 --step-cache 0.05",
        "timesteps": f"{STEP} --timesteps 1000,750.5,500,250",
        "euler timesteps": f"{STEP} --scheduler euler --timesteps 1000,750.5,500,250",
        "noise": f"{STEP} --noise noise.npy --stop-at 2",
        "trim": f"{STEP} --trim-first-frames 1 --stop-at 2",
        "wide": f"{STEP} --width 272 --stop-at 1",
        "frames": "decode --model {model} --from {unipc}",
        "frames of a middle step": "decode --model {model} --from {unipc 1}",
        "frames of tiles": "decode --model {model} --from {wide} --tiling spatial",
        "frames trimmed": "decode --model {model} --from {trim}",
    },
    "wan21-i2v": {
        "model": FLOAT32,
        "bfloat16": CONVERT,
        "text": TEXT,
        "image": IMAGE,
        "image with pads": f"{IMAGE} --fit pad",
        "unipc": IMAGE_STEP,
        "frames": "decode --model {model} --from {unipc}",
    },
    "wan22-t2v-a14b": {
        "model": FLOAT32,
        "bfloat16": CONVERT,
        "quantized": f"{FLOAT32} {SHRINK}",
        "text": TEXT,
        "unipc": STEP,
        "guidance pair": f"{STEP} --guide-scale 2.5,3.5",
        "guidance 1 at low noise": f"{STEP} --guide-scale 1,4",
        "loras": f"{STEP} --lora style.safetensors 1 --lora-high other.safetensors 0.5",
        "lora at low noise": f"{STEP} --lora-low style.safetensors 0.75",
        "step cache": f"{STEP} --steps 10 --step-cache 0.05",
        "frames": "decode --model {model} --from {unipc}",
    },
    "wan22-i2v-a14b": {
        "model": FLOAT32,
        "bfloat16": CONVERT,
        "text": TEXT,
        "image": IMAGE,
        "unipc": IMAGE_STEP,
        "frames": "decode --model {model} --from {unipc}",
    },
    "wan22-ti2v-5b": {
        "model": FLOAT32,
        "bfloat16": CONVERT,
        "text": TEXT,
        "image": IMAGE,
        "unipc": STEP,
        "unipc from an image": IMAGE_STEP,
        "frames": "decode --model {model} --from {unipc}",
        "frames from an image": "decode --model {model} --from {unipc from an image}",
    },
}
# the commands of the cache that 0.1.0 made; {t2v} and {i2v} are models
CACHE_RUNS = {
    "text": TEXT.replace("{model}", "{t2v}"),
    "seed 1": f"{STEP} --seed 1".replace("{model}", "{t2v}"),
    "seed 2": f"{STEP} --seed 2".replace("{model}", "{t2v}"),
    "branch": "denoise --model {t2v} --from {seed 1 1} --guide-scale 2.5",
    "frames": "decode --model {t2v} --from {seed 1}",
    "frames of the branch": "decode --model {t2v} --from {branch}",
    "image": IMAGE.replace("{model}", "{i2v}"),
    "from an image": IMAGE_STEP.replace("{model}", "{i2v}"),
    "frames from an image": "decode --model {i2v} --from {from an image}",
}
# runs that find all of it there
FILM = f"run {PROMPT} {SMALL} --output film.mp4"
CACHE_FILMS = (f"{FILM} --model {{t2v}} --seed 1", f"{FILM} --model {{i2v}} --image image.png")
CACHE_MODELS = {"t2v": "wan21-t2v", "i2v": "wan22-i2v-a14b"}
SHOWN = {"step cache": (0, 1, 2, 3, 9)}  # steps that are pinned, where not all are


def golden() -> dict[str, dict[str, Any]]:
    """Read what is pinned: for every kind of model key and material by name."""
    texts = {kind: (DATA / "golden" / f"{kind}.json").read_text(encoding="utf-8") for kind in RUNS}
    return {kind: json.loads(text) for kind, text in texts.items()}


def furnish(root: Path) -> None:
    """Lay out what the commands name: an image, a noise, two LoRAs that fit every model."""
    shutil.copyfile(DATA / "expected" / "wan21-i2v" / "image.png", root / "image.png")
    noise = (np.arange(512) % 23 - 11).astype(np.float32) / 8
    np.save(root / "noise.npy", noise.reshape(16, 2, 4, 4))
    for seed, name in ((5, "style"), (6, "other")):
        write_lora(root / f"{name}.safetensors", seed)


def write_lora(path: Path, seed: int) -> None:
    """Write a LoRA of rank 1 for one matrix of width 64, the same bytes on every machine."""
    names = [f"blocks.0.self_attn.q.lora_{side}.weight" for side in "AB"]
    shapes = ([1, 64], [64, 1])
    header = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [256 * at, 256 * at + 256]}
        for at, (name, shape) in enumerate(zip(names, shapes, strict=True))
    }
    text = json.dumps(header).encode()
    numbers = (np.arange(128) * seed % 31 - 15).astype("<f4") / 64
    path.write_bytes(struct.pack("<Q", len(text)) + text + numbers.tobytes())


def record_of(path: Path) -> Record:
    """Read the record of an entry, as any Zarr reader can."""
    record: Record = json.loads((path / "zarr.json").read_bytes())["attributes"]["wanpipe"]
    return record


def chain_of(root: Path, last: str) -> list[str]:
    """Give the paths of the steps from the noise to `last`."""
    paths = [last]
    while parent := record_of(root / paths[0])["parent"]:
        paths.insert(0, str(Path(last).parent / parent))
    return paths


def take(kind: str, checkpoint: Path, root: Path, run: Run) -> dict[str, Record]:
    """Run every command of a kind of model in `root`; the records by name, of a step with its
    number behind.
    """
    furnish(root)
    return follow(RUNS[kind], {"checkpoint": str(checkpoint)}, root, run)


def follow(
    commands: dict[str, str], places: dict[str, str], root: Path, run: Run
) -> dict[str, Record]:
    """Run named commands in order; `places` are the paths known before, and gets those made."""
    records = {}
    for name, command in commands.items():
        words = [word.strip('"') for word in split(command)]
        places[name] = run([word.format_map(places) for word in words])[-1]
        if words[0] != "denoise":
            records[name] = record_of(root / places[name])
            continue
        for step, place in enumerate(chain_of(root, places[name])):
            places[f"{name} {step}"] = place
            if step in SHOWN.get(name, (step,)):
                records[f"{name} {step}"] = record_of(root / place)
    return records


def split(command: str) -> list[str]:
    """Split at spaces, except within quotes and braces."""
    words, depth, quoted = [""], 0, False
    for letter in command:
        depth += (letter == "{") - (letter == "}")
        quoted ^= letter == '"'
        if letter == " " and not depth and not quoted:
            words.append("")
        else:
            words[-1] += letter
    return words


def pinned(record: Record) -> dict[str, Any]:
    """Give what is pinned of an entry: its key and its material; of a converted model also the
    content hashes of its components, where no quantization of MLX is in them.
    """
    shown = {"key": record["key"], "material": record["material"]}
    if record["stage"] == "convert" and record["material"]["quantization"] is None:
        files = record["files"].items()
        shown["files"] = {name: digest for name, digest in files if name != "config.json"}
    return shown
