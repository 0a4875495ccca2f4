"""Checkpoints in other layouts, and the models that the official ones become."""

import os
from pathlib import Path

import pytest

from tests.checkpoints.foreign import (
    Official,
    converted,
    write_comfy,
    write_diffusers,
)
from wanpipe.models.config import ModelConfig


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def official(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Official:
    """Give a function that converts a family's official files, once."""
    done: dict[str, ModelConfig] = {}

    def convert_once(family: str) -> ModelConfig:
        if family not in done:
            done[family] = converted(checkpoints / family, tmp_path_factory.mktemp(family))
        return done[family]

    return convert_once


@pytest.fixture
def comfy(checkpoints: Path, tmp_path: Path) -> Path:
    return write_comfy(checkpoints / "wan21-t2v", tmp_path / "comfy")


@pytest.fixture
def diffusers(checkpoints: Path, tmp_path: Path) -> Path:
    return write_diffusers(checkpoints / "wan22-t2v-a14b", tmp_path / "diffusers")
