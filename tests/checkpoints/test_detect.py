"""Recognition of checkpoints: the five layouts, and one line for each that is wrong."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import DATA, settings
from wanpipe.checkpoints.detect import Checkpoint, detect
from wanpipe.errors import CheckpointError
from wanpipe.models.config import CLIPConfig, T5Config, VAEConfig

NAMES = {
    "wan21-t2v": "wan2.1-t2v-1.3b",
    "wan21-i2v": "wan2.1-i2v-14b-480p",
    "wan21-flf2v": "wan2.1-flf2v-14b-720p",
    "wan21-vace": "wan2.1-vace-1.3b",
    "wan22-t2v-a14b": "wan2.2-t2v-a14b",
    "wan22-i2v-a14b": "wan2.2-i2v-a14b",
    "wan22-ti2v-5b": "wan2.2-ti2v-5b",
}


@pytest.fixture
def copy(checkpoints: Path, tmp_path: Path) -> Any:
    """Give a function that copies a checkpoint, so that it can be changed."""

    def make(family: str, name: str = "copy") -> Path:
        target = tmp_path / name
        shutil.copytree(checkpoints / family, target, copy_function=shutil.copyfile)
        return target

    return make


def change(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    data = {**json.loads(path.read_text()), **changes}
    data = {key: value for key, value in data.items() if value is not None}
    path.write_text(json.dumps(data))


def refused(directory: Path, why: str, version: str = "auto") -> None:
    with pytest.raises(CheckpointError, match=why) as caught:
        detect(directory, version)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("family", NAMES)
def test_every_layout_is_recognized(checkpoints: Path, family: str) -> None:
    found = detect(checkpoints / family)
    assert found.variant.name == NAMES[family]
    assert detect(checkpoints / family, found.variant.version) == found
    other = "2.2" if found.variant.version == "2.1" else "2.1"
    refused(checkpoints / family, f"says {other}, but .* holds {NAMES[family]}", other)


def test_dimensions_come_from_shapes(checkpoints: Path) -> None:
    found = detect(checkpoints / "wan21-i2v")
    assert found.t5 == T5Config(vocab=401, dim=64, attention_dim=64, ffn_dim=160, heads=4, layers=3)
    assert found.vae == VAEConfig(version="2.1", encoder_dim=4, decoder_dim=4, z_dim=16)
    assert found.clip == CLIPConfig(dim=32, ffn_dim=128, heads=2, layers=3)
    assert (found.dit.in_dim, found.dit.clip_dim, found.dit.freq_dim) == (36, 32, 64)
    assert (found.dit.heads, found.dit.layers, found.dit.text_dim) == (2, 2, 64)
    assert detect(checkpoints / "wan22-ti2v-5b").vae == VAEConfig(
        version="2.2", encoder_dim=4, decoder_dim=3, z_dim=48
    )


def test_sources_are_the_files_in_use_and_nothing_else(checkpoints: Path) -> None:
    assert list(detect(checkpoints / "wan22-t2v-a14b").sources) == [
        "Wan2.1_VAE.pth",
        "google/umt5-xxl/tokenizer.json",
        *(
            f"{expert}_noise_model/{name}"
            for expert in ("high", "low")
            for name in (
                "config.json",
                "diffusion_pytorch_model-00001-of-00002.safetensors",
                "diffusion_pytorch_model-00002-of-00002.safetensors",
            )
        ),
        "models_t5_umt5-xxl-enc-bf16.pth",
    ]


HUB = "models--Wan-AI--Wan2.1-I2V-14B-720P/snapshots/8823af45fcc58a8aa999a54b04be9abc7d2aac98"


@pytest.mark.parametrize(
    "name",
    ["Wan2.1-I2V-14B-720P", "i2v_720p", HUB, "Wan2.1-I2V-14B-720P/original/weights", "480P/720P"],
)
def test_a_name_with_the_larger_size_changes_the_default_size(copy: Any, name: str) -> None:
    found: Checkpoint = detect(copy("wan21-i2v", name))
    assert found.variant.name == "wan2.1-i2v-14b-720p"
    assert (found.variant.defaults.width, found.variant.defaults.shift) == (1280, 5)
    assert re.search("default size of .* is that of 720P, as .*720[pP].* says", found.remark or "")


@pytest.mark.parametrize("name", ["model", "720P/Wan2.1-I2V-14B-480P", "i2v-1720p", "720px"])
def test_other_names_leave_the_smaller_size(copy: Any, name: str) -> None:
    assert detect(copy("wan21-i2v", name)).variant.name == "wan2.1-i2v-14b-480p"


def test_names_of_links_and_of_what_they_link_to_count(copy: Any, tmp_path: Path) -> None:
    real = copy("wan21-i2v", HUB)
    (tmp_path / "current").symlink_to(real.parents[1])
    (tmp_path / "model").symlink_to(Path("current") / "snapshots" / real.name)
    assert detect(tmp_path / "model").variant.name == "wan2.1-i2v-14b-720p"
    plain = copy("wan21-i2v", "plain")
    (tmp_path / "Wan-720P").symlink_to(plain)
    (tmp_path / "latest").symlink_to("Wan-720P")
    assert detect(tmp_path / "latest").variant.name == "wan2.1-i2v-14b-720p"
    assert detect(plain).variant.name == "wan2.1-i2v-14b-480p"


def test_where_no_name_says_the_size_a_remark_says_so(copy: Any, checkpoints: Path) -> None:
    assert "says 480P or 720P" in (detect(copy("wan21-i2v", "model")).remark or "")
    assert detect(checkpoints / "wan21-t2v").remark is None


def test_a_wrong_dimension_names_both_values(copy: Any) -> None:
    directory = copy("wan21-t2v")
    shutil.copyfile(DATA / "bad" / "wrong_dim" / "config.json", directory / "config.json")
    refused(directory, "config.json says dim 128, but the weights have 64")


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("ffn_dim", 96, "says ffn_dim 96, but the weights have 128"),
        ("freq_dim", 128, "says freq_dim 128, but the weights have 256"),
        ("num_layers", 3, "says num_layers 3, but the weights have 2"),
        ("in_dim", 36, "says in_dim 36, but the weights have 16"),
        ("text_dim", "64", "says text_dim 64"),
        ("num_heads", 3, "must split into heads of even width, got 3"),
        ("num_heads", None, "num_heads must be a number, got None"),
        ("eps", "x", "eps must be a number"),
        ("text_len", True, "text_len must be a number"),
        ("window_size", [4, 4], "window_size must be"),
        ("qk_norm", False, "qk_norm must be True"),
        ("vace_layers", [0], "says vace_layers, but .* has no VACE blocks; put the module file"),
        ("model_type", "vace", "says model_type vace, but the weights are those of wan2.1-t2v"),
        ("model_type", "s2v", "model_type must be t2v, i2v, flf2v, ti2v or vace, got s2v"),
        ("model_type", "i2v", "says model_type i2v, but the weights are those of wan2.1-t2v-1.3b"),
        ("wanpipe", 3, "wanpipe must be a JSON object"),
        ("wanpipe", {"frames": 5}, "unknown field `frames`"),
        ("wanpipe", {"steps": "5"}, r"wanpipe .*`int`, got `str` - at `\$\.steps`"),
        ("wanpipe", {"guide_scale": 5}, r"wanpipe .*got `int` - at `\$\.guide_scale`"),
    ],
)
def test_a_wrong_setting_is_refused(copy: Any, key: str, value: Any, why: str) -> None:
    directory = copy("wan21-t2v")
    change(directory / "config.json", **{key: value})
    refused(directory, why)


def test_official_extras_are_accepted(copy: Any) -> None:
    directory = copy("wan21-t2v")
    change(
        directory / "config.json",
        patch_size=[1, 2, 2],
        window_size=[-1, -1],
        qk_norm=True,
        cross_attn_norm=True,
        text_dim=None,
        model_type=None,
    )
    assert detect(directory).variant.name == "wan2.1-t2v-1.3b"


def test_a_checkpoint_may_bring_its_own_defaults(copy: Any) -> None:
    directory = copy("wan22-t2v-a14b")
    wanted = {"width": 64, "num_frames": 9, "guide_scale": [2, 2.5], "boundary": 0.5, "steps": 4}
    change(directory / "high_noise_model" / "config.json", wanpipe=wanted)
    defaults = detect(directory).variant.defaults
    assert (defaults.width, defaults.num_frames, defaults.boundary) == (64, 9, 0.5)
    assert (defaults.steps, defaults.shift, defaults.guide_scale) == (4, 12, (2, 2.5))
    change(directory / "low_noise_model" / "config.json", wanpipe={"steps": 99})
    refused(directory, "wanpipe must stand in .*high_noise_model/config.json alone")


@pytest.mark.parametrize(
    ("family", "file"),
    [
        ("wan21-t2v", "Wan2.1_VAE.pth"),
        ("wan21-t2v", "config.json"),
        ("wan21-t2v", "diffusion_pytorch_model.safetensors"),
        ("wan21-t2v", "models_t5_umt5-xxl-enc-bf16.pth"),
        ("wan21-t2v", "google/umt5-xxl/tokenizer.json"),
        ("wan21-i2v", "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"),
        ("wan21-i2v", "diffusion_pytorch_model-00002-of-00002.safetensors"),
        ("wan22-ti2v-5b", "Wan2.2_VAE.pth"),
        ("wan22-t2v-a14b", "low_noise_model/config.json"),
    ],
)
def test_a_missing_file_is_named(copy: Any, family: str, file: str) -> None:
    directory = copy(family)
    (directory / file).unlink()
    refused(directory, f"lacks .*{Path(file).name}")


def test_a_missing_expert_is_named(copy: Any) -> None:
    directory = copy("wan22-t2v-a14b")
    shutil.rmtree(directory / "low_noise_model")
    refused(directory, "lacks low_noise_model/")


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "is not a directory")
    refused(tmp_path, "lacks diffusion_pytorch_model.safetensors")


def test_shards_without_an_index_are_found(copy: Any) -> None:
    directory = copy("wan21-i2v")
    (directory / "diffusion_pytorch_model.safetensors.index.json").unlink()
    assert len(detect(directory).files["model"]) == 2


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "", "a\0b"])
def test_an_index_that_points_elsewhere_is_refused(copy: Any, name: str) -> None:
    directory = copy("wan21-i2v")
    index = directory / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    refused(directory, "must map tensors to files beside it")


def test_experts_of_two_models_are_refused(copy: Any, checkpoints: Path) -> None:
    directory = copy("wan22-t2v-a14b")
    shutil.rmtree(directory / "low_noise_model")
    shutil.copytree(
        checkpoints / "wan22-i2v-a14b" / "low_noise_model", directory / "low_noise_model"
    )
    refused(directory, "must have the same")


def test_the_other_vae_under_this_name_is_refused(copy: Any, checkpoints: Path) -> None:
    directory = copy("wan21-t2v")
    shutil.copyfile(checkpoints / "wan22-ti2v-5b" / "Wan2.2_VAE.pth", directory / "Wan2.1_VAE.pth")
    refused(directory, "holds the VAE of Wan2.2")


@pytest.mark.parametrize("name", ["Wan2.1-I2V-14B-480P", "last"])
def test_a_first_last_frame_model_is_known_by_its_positions(copy: Any, name: str) -> None:
    found: Checkpoint = detect(copy("wan21-flf2v", name))
    assert found.variant.name == "wan2.1-flf2v-14b-720p"
    assert found.dit.clip_positions == 514
    assert (found.variant.defaults.steps, found.variant.defaults.shift) == (50, 16)
    negative = settings("wan21-flf2v/e2e")["negative_prompt_default"]
    assert found.variant.defaults.negative_prompt == negative


def test_an_image_model_in_a_folder_called_flf2v_is_an_image_model(copy: Any) -> None:
    found: Checkpoint = detect(copy("wan21-i2v", "Wan2.1-FLF2V-14B-720P"))
    assert found.variant.name == "wan2.1-i2v-14b-720p"


@pytest.mark.parametrize(
    ("family", "kind", "name"),
    [("wan21-i2v", "flf2v", "i2v-14b-480p"), ("wan21-flf2v", "i2v", "flf2v-14b-720p")],
)
def test_a_model_type_that_the_positions_contradict_is_refused(
    copy: Any, family: str, kind: str, name: str
) -> None:
    directory = copy(family)
    change(directory / "config.json", model_type=kind)
    refused(directory, f"says model_type {kind}, but the weights are those of wan2.1-{name}")


def test_positions_for_another_number_of_images_are_refused(copy: Any) -> None:
    directory = copy("wan21-flf2v")
    for path in directory.glob("*.safetensors"):
        arrays = load_file(path)
        if "img_emb.emb_pos" in arrays:
            save_file({**arrays, "img_emb.emb_pos": np.zeros((1, 771, 32), np.float32)}, path)
    refused(directory, "impossible dimensions: .*771 - at `.*clip_positions")


def test_an_image_model_without_clip_and_experts_is_unknown(copy: Any, checkpoints: Path) -> None:
    directory = copy("wan21-t2v")
    source = checkpoints / "wan22-i2v-a14b" / "high_noise_model"
    (directory / "diffusion_pytorch_model.safetensors").unlink()
    shutil.copytree(source, directory, copy_function=shutil.copyfile, dirs_exist_ok=True)
    refused(directory, "no Wan checkpoint that wanpipe knows; found in_dim 36")


def test_an_absurd_axis_is_refused_before_a_network_is_built(copy: Any) -> None:
    directory = copy("wan21-t2v")
    path = directory / "diffusion_pytorch_model.safetensors"
    arrays = load_file(path)
    save_file({**arrays, "patch_embedding.weight": np.zeros((1 << 40, 0, 1), np.float32)}, path)
    refused(directory, "absurd shape")
    many = {f"blocks.{i}.x": np.zeros(0, np.float32) for i in range(1000)}
    save_file({**arrays, **many}, path)
    refused(directory, "1000 layers|1002 layers")
