"""The checkpoints that ship: whole, small, and in the official layout."""

import json
from pathlib import Path

import pytest

from wanpipe import demo
from wanpipe.checkpoints.detect import detect
from wanpipe.demo import world

VARIANTS = {"t2v": "wan2.1-t2v-1.3b", "t2v-a14b": "wan2.2-t2v-a14b", "i2v-a14b": "wan2.2-i2v-a14b"}


@pytest.mark.parametrize("name", demo.NAMES)
def test_checkpoint_is_recognised_by_its_files_and_has_the_size_of_the_world(name: str) -> None:
    with demo.checkpoint(name) as folder:
        variant = detect(folder).variant
    assert variant.name == VARIANTS[name]
    there = variant.defaults
    assert (there.width, there.height) == (world.SIZE, world.SIZE)
    assert (there.num_frames, there.fps) == (world.FRAMES, world.FPS)


def test_a_borrowed_folder_is_gone_afterwards_and_another_name_is_refused() -> None:
    with demo.checkpoint("i2v-a14b") as folder:
        assert (folder / "google/umt5-xxl/tokenizer.json").is_file()
    assert not folder.exists()
    with pytest.raises(KeyError, match="no demo checkpoint 5b"), demo.checkpoint("5b"):
        pass


def test_all_models_have_the_same_defaults() -> None:
    configs = [json.loads(path.read_text()) for path in demo.CHECKPOINTS.rglob("config.json")]
    assert len(configs) == 5
    assert all(config["wanpipe"] == configs[0]["wanpipe"] for config in configs)


def test_everything_that_ships_fits_in_16_megabytes() -> None:
    files: list[Path] = [path for path in demo.CHECKPOINTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16_000_000
