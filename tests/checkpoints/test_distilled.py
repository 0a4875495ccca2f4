"""Folders of FastWan: the class of the pipeline, its recipe, the weights of sparse attention."""

from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints.foreign import Tensors, converted, spoilt, write_diffusers
from tests.checkpoints.test_detect import change, refused
from tests.workshop import Place
from wanpipe.checkpoints.detect import detect
from wanpipe.models.variants import VARIANTS
from wanpipe.runtime.documents import to_builtins

DIT = "transformer/diffusion_pytorch_model.safetensors"
RECIPE = {
    "steps": 3,
    "guide_scale": (1.0, 1.0),
    "shift": 1.0,
    "scheduler": "lcm",
    "timesteps": (1000.0, 757.0, 522.0),
}
SIZE = ("--width", 32, "--height", 32, "--num-frames", 5)


def with_gates(tensors: Tensors) -> None:
    """Add the gates that sparse attention has in every block."""
    for block in range(2):
        for leaf, shape in (("weight", (64, 64)), ("bias", (64,))):
            name = f"blocks.{block}.to_gate_compress.{leaf}"
            tensors[name] = ("F32", np.ones(shape, "<f4"))


@pytest.fixture
def fastwan(checkpoints: Path, tmp_path: Path) -> Path:
    folder = write_diffusers(checkpoints / "wan21-t2v", tmp_path / "fastwan")
    change(folder / "model_index.json", _class_name="WanDMDPipeline")
    return folder


def test_its_recipe_is_the_models_default(fastwan: Path) -> None:
    variant = detect(fastwan).variant
    official = to_builtins(VARIANTS["wan2.1-t2v-1.3b"].defaults)
    assert to_builtins(variant.defaults) == official | RECIPE
    assert "scheduler" not in official
    change(fastwan / "transformer" / "config.json", wanpipe={"steps": 4, "scheduler": "euler"})
    own = detect(fastwan).variant.defaults
    assert (own.steps, own.scheduler) == (4, "euler")
    change(fastwan / "transformer" / "config.json", wanpipe={"scheduler": "heun"})
    refused(fastwan, "wanpipe cannot be right: .*scheduler")
    change(fastwan / "model_index.json", _class_name="WanCausalDMDPipeline")
    refused(fastwan, "_class_name must be one of .*WanDMDPipeline, got WanCausalDMDPipeline")


def test_the_gates_of_sparse_attention_are_left_out_and_told(fastwan: Path, tmp_path: Path) -> None:
    plain = converted(fastwan, tmp_path / "plain").components
    assert detect(fastwan).remark is None
    spoilt(fastwan / DIT, with_gates)
    remark = detect(fastwan).remark
    assert remark is not None
    assert remark.endswith("so it leaves out the tensors to_gate_compress")
    assert converted(fastwan, tmp_path / "gated").components == plain


def test_a_run_takes_the_recipe_unless_it_is_asked_for_another(fastwan: Path, place: Place) -> None:
    words = ("--checkpoint-dir", fastwan, "--dtype", "float32", "--output-dir", "fast")
    fast = Place(place.root, place.made("convert", *words))
    command = ("denoise", "--model", fast.model, "--from", fast.text(), *SIZE)
    chain = fast.chain(fast.made(*command))
    assert [step.material.timestep for step in chain] == [1000, 757, 522]
    assert {step.material.solver.name for step in chain} == {"lcm"}
    assert {step.material.guide_scale for step in chain} == {1.0}
    four = fast.chain(fast.made(*command, "--steps", 4, "--shift", 5))
    assert [round(step.material.timestep) for step in four] == [1000, 938, 833, 625]
    euler = fast.chain(fast.made(*command, "--scheduler", "euler"))
    assert [step.material.timestep for step in euler] == [1000, 757, 522]
    grid = fast.chain(fast.made(*command, "--timesteps", "900,300"))
    assert [step.material.timestep for step in grid] == [900, 300]
