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

from tests.field_rows import (
    A14B_I2V,
    I2V,
    IMAGE,
    IMAGE_STEP,
    NAMED,
    ROWS,
    T2V,
    TEXT,
    VACE,
    Row,
)
from tests.golden_runs import Record, chain_of, furnish, golden, record_of, split
from tests.tiny_vae import NARROW, draw_weights, write_tiny_vae
from tests.workshop import Models, inside
from wanpipe.store import key_of
from wanpipe.store.materials import VideoEncoding

GOLDEN = golden()
HEAD = {"schema", "stage", "algorithm"}  # of every material; only a release changes them


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
        for seed, name in enumerate(("tiny", "other-tiny")):
            weights = draw_weights("taew2_1", NARROW, seed)
            write_tiny_vae(self.root / f"{name}.safetensors", weights)
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
    "denoise": {"video", "context_scale", "step_noise", "nag"},
    "decode": {"reference_frames", "decoder"},
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
