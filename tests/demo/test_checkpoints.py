"""The demo checkpoints: complete, small, and in the official layout."""

import json
from pathlib import Path

import pytest

from wanpipe import demo
from wanpipe.checkpoints.detect import detect
from wanpipe.demo import world

VARIANTS = {
    "t2v": "wan2.1-t2v-1.3b",
    "t2v-a14b": "wan2.2-t2v-a14b",
    "i2v-a14b": "wan2.2-i2v-a14b",
    "vace": "wan2.1-vace-1.3b",
}


def header(path: Path) -> dict:
    """Read the header of a safetensors file."""
    content = path.read_bytes()
    parsed: dict = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return parsed


@pytest.mark.parametrize("name", demo.NAMES)
def test_a_checkpoint_is_recognized_by_its_files_and_has_the_size_of_the_world(name: str) -> None:
    with demo.checkpoint(name) as folder:
        variant = detect(folder).variant
    assert variant.name == VARIANTS[name]
    defaults = variant.defaults
    assert (defaults.width, defaults.height) == (world.SIZE, world.SIZE)
    assert (defaults.num_frames, defaults.fps) == (world.FRAMES, world.FPS)


def test_a_temporary_checkpoint_is_deleted_after_use() -> None:
    with demo.checkpoint("i2v-a14b") as folder:
        assert (folder / "google/umt5-xxl/tokenizer.json").is_file()
    assert not folder.exists()


def test_an_unknown_checkpoint_is_rejected() -> None:
    with pytest.raises(KeyError, match="unknown demo checkpoint 5b"), demo.checkpoint("5b"):
        pass


def test_all_models_have_the_same_defaults() -> None:
    configs = [json.loads(path.read_text()) for path in demo.CHECKPOINTS.rglob("config.json")]
    assert len(configs) == 6
    assert all(config["wanpipe"] == configs[0]["wanpipe"] for config in configs)


def test_the_vace_checkpoint_is_text_to_video_and_a_file_with_vace_tensors_alone() -> None:
    with demo.checkpoint("vace") as folder:
        module, whole = folder / "vace_module.safetensors", folder / demo.TRANSFORMER
        assert whole.read_bytes() == (demo.T2V / demo.TRANSFORMER).read_bytes()
        names = [name for name in header(module) if name != "__metadata__"]
    assert len(names) > 60
    assert all(name.startswith("vace_") for name in names)


def test_all_checkpoints_fit_in_19_megabytes() -> None:
    files: list[Path] = [path for path in demo.CHECKPOINTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 19_000_000
