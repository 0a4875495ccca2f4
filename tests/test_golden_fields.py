"""Every field of every material: what a user changes to change it, and that the key changes then.

A row makes two entries, the second by a change of the first one's command; they must differ in the
fields that it names and in no other.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import xxhash
from msgspec import structs
from PIL import Image

from tests.golden_runs import CONVERT, Record, chain_of, furnish, golden, record_of, split
from tests.workshop import Models, inside
from wanpipe.store import key_of
from wanpipe.store.materials import VideoEncoding

GOLDEN = golden()
HEAD = {"schema", "stage", "algorithm"}  # of every material; only a release changes them
T2V, I2V, A14B, A14B_I2V = "wan21-t2v", "wan21-i2v", "wan22-t2v-a14b", "wan22-i2v-a14b"
SIZE = "--width 32 --height 32 --num-frames 5"
FLOAT32 = f"{CONVERT} --dtype float32"
PACKED = f"{FLOAT32} --quantize --group-size 32"
SHRINK = "convert --from-model {model} --quantize --group-size 32"
TEXT = "encode-text --model {model} --prompt cat"
FLF2V = "wan21-flf2v"
IMAGE = f"encode-image --model {{model}} {SIZE} --image square.png"
WIDE = f"{IMAGE} --image wide.png"
BOTH = f"{IMAGE} --last-image wide.png"
TI2V, VACE = "wan22-ti2v-5b", "wan21-vace"
CLIP = f"encode-video --model {{model}} {SIZE} --video clip"
CONTINUED = f"{CLIP} --extend 1"
MASKED = f"{CLIP} --mask half.png"
REFERENCE = f"encode-video --model {{model}} {SIZE} --reference square.png"
START = f"denoise --model {{model}} --from {{text}} {SIZE}"
STEP = f"{START} --steps 4"
IMAGE_STEP = "denoise --model {model} --from {text} --from {image} --steps 4"
VIDEO_STEP = "denoise --model {model} --from {text} --from {clip} --steps 4"
MASKED_STEP = "denoise --model {model} --from {text} --from {masked clip} --steps 4"
GRID = f"{START} --shift 1 --timesteps"
CACHED = f"{START} --steps 10 --step-cache 0.05"
LORA = f"{STEP} --lora style.safetensors 1"
PAIR = f"{STEP} --guide-scale 3,4"
# from a step that no other row has, since a step is continued as the latest of its runs
BRANCH = "denoise --model {model} --from"
DECODE = "decode --model {model} --from {step}"
NAMED = {
    "text": TEXT,
    "other text": f"{TEXT} --prompt dog",
    "other negative": f"{TEXT} --negative-prompt dark",
    "image": IMAGE,
    "other image": WIDE,
    "clip": CLIP,
    "other clip": f"{CLIP} --video other",
    "masked clip": MASKED,
    "referenced step": "denoise --model {model} --from {text} --from {reference} --stop-at 1",
    "reference": REFERENCE,
    "plain step": "denoise --model {model} --from {text} --from {clip} --stop-at 1",
    "step": f"{STEP} --stop-at 1",
    "image step": f"{IMAGE_STEP} --stop-at 1",
    "step before a LoRA": f"{STEP} --stop-at 1 --seed 2",
    "step before a text": f"{STEP} --stop-at 1 --seed 3",
    "step before a guidance": f"{STEP} --stop-at 1 --seed 4",
    "other step": f"{STEP} --stop-at 1 --seed 1",
    "long step": f"{STEP} --stop-at 1 --num-frames 9",
    "trimmed step": f"{STEP} --stop-at 1 --trim-first-frames 1",
    "wide step": f"{STEP} --stop-at 1 --width 272",
}


@dataclass(frozen=True)
class Row:
    """The fields in which two entries differ, the command of the first, and the change that makes
    it the second one's: words to add, or "old => new". Of a run its step `step` is compared.
    """

    fields: str
    command: str
    change: str
    kind: str = T2V
    step: int = 0
    apart: bool = False  # whether the second is made in another folder, all of it by its model

    @property
    def stage(self) -> str:
        """The stage of both entries."""
        return self.command.split()[0]

    @property
    def changed(self) -> str:
        """The command of the second entry."""
        old, arrow, new = self.change.partition(" => ")
        if arrow:
            assert old in self.command, self
            return self.command.replace(old, new)
        return f"{self.command} {self.change}"


ROWS = [
    Row("source", FLOAT32, "{checkpoint} => {spaced checkpoint}"),
    Row("source", SHRINK, "{model} => {other vae}"),
    Row("variant", FLOAT32, "{checkpoint} => {checkpoint 720p}", I2V),
    Row("dtype", FLOAT32, "--dtype bfloat16"),
    Row("dtype", FLOAT32, "--dtype float16"),
    Row("quantization", FLOAT32, "--quantize --group-size 32"),
    Row("quantization", PACKED, "--group-size 64"),
    Row("quantization", PACKED, "--bits 8"),
    Row("quantization", PACKED, "--quantize-text-encoder"),
    Row("quantization", SHRINK, "--bits 8"),
    Row("defaults", SHRINK, "{model} => {other fps}"),
    Row("t5", TEXT, "{model} => {other t5_encoder}"),
    Row("tokenizer", TEXT, "{model} => {other tokenizer}"),
    Row("prompt", TEXT, "cat => dog"),
    Row("negative", TEXT, "--negative-prompt dark"),
    Row("negative", TEXT, "--no-negative-prompt"),
    Row("text_len", TEXT, "{model} => {other text_len}"),
    Row("vae", IMAGE, "{model} => {other vae_encoder}", I2V),
    Row("vae", IMAGE, "{model} => {other vae_encoder}", "wan22-ti2v-5b"),
    Row("clip", IMAGE, "{model} => {other clip}", I2V),
    Row("pixels", WIDE, "wide => middle", A14B_I2V),
    Row("pixels", WIDE, "--fit pad", I2V),
    Row("clip_pixels", WIDE, "wide => edge", I2V),
    Row("last_pixels", IMAGE, "--last-image wide.png", A14B_I2V),
    Row("pixels", BOTH, " --image square.png => ", A14B_I2V),
    Row("last_pixels", BOTH, "wide => middle", A14B_I2V),
    Row("last_pixels", BOTH, "--fit pad", FLF2V),
    Row("last_clip_pixels", BOTH, "wide => edge", FLF2V),
    Row("width pixels", IMAGE, "--width 48", I2V),
    Row("height pixels", IMAGE, "--height 48", I2V),
    Row("num_frames", IMAGE, "--num-frames 9", I2V),
    Row("mode vae", f"{IMAGE} --num-frames 1", "{model} => {other task}", A14B_I2V),
    Row("pixels", CLIP, "--video other", VACE),
    Row("pixels", CLIP, "--video other"),
    Row("mask", CLIP, "--mask half.png", VACE),
    Row("mask", MASKED, "half => third"),
    Row("references", CLIP, "--reference square.png", VACE),
    Row("references", REFERENCE, "square => wide", VACE),
    Row("pixels mask known_frames", CLIP, "--extend 1", VACE),
    Row("mode", CLIP, "{model} => {other task}", VACE),
    Row("vae", CLIP, "{model} => {other vae_encoder}", VACE),
    Row("pixels clip_pixels", CONTINUED, "--video other", I2V),
    Row("clip_pixels", f"{CONTINUED} --video wide", "wide => edge", I2V),
    Row("clip", CONTINUED, "{model} => {other clip}", I2V),
    Row("known_frames pixels num_frames", CONTINUED, "--num-frames 9 --extend 5", TI2V),
    Row("width pixels", CLIP, "--width 48", VACE),
    Row("height pixels", CLIP, "--height 48", VACE),
    Row("num_frames pixels", CLIP, "--num-frames 1", VACE),
    Row("noise", STEP, "--seed 1"),
    Row("noise", STEP, "--width 48"),
    Row("noise", STEP, "--height 48"),
    Row("noise", STEP, "--num-frames 9"),
    Row("noise", STEP, "--noise noise.npy"),
    Row("noise", STEP, "--trim-first-frames 1"),
    Row("noise", f"{STEP} --num-frames 9", "--num-frames 5 --trim-first-frames 1"),
    Row("parent", STEP, "--seed 1", step=1),
    Row("expert", STEP, "{model} => {other model}"),
    Row("expert", STEP, "{model} => {other high_noise_model}", A14B),
    Row("expert", STEP, "{model} => {other low_noise_model}", A14B, step=3),
    Row("loras", STEP, "--lora style.safetensors 1"),
    Row("loras", LORA, "style => other"),
    Row("loras", LORA, "safetensors 1 => safetensors 0.5"),
    Row(
        "loras",
        f"{LORA} --lora other.safetensors 1",
        "style.safetensors 1 --lora other => other.safetensors 1 --lora style",
    ),
    Row("loras", STEP, "--lora-high style.safetensors 1", A14B),
    Row("loras", STEP, "--lora-low style.safetensors 1", A14B, step=3),
    Row("loras", f"{BRANCH} {{step before a LoRA}}", "--lora style.safetensors 1", step=1),
    Row("text", STEP, "{text} => {other text}"),
    Row("text", STEP, "{text} => {other negative}"),
    Row("text", f"{STEP} --guide-scale 1", "{text} => {other text}"),
    Row("text", f"{BRANCH} {{step before a text}}", "--from {other text}", step=1),
    Row("text guide_scale", STEP, "--guide-scale 1"),
    Row("image", IMAGE_STEP, "{image} => {other image}", A14B_I2V),
    Row("image", IMAGE_STEP, "{image} => {other image}", I2V),
    Row("video", VIDEO_STEP, "{clip} => {other clip}", VACE),
    Row("video", VIDEO_STEP, "{clip} => {other clip}"),
    Row("parent", VIDEO_STEP, "{clip} => {other clip}", step=1),
    Row("parent video", MASKED_STEP, "{masked clip} => {clip}", step=1),
    Row("timestep sigma sigma_next", VIDEO_STEP, "--strength 0.5"),
    Row("context_scale", VIDEO_STEP, "--context-scale 0.5", VACE),
    Row("guide_scale", STEP, "--guide-scale 4.5"),
    Row("guide_scale", f"{BRANCH} {{step before a guidance}}", "--guide-scale 4.5", step=1),
    Row("guide_scale", PAIR, "--guide-scale 3,5", A14B),
    Row("guide_scale", PAIR, "--guide-scale 2,4", A14B, step=3),
    Row("solver", f"{GRID} 1000,750,500 --scheduler dpm++", "dpm++ => euler"),
    Row("solver sigma_next", f"{GRID} 1000,750,500 --scheduler dpm++", ",500 => ", step=1),
    Row("solver timestep", f"{GRID} 990.5,750 --scheduler dpm++", "dpm++ => euler"),
    Row("sigma", f"{GRID} 990.5,750", "990.5 => 990.7"),
    Row("sigma_next", f"{GRID} 990,750", "750 => 700"),
    Row("timestep sigma sigma_next", f"{GRID} 900,750", "--shift 3"),
    Row("step_cache", f"{START} --steps 10", "--step-cache 0.05"),
    Row("step_cache", CACHED, "0.05 => 0.04"),
    Row("step_cache sigma_next", CACHED, "--steps 10 => --steps 11"),
    Row("vae", DECODE, "{model} => {other vae}", apart=True),
    Row("step", DECODE, "{step} => {other step}"),
    Row("tiling", "decode --model {model} --from {wide step}", "--tiling spatial"),
    Row("trim_first_frames step", "decode --model {model} --from {long step}", "long => trimmed"),
    Row(
        "reference_frames step",
        "decode --model {model} --from {referenced step}",
        "referenced => plain",
        VACE,
    ),
]


@dataclass
class Bench:
    """A folder in which commands are run with models, images and entries by name."""

    root: Path
    models: dict[str, Path]
    model: str = "model"  # which of the models {model} stands for

    def __post_init__(self) -> None:
        self.root.mkdir(exist_ok=True)
        furnish(self.root)
        draw_images(self.root)
        draw_clips(self.root)
        self.made: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        """The path that {name} in a command stands for."""
        name = self.model if name == "model" else name
        return str(self.models[name]) if name in self.models else self.path(NAMED[name])

    def path(self, command: str) -> str:
        """Run a command, if it was not run before; the last path that it prints."""
        if command not in self.made:
            words = [word.format_map(self) for word in split(command)]
            result = inside(*words, cwd=self.root)
            assert result.code == 0, f"{words}: {result.stderr}"
            self.made[command] = result.paths[-1]
        return self.made[command]

    def record(self, command: str, step: int) -> Record:
        """The record of a command's entry; of a run that of one step."""
        path = self.path(command)
        if command.startswith("denoise"):
            path = chain_of(self.root, path)[step]
        return record_of(self.root / path)


def draw_images(root: Path) -> None:
    """Draw a square image, and three wide ones: two differ from the first by one pixel, in the
    middle and at the edge, which a square canvas does not show.
    """
    pixels = np.random.Generator(np.random.Philox(3)).integers(0, 256, (32, 64, 3), np.uint8)
    Image.fromarray(pixels[:, :32]).save(root / "square.png")
    Image.fromarray(pixels).save(root / "wide.png")
    for name, column in (("middle", 32), ("edge", 0)):
        changed = pixels.copy()
        changed[16, column] ^= 255
        Image.fromarray(changed).save(root / f"{name}.png")


def draw_clips(root: Path) -> None:
    """Draw clips of nine frames as folders, of which `other` has one other pixel in every frame,
    and masks.
    """
    frames = np.random.Generator(np.random.Philox(5)).integers(0, 256, (9, 32, 64, 3), np.uint8)
    other, edge = frames[:, :, :32].copy(), frames.copy()
    other[:, 16, 16] ^= 255
    edge[:, 16, 0] ^= 255
    clips = {"clip": frames[:, :, :32], "other": other, "wide": frames, "edge": edge}
    for name, pictures in clips.items():
        (root / name).mkdir()
        for number, picture in enumerate(pictures):
            Image.fromarray(picture).save(root / name / f"{number}.png")
    for name, columns in (("half", 16), ("third", 8)):
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[:, :columns] = 255
        Image.fromarray(mask).save(root / f"{name}.png")


def linked(source: Path, target: Path) -> Path:
    """Copy a folder by links to its files."""
    shutil.copytree(source, target, copy_function=lambda old, new: Path(new).symlink_to(old))
    return target


def rewrite(path: Path, data: bytes) -> None:
    """Write a file in place of a link to another."""
    path.unlink()
    path.write_bytes(data)


def with_config(model: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Copy a model with another config.json."""
    config = json.loads((model / "config.json").read_bytes())
    change(config)
    linked(model, target)
    rewrite(target / "config.json", json.dumps(config).encode())
    return target


def with_component(model: Path, target: Path, name: str) -> Path:
    """Copy a model with one other component: the lowest bit of its last number differs, or a
    tokenizer has one more space.
    """
    config = json.loads((model / "config.json").read_bytes())
    file = config["components"][name]["file"]
    data = bytearray((model / file).read_bytes())
    if name == "tokenizer":
        data += b" "
    else:
        data[-4] ^= 1

    def change(config: dict[str, Any]) -> None:
        component = config["components"][name]
        component |= {"hash": xxhash.xxh3_128_hexdigest(data), "bytes": len(data)}

    with_config(model, target, change)
    rewrite(target / file, bytes(data))
    return target


def set_text_len(config: dict[str, Any]) -> None:
    config["components"]["model"]["config"]["text_len"] = 511


def set_fps(config: dict[str, Any]) -> None:
    config["defaults"]["fps"] = 12


def variants(kind: str, checkpoint: Path, model: Path, root: Path) -> Iterator[tuple[str, Path]]:
    """Give checkpoints and models by name: the plain ones, and those with one difference."""
    yield "checkpoint", checkpoint
    yield "model", model
    for name in json.loads((model / "config.json").read_bytes())["components"]:
        yield f"other {name}", with_component(model, root / f"other {name}", name)
    if kind == T2V:
        yield "other text_len", with_config(model, root / "other text_len", set_text_len)
        yield "other fps", with_config(model, root / "other fps", set_fps)
        spaced = linked(checkpoint, root / "spaced checkpoint")
        rewrite(spaced / "config.json", (checkpoint / "config.json").read_bytes() + b" ")
        yield spaced.name, spaced
    if kind == I2V:
        words = ("convert", "--checkpoint-dir", checkpoint, "--output-dir", root / "bfloat16")
        assert inside(*words, cwd=root).code == 0
        yield "bfloat16", root / "bfloat16"
        yield "checkpoint 720p", linked(checkpoint, root / "checkpoint 720p")
    if kind == VACE:
        source, target = checkpoint.parent / T2V, root / "other task"
        words = ("convert", "--checkpoint-dir", source, "--output-dir", target)
        assert inside(*words, "--dtype", "float32", cwd=root).code == 0
        yield target.name, target
    if kind == A14B_I2V:
        source, target = checkpoint.parent / "wan22-ti2v-5b", root / "other task"
        words = ("convert", "--checkpoint-dir", source, "--output-dir", target)
        assert inside(*words, "--dtype", "float32", cwd=root).code == 0
        yield target.name, target


@pytest.fixture(scope="session")
def benches(
    checkpoints: Path, models: Models, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Bench]:
    """Gives the folder of a kind of model, and of what {model} stands for in it."""
    root = tmp_path_factory.mktemp("fields")

    @cache
    def models_of(kind: str) -> dict[str, Path]:
        (root / kind).mkdir()
        return dict(variants(kind, checkpoints / kind, models(kind), root / kind))

    @cache
    def bench(kind: str, model: str) -> Bench:
        return Bench(root / f"{kind} {model}", models_of(kind), model)

    return bench


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.stage}-{row.fields}-{row.change}")
def test_a_change_is_in_these_fields_and_in_the_key(
    row: Row, benches: Callable[[str, str], Bench]
) -> None:
    bench = benches(row.kind, "model")
    before = bench.record(row.command, row.step)
    if row.apart:
        bench = benches(row.kind, row.change.partition(" => ")[2].strip("{}"))
    after = bench.record(row.command if row.apart else row.changed, row.step)
    materials = before["material"], after["material"]
    missing = object()
    names = {*materials[0], *materials[1]}
    differing = {
        name for name in names if len({repr(each.get(name, missing)) for each in materials}) > 1
    }
    assert differing == set(row.fields.split())
    assert before["key"] != after["key"]


COMPUTING = [TEXT, IMAGE, IMAGE_STEP, "decode --model {model} --from {image step}"]


@pytest.mark.parametrize("command", COMPUTING, ids=lambda command: command.split()[0])
def test_the_dtype_that_a_gpu_computes_in_is_in_the_key(
    command: str, benches: Callable[[str, str], Bench]
) -> None:
    bench = benches(I2V, "bfloat16")  # which the CPU computes in float32
    words = [word.format_map(bench) for word in split(command)]
    keys = []
    for gpu in (False, True):
        with patch("wanpipe.backend.device.is_gpu", lambda gpu=gpu: gpu):
            result = inside(*words, "--dry-run", "--events", "json", cwd=bench.root)
        assert result.code == 0, result.stderr
        planned = [event["key"] for event in result.events if event["event"] == "planned"]
        keys.append(planned[0])
    assert keys[0] != keys[1]


# fields that came after 0.1.0, so no pinned material has them
LATER = {
    "encode-image": {"last_pixels", "last_clip_pixels"},
    "denoise": {"video", "context_scale"},
    "decode": {"reference_frames"},
}


def fields_by_stage() -> dict[str, set[str]]:
    """The fields of all pinned materials."""
    fields: dict[str, set[str]] = {}
    for entries in GOLDEN.values():
        for entry in entries.values():
            material = entry["material"]
            fields.setdefault(material["stage"], set()).update(material)
    return fields


def names_of(stage: str) -> set[str]:
    """The fields of a stage's material, in keys of 0.1.0 and later."""
    if stage == "encode-video":  # which came later
        return {"stage", *(field.name for field in structs.fields(VideoEncoding))}
    return fields_by_stage()[stage] | LATER.get(stage, set())


@pytest.mark.parametrize("stage", ["encode-video", *fields_by_stage()])
def test_every_field_has_a_row(stage: str) -> None:
    rows = {name for row in ROWS if row.stage == stage for name in row.fields.split()}
    assert rows | HEAD | {"dtype"} == names_of(stage)


def others(value: Any) -> Iterator[Any]:
    """Give a value with one change, for every place in it where there can be one."""
    if isinstance(value, dict):
        for name in value:
            yield {key: each for key, each in value.items() if key != name}
            yield from ({**value, name: each} for each in others(value[name]))
        yield {**value, "more": 0}
    elif isinstance(value, list):
        for at, one in enumerate(value):
            yield value[:at] + value[at + 1 :]
            yield from ([*value[:at], each, *value[at + 1 :]] for each in others(one))
        yield [*value, 0]
    elif value is None or isinstance(value, str):
        yield f"{value} "
    else:
        yield value + 1


@pytest.mark.parametrize("kind", GOLDEN)
def test_any_change_in_a_material_changes_its_key(kind: str) -> None:
    for name, entry in GOLDEN[kind].items():
        assert all(key_of(each) != entry["key"] for each in others(entry["material"])), name
