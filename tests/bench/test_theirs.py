"""The weights that bench.theirs writes for diffusers are ours, under diffusers' names."""

import json
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from bench.models import MODELS, VAE_RULES, write_model
from bench.theirs import FILE, FOLDERS, write_pipeline
from tests.bench.programs import small
from wanpipe.checkpoints.rename import RenameRule, apply_transform, plan_renames
from wanpipe.checkpoints.rules import dit as dit_rules
from wanpipe.checkpoints.state_dict import open_network

TINY = MODELS["a14b"].tiny()


def assert_ours(theirs: Path, ours: Path, rules: Sequence[RenameRule]) -> None:
    """Compare a file of theirs, read as `convert` reads it, with ours."""
    weights = mx.load(str(ours))
    assert isinstance(weights, dict)
    with open_network(theirs) as network:
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        for rename in plan_renames(network.tensors, rules, shapes, "theirs"):
            values = apply_transform(network.read_float32(rename.source), rename.transform)
            expected = np.array(weights[rename.target].astype(mx.float32))
            np.testing.assert_array_equal(values, expected, rename.target)


@pytest.mark.slow
def test_their_files_hold_our_weights(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    write_model(ours, TINY)
    write_pipeline(theirs, TINY)
    for name in TINY.experts:
        assert_ours(theirs / FOLDERS[name] / FILE, ours / f"{name}.safetensors", dit_rules.RULES)
    for name, rules in zip(("vae", "vae_encoder"), VAE_RULES["2.1"], strict=True):
        assert_ours(theirs / "vae" / FILE, ours / f"{name}.safetensors", rules)


@pytest.mark.slow
def test_without_diffusers_its_side_is_skipped(tmp_path: Path) -> None:
    done = small("bench.whole_peer --rounds 1 --json", tmp_path)
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["wanpipe"] > 0
    assert "ratio" in last or last["diffusers_skipped"].endswith("not installed")
