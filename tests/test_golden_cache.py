"""A cache that version 0.1.0 made is found again, key for key, with nothing computed.

tests/data/record.py says how it was made. The models are not in it: they are converted here.
"""

import json
import tarfile
from pathlib import Path

import pytest

from tests.commands import Result
from tests.conftest import DATA
from tests.golden_runs import (
    CACHE_FILMS,
    CACHE_MODELS,
    CACHE_RUNS,
    chain_of,
    follow,
    furnish,
    golden,
    split,
)
from tests.workshop import Models, inside
from wanpipe.weights.model import open_model

KEYS: dict[str, str] = json.loads((DATA / "golden" / "cache-0.1.0.json").read_bytes())
STAGES = ("encode-text", "encode-image", "denoise", "decode")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the cache, and the image that it was made of."""
    with tarfile.open(DATA / "cache-0.1.0.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    furnish(tmp_path)
    return tmp_path


@pytest.fixture
def places(models: Models) -> dict[str, str]:
    """The models by the names in the commands."""
    return {name: str(models(kind)) for name, kind in CACHE_MODELS.items()}


def entries(root: Path) -> set[str]:
    """Every entry of the cache, as stage/key."""
    found = (path for stage in STAGES for path in (root / "cache" / stage).iterdir())
    return {f"{path.parent.name}/{path.name}" for path in found}


def succeed(root: Path, *words: object) -> Result:
    """Run a command that must succeed and must compute nothing."""
    result = inside(*words, cwd=root)
    assert result.code == 0, result.stderr
    assert not result.computed(), result.stderr
    return result


def step(root: Path, name: str, index: int) -> str:
    """The path of a step of one of the recorded runs."""
    last = sorted(key for key in KEYS if key.rpartition(" ")[0] == name)[-1]
    return chain_of(root, f"cache/denoise/{KEYS[last]}")[index]


@pytest.mark.parametrize(("name", "kind"), CACHE_MODELS.items())
def test_the_models_have_the_keys_of_then(name: str, kind: str, places: dict[str, str]) -> None:
    assert open_model(places[name]).config.key == golden()[kind]["model"]["key"]


def test_the_same_commands_find_everything(root: Path, places: dict[str, str]) -> None:
    before = entries(root)

    def run(words: list[str]) -> list[str]:
        return succeed(root, *words, "--events", "json").paths

    found = follow(CACHE_RUNS, places, root, run)
    assert {name: record["key"] for name, record in found.items()} == KEYS
    assert entries(root) == before


@pytest.mark.parametrize("command", CACHE_FILMS)
def test_a_whole_run_finds_everything(command: str, root: Path, places: dict[str, str]) -> None:
    before = entries(root)
    words = [word.strip('"').format_map(places) for word in split(command)]
    result = succeed(root, *words, "--events", "json")
    reused = {event["key"] for event in result.events if event["event"] == "reused"}
    assert reused <= set(KEYS.values())
    assert len(reused) >= 3  # text, last step, frames
    assert not result.loaded()
    assert entries(root) == before


@pytest.mark.parametrize(
    ("name", "model", "index"),
    [("seed 2", "t2v", 1), ("branch", "t2v", 2), ("from an image", "i2v", 0)],
)
def test_a_step_finishes_its_run_with_nothing_computed(
    name: str, model: str, index: int, root: Path, places: dict[str, str]
) -> None:
    words = ("denoise", "--model", places[model], "--from", step(root, name, index))
    result = succeed(root, *words, "--events", "json")
    assert result.paths == [step(root, name, -1)]


def test_a_branch_goes_on_from_a_step_of_then(root: Path, places: dict[str, str]) -> None:
    start = step(root, "seed 2", 1)
    words = ("denoise", "--model", places["t2v"], "--from", start, "--guide-scale", 3)
    result = inside(*words, "--events", "json", cwd=root)
    assert result.code == 0, result.stderr
    assert [event["step"] for event in result.computed()] == [2, 3]
    assert chain_of(root, result.paths[-1])[1] == start


def test_the_entries_are_listed_and_sound(root: Path) -> None:
    for stage in STAGES:
        listed = " ".join(succeed(root, "cache", "ls", "--stage", stage, "--json").paths)
        keys = [path.name for path in (root / "cache" / stage).iterdir()]
        assert keys
        assert all(key in listed for key in keys)
    verified = succeed(root, "cache", "verify")
    assert verified.paths == []


@pytest.mark.parametrize("name", KEYS)
def test_show_and_log_know_every_entry(name: str, root: Path) -> None:
    shown = succeed(root, "show", KEYS[name])
    assert KEYS[name][:8] in " ".join(shown.paths)
    succeed(root, "log", KEYS[name])


def test_log_shows_a_run_and_its_branch(root: Path) -> None:
    words = " ".join(succeed(root, "log", KEYS["seed 1 3"]).paths)
    for name in ("seed 1 0", "seed 1 1", "seed 1 2", "seed 1 3", "branch 2", "branch 3", "frames"):
        assert KEYS[name][:8] in words, name
    assert "seed 1" in words
    assert "a cat plays the piano" in words
