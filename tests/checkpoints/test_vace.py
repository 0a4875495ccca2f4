"""VACE checkpoints: in every layout, as modules beside a text-to-video model, with two experts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints.foreign import (
    DIT,
    Official,
    Tensors,
    converted,
    refused,
    renamed,
    save,
    save_shards,
    spoilt,
    stored,
    write_comfy,
    write_diffusers,
)
from tests.checkpoints.test_detect import change
from wanpipe.checkpoints.detect import detect
from wanpipe.models.variants import NEGATIVE

FAMILY = "wan21-vace"
DIT_FILE = "diffusion_pytorch_model.safetensors"
MODULE = "Wan2_1-VACE_module_1_3B_bf16.safetensors"
EXPERTS = ("high_noise_model", "low_noise_model")
Write = Callable[[Path], Path]


@pytest.fixture
def vace(checkpoints: Path, tmp_path: Path) -> Path:
    """A copy of the official checkpoint, to be changed."""
    target = tmp_path / "vace"
    shutil.copytree(checkpoints / FAMILY, target, copy_function=shutil.copyfile)
    return target


def halves(path: Path) -> tuple[Tensors, Tensors]:
    """The tensors of the text-to-video model in a VACE file, and those of the module."""
    tensors = stored((path,))
    module = {name: value for name, value in tensors.items() if name.startswith("vace_")}
    return {name: value for name, value in tensors.items() if name not in module}, module


def as_t2v(path: Path) -> None:
    """Let a config.json be that of the text-to-video model."""
    change(path, _class_name="WanModel", model_type="t2v", vace_layers=None, vace_in_dim=None)


def split_official(vace: Path, name: str = MODULE) -> Path:
    """Take VACE's tensors out of an official checkpoint, into a module file beside the rest."""
    base, module = halves(vace / DIT_FILE)
    save(vace / DIT_FILE, base)
    save(vace / name, module)
    as_t2v(vace / "config.json")
    return vace


def split_loose(
    vace: Path, target: Path, prefix: str = "", rules: list[tuple[str, str]] | None = None
) -> Path:
    """Write ComfyUI's folders, with a module whose names may have another prefix or layout."""
    write_comfy(vace, target)
    base, module = halves(vace / DIT_FILE)
    folder = target / "diffusion_models"
    save(folder / "wan.safetensors", {f"model.diffusion_model.{n}": v for n, v in base.items()})
    named = renamed(module, rules or [])
    save(folder / MODULE, {f"{prefix}{name}": value for name, value in named.items()})
    as_t2v(target / "config.json")
    return target


def doubled(vace: Path) -> Path:
    """Let the one transformer be both experts."""
    for expert in EXPERTS:
        (vace / expert).mkdir()
        for name in (DIT_FILE, "config.json"):
            shutil.copyfile(vace / name, vace / expert / name)
    for name in (DIT_FILE, "config.json"):
        (vace / name).unlink()
    return vace


def model_hash(directory: Path, target: Path) -> str:
    config = converted(directory, target)
    assert (config.task, config.variant) == ("vace", "wan2.1-vace-1.3b")
    assert (config.dit.vace_layers, config.dit.vace_in_dim) == ((0, 2), 96)
    return config.components["model"].hash


def test_the_defaults_are_the_official_ones(vace: Path) -> None:
    defaults = detect(vace).variant.defaults
    assert (defaults.width, defaults.height, defaults.num_frames, defaults.fps) == (
        832,
        480,
        81,
        16,
    )
    assert (defaults.steps, defaults.guide_scale, defaults.shift) == (50, (5, 5), 16)
    assert defaults.negative_prompt == NEGATIVE
    doubled(vace)
    defaults = detect(vace).variant.defaults
    assert (defaults.width, defaults.steps, defaults.guide_scale) == (1280, 40, (3.5, 3.5))
    assert (defaults.shift, defaults.boundary) == (12, 0.875)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "t2v"},
        {"model_type": None},
        {"vace_layers": None},
        {"vace_in_dim": None},
        {"_class_name": "WanModel", "model_type": "t2v", "vace_layers": None, "vace_in_dim": None},
    ],
)
def test_weights_tell_vace_whatever_its_config_says(
    vace: Path, tmp_path: Path, official: Official, changes: dict[str, object]
) -> None:
    change(vace / "config.json", **changes)
    found = model_hash(vace, tmp_path / "model")
    assert found == official(FAMILY).components["model"].hash


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model_type": "i2v"}, "says model_type i2v, but the weights are those of wan2.1-vace"),
        ({"vace_layers": [0, 1, 2]}, r"has 2 VACE blocks, but .*config.json says vace_layers"),
        ({"vace_layers": [2, 0]}, "vace_layers must rise from 0"),
        ({"vace_layers": [1, 3]}, "vace_layers must rise from 0"),
        ({"vace_layers": [0, "2"]}, "impossible dimensions: Expected `int`, got `str`"),
        ({"vace_layers": 2}, r"has 2 VACE blocks, but .*config.json says vace_layers 2"),
        ({"vace_in_dim": 16}, "says vace_in_dim 16, but the weights have 96"),
    ],
)
def test_settings_that_contradict_the_weights_are_refused(
    vace: Path, changes: dict[str, object], why: str
) -> None:
    change(vace / "config.json", **changes)
    refused(vace, why)


def test_without_a_list_the_blocks_spread_evenly(vace: Path) -> None:
    def odd(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith("vace_blocks.1.")]:
            tensors[name.replace(".1.", ".2.", 1)] = tensors[name]

    change(vace / "config.json", vace_layers=None)
    assert detect(vace).dit.vace_layers == (0, 2)
    spoilt(vace / DIT_FILE, odd)
    refused(vace, "has 3 VACE blocks, but the transformer has 4 layers; use the VACE module")


def test_official_names_with_a_prefix_and_no_list_are_read(
    vace: Path, tmp_path: Path, official: Official
) -> None:
    comfy = write_comfy(vace, tmp_path / "comfy")
    as_t2v(comfy / "config.json")
    assert converted(comfy, tmp_path / "model") == official(FAMILY)


@pytest.mark.parametrize(
    "write",
    [
        split_official,
        lambda vace: split_loose(vace, vace.parent / "comfy"),
        lambda vace: split_loose(vace, vace.parent / "comfy", "model.diffusion_model."),
        lambda vace: split_official(vace, "diffusion_pytorch_model_vace.safetensors"),
        lambda vace: split_loose(vace, vace.parent / "comfy", "diffusion_model.", DIT),
    ],
    ids=["official", "loose", "one prefix", "a usual name", "diffusers' names"],
)
def test_a_module_beside_a_text_model_gives_the_same_file(
    vace: Path, tmp_path: Path, official: Official, write: Write
) -> None:
    source = write(vace)
    assert any("vace" in Path(name).name.lower() for name in detect(source).sources)
    found = model_hash(source, tmp_path / "model")
    assert found == official(FAMILY).components["model"].hash


def test_a_module_in_shards_gives_the_same_file(
    vace: Path, tmp_path: Path, official: Official
) -> None:
    base, module = halves(vace / DIT_FILE)
    save(vace / DIT_FILE, base)
    as_t2v(vace / "config.json")
    save_shards(vace / "module", "vace", module)
    found = model_hash(vace, tmp_path / "model")
    assert found == official(FAMILY).components["model"].hash


def test_without_its_module_it_is_the_text_model(vace: Path) -> None:
    (split_official(vace) / MODULE).unlink()
    assert detect(vace).variant.name == "wan2.1-t2v-1.3b"


@pytest.mark.parametrize("layout", ["official", "diffusers", "comfy"])
def test_two_experts_are_converted_from_every_layout(
    vace: Path, tmp_path: Path, official: Official, layout: str
) -> None:
    write = {"official": lambda source, _: source, "diffusers": write_diffusers}
    source = write.get(layout, write_comfy)(doubled(vace), tmp_path / layout)
    config = converted(source, tmp_path / "model")
    assert (config.variant, config.task) == ("wan2.2-vace-fun-a14b", "vace")
    assert "vae_encoder" in config.components
    both = [config.components[name].hash for name in EXPERTS]
    assert both == 2 * [official(FAMILY).components["model"].hash]


@pytest.mark.parametrize("folders", [True, False])
def test_each_expert_has_its_module(
    vace: Path, tmp_path: Path, official: Official, folders: bool
) -> None:
    doubled(vace)
    for expert in EXPERTS:
        base, module = halves(vace / expert / DIT_FILE)
        save(vace / expert / DIT_FILE, base)
        word = expert.partition("_")[0].upper()
        name = f"Wan2_2_Fun_VACE_module_A14B_{word}_bf16.safetensors"
        if expert == "low_noise_model":  # so that a swap would be seen
            module = {key: (kind, value + 1) for key, (kind, value) in module.items()}
        save((vace / expert if folders else vace) / name, module)
        as_t2v(vace / expert / "config.json")
    config = converted(vace, tmp_path / "model")
    assert config.variant == "wan2.2-vace-fun-a14b"
    high, low = (config.components[name].hash for name in EXPERTS)
    assert high == official(FAMILY).components["model"].hash != low
    next(vace.rglob("*VACE*LOW*")).unlink()
    refused(vace, "holds VACE modules .*HIGH.* for two transformers, which need a module each")


def test_two_modules_for_one_transformer_are_refused(vace: Path) -> None:
    split_official(vace)
    shutil.copyfile(vace / MODULE, vace / "vace_again.safetensors")
    refused(vace, "holds VACE modules .* for one transformer; give a folder with the files of one")


def test_a_module_beside_a_whole_vace_model_is_refused(vace: Path) -> None:
    save(vace / MODULE, halves(vace / DIT_FILE)[1])
    refused(vace, "holds vace_.*, which another shard holds too")


def test_a_module_without_a_transformer_is_refused(vace: Path, tmp_path: Path) -> None:
    source = split_loose(vace, tmp_path / "comfy")
    (source / "diffusion_models" / "wan.safetensors").unlink()
    refused(source, "holds no transformer")


@pytest.mark.parametrize("dimension", ["dim", "ffn_dim"])
def test_a_module_of_another_width_is_refused(vace: Path, dimension: str) -> None:
    def widen(tensors: Tensors) -> None:
        name = {"dim": "vace_patch_embedding.weight", "ffn_dim": "vace_blocks.0.ffn.0.weight"}
        kind, value = tensors[name[dimension]]
        tensors[name[dimension]] = (kind, np.concatenate([value, value]))

    spoilt(split_official(vace) / MODULE, widen)
    refused(vace, f"{MODULE} has VACE blocks of {dimension} .*use the VACE module of this model")


def test_a_module_for_another_number_of_layers_is_refused(vace: Path) -> None:
    def more(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith("vace_blocks.1.")]:
            for number in range(2, 8):
                tensors[name.replace(".1.", f".{number}.", 1)] = tensors[name]

    spoilt(split_official(vace) / MODULE, more)
    refused(vace, "has 8 VACE blocks, but the transformer has 4 layers")


def test_a_module_that_lacks_a_tensor_is_refused(vace: Path) -> None:
    split_official(vace)
    spoilt(vace / MODULE, lambda tensors: tensors.pop("vace_blocks.1.after_proj.bias"))
    refused(vace, r"missing tensors: vace_blocks\.1\.after_proj\.bias")


def test_a_model_without_a_vae_encoder_or_of_other_channels_is_no_vace(
    vace: Path, tmp_path: Path
) -> None:
    spoilt(vace / DIT_FILE, narrow_context)
    change(vace / "config.json", vace_in_dim=None)
    refused(vace, "the context channels must be the transformer's vace_in_dim 16, got 96")


def narrow_context(tensors: Tensors) -> None:
    kind, value = tensors["vace_patch_embedding.weight"]
    tensors["vace_patch_embedding.weight"] = (kind, np.ascontiguousarray(value[:, :16]))


def test_a_folder_of_diffusers_names_vace_by_its_own_class(vace: Path, tmp_path: Path) -> None:
    source = write_diffusers(vace, tmp_path / "diffusers")
    config = json.loads((source / "transformer" / "config.json").read_text())
    assert config["_class_name"] == "WanVACETransformer3DModel"
    change(source / "transformer" / "config.json", _class_name="WanAnimateTransformer3DModel")
    refused(source, "_class_name must be WanTransformer3DModel or WanVACETransformer3DModel, got")
