"""LoRAs of every convention against the official merge; what is refused, and what is ignored."""

import gc
import lzma
import time
from collections.abc import Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file

from tests.checkpoints import torchfile
from tests.conftest import DATA, golden, relative_error, settings
from tests.models.official import TOLERANCE, converted
from wanpipe.errors import CheckpointError
from wanpipe.models.dit import DiT
from wanpipe.weights.load import load_network, parameter_shapes
from wanpipe.weights.lora import UNKNOWN, read_lora
from wanpipe.weights.lora_match import (
    ALPHA_ALONE,
    NO_IMAGE_BRANCH,
    OTHER_INPUT_CHANNELS,
    LoraMatch,
    match_lora,
)
from wanpipe.weights.merge import merge

RUN = settings("wan21-t2v/lora")
SAME = RUN["same_delta"]
FILES = (*SAME, RUN["full_delta"], RUN["full_delta_with_modulation"])
QUERY = "diffusion_model.blocks.0.self_attn.q"


@cache
def reference() -> dict[str, np.ndarray]:
    return golden("wan21-t2v/lora")


def unpacked(name: str, folder: Path) -> Path:
    """One of the fixtures' files, by its path below tests/data."""
    path = folder / Path(name).name
    path.write_bytes(lzma.decompress((DATA / f"{name}.xz").read_bytes()))
    return path


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every LoRA of the fixtures."""
    folder = tmp_path_factory.mktemp("loras")
    for name in FILES:
        unpacked(f"expected/wan21-t2v/lora_files/{name}", folder)
    return folder


def network(checkpoints: Path, family: str = "wan21-t2v", dtype: mx.Dtype = mx.float32) -> DiT:
    directory, config = converted(checkpoints, family)
    return load_network(DiT(config.dit), directory / "model.safetensors", dtype)


def matches(model: DiT, *paths: Path) -> list[LoraMatch]:
    return [match_lora(read_lora(path), parameter_shapes(model)) for path in paths]


def merged_out(checkpoints: Path, loras: Sequence[tuple[Path, float]]) -> mx.array:
    model, arrays = network(checkpoints), reference()
    paths, strengths = zip(*loras, strict=True)
    merge(model, list(zip(matches(model, *paths), strengths, strict=True)))
    condition = model.condition(mx.array(arrays["context"]))
    [out] = model(mx.array(arrays["x"]), arrays["t"].tolist(), [condition])
    return out


def pair(prefix: str, out: int = 64, width: int = 64, rank: int = 2) -> dict[str, np.ndarray]:
    random = np.random.default_rng(rank)
    return {
        f"{prefix}.lora_down.weight": random.standard_normal((rank, width), dtype=np.float32),
        f"{prefix}.lora_up.weight": random.standard_normal((out, rank), dtype=np.float32),
    }


def write(tmp_path: Path, tensors: dict[str, Any]) -> Path:
    path = tmp_path / "lora.safetensors"
    save_file({name: np.asarray(array) for name, array in tensors.items()}, path)
    return path


@pytest.mark.parametrize("strength", [1, 0.7, 0.5])
@pytest.mark.parametrize("name", SAME)
def test_every_convention_is_the_official_merge(
    checkpoints: Path, files: Path, name: str, strength: float
) -> None:
    out = merged_out(checkpoints, [(files / name, strength)])
    assert relative_error(out, reference()[f"out_same_{strength}"]) < TOLERANCE


@pytest.mark.parametrize("strength", [1, 0.5])
@pytest.mark.parametrize(("kind", "name"), [("c", FILES[-2]), ("c2", FILES[-1])])
def test_full_differences_are_the_official_merge(
    checkpoints: Path, files: Path, kind: str, name: str, strength: float
) -> None:
    out = merged_out(checkpoints, [(files / name, strength)])
    assert relative_error(out, reference()[f"out_{kind}_{strength}"]) < TOLERANCE


def test_two_loras_add_up(checkpoints: Path, files: Path) -> None:
    out = merged_out(checkpoints, [(files / SAME[0], 0.5), (files / RUN["full_delta"], 0.5)])
    assert relative_error(out, reference()["out_same0.5_plus_c0.5"]) < TOLERANCE


@pytest.mark.parametrize("name", FILES)
def test_every_key_is_used(checkpoints: Path, files: Path, name: str) -> None:
    (one,) = matches(network(checkpoints), files / name)
    used = {key for delta in one.deltas.values() for key in delta.keys.values()}
    assert used == set(load_keys(files / name))
    assert not one.ignored
    modules = {"c": 37, "c2": 40}.get(name.split("_")[0], 20)
    assert one.summary() == f"applied {modules} modules"


def load_keys(path: Path) -> list[str]:
    return list(read_lora(path).tensors)


def test_the_sum_is_exact_before_its_one_cast(checkpoints: Path, tmp_path: Path) -> None:
    tensors = pair(QUERY, rank=3) | pair("blocks.1.ffn.0", out=128, rank=5)
    tensors |= {f"{QUERY}.alpha": np.float32(6.0)}
    model = network(checkpoints, dtype=mx.bfloat16)
    before = {
        "self_attn.q": np.array(model.blocks[0].self_attn.q.weight.astype(mx.float32)),
        "ffn.fc1": np.array(model.blocks[1].ffn.fc1.weight.astype(mx.float32)),
    }
    merge(model, [(matches(model, write(tmp_path, tensors))[0], 0.5)])
    q, fc1 = model.blocks[0].self_attn.q.weight, model.blocks[1].ffn.fc1.weight
    for name, weight, scale in (("self_attn.q", q, 2.0), ("ffn.fc1", fc1, 1.0)):
        prefix = QUERY if name == "self_attn.q" else "blocks.1.ffn.0"
        up, down = (tensors[f"{prefix}.lora_{part}.weight"] for part in ("up", "down"))
        expected = before[name] + 0.5 * scale * (up @ down)
        assert weight.dtype == mx.bfloat16
        assert relative_error(weight.astype(mx.float32), expected) < 2**-9  # half a step
    assert model.blocks[0].self_attn.q.bias.dtype == mx.bfloat16


def growth(model: DiT, loras: list[LoraMatch], least: float) -> float:
    """What memory grows by when LoRAs are added, as a part of the weights that they change.

    MLX's threads free what an operation read after it says that it is done: wait for `least`.
    """
    shapes = parameter_shapes(model)
    changed = 4 * sum(prod(shapes[name]) for name in {name for one in loras for name in one.deltas})
    mx.eval(model.parameters())
    gc.collect()
    mx.synchronize()
    before = mx.get_active_memory()
    merge(model, [(one, 1.0) for one in loras])
    mx.eval(model.parameters())
    for _ in range(100):
        gc.collect()
        mx.synchronize()
        grown = (mx.get_active_memory() - before) / changed
        if grown <= least:
            break
        time.sleep(0.1)
    return grown


def test_no_second_copy_of_the_weights_stays(checkpoints: Path, files: Path) -> None:
    model = network(checkpoints)
    loras = matches(model, files / SAME[0], files / FILES[-1])
    assert growth(model, loras, 0.05) <= 0.05


def test_a_second_copy_that_stays_is_noticed(checkpoints: Path, files: Path) -> None:
    model = network(checkpoints)
    loras = matches(model, files / SAME[0], files / FILES[-1])
    second = dict(tree_flatten(model.parameters()))  # what a merge could forget to let go
    assert growth(model, loras, np.inf) > 0.9
    assert second


def test_a_patch_embedding_takes_a_product(checkpoints: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    down = random.standard_normal((2, 16, 1, 2, 2), dtype=np.float32)
    up = random.standard_normal((64, 2, 1, 1, 1), dtype=np.float32)
    product = np.einsum("or,rc...->oc...", up.reshape(64, 2), down)
    outs = []
    for tensors in (
        {"patch_embedding.lora_down.weight": down, "patch_embedding.lora_up.weight": up},
        {"diffusion_model.patch_embedding.diff": product},
    ):
        model = network(checkpoints)
        merge(model, [(matches(model, write(tmp_path, tensors))[0], 1.0)])
        outs.append(model.patch_embedding.weight)
    assert relative_error(outs[0], outs[1]) < 1e-6


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64, np.int32])
def test_an_alpha_may_have_any_format(checkpoints: Path, tmp_path: Path, dtype: Any) -> None:
    weights = []
    for alpha in (np.array(4, dtype=np.float32), np.array([4], dtype=dtype)):
        model = network(checkpoints)
        path = write(tmp_path, {**pair(QUERY), f"{QUERY}.alpha": alpha})
        merge(model, [(matches(model, path)[0], 1.0)])
        weights.append(model.blocks[0].self_attn.q.weight)
    assert mx.array_equal(*weights)


def image_branch() -> dict[str, np.ndarray]:
    cross = "diffusion_model.blocks.1.cross_attn"
    return {
        **pair(f"{cross}.k_img"),
        **pair(f"{cross}.v_img"),
        f"{cross}.norm_k_img.diff": np.ones(64, np.float32),
        **pair("diffusion_model.img_emb.proj.3", width=32),
        "diffusion_model.img_emb.proj.0.diff_b": np.ones(32, np.float32),
    }


def test_keys_of_an_image_branch_are_named_where_there_is_none(
    checkpoints: Path, tmp_path: Path
) -> None:
    branch = image_branch()
    path = write(tmp_path, {**branch, **pair(QUERY)})
    (one,) = matches(network(checkpoints), path)
    assert set(one.ignored) == {NO_IMAGE_BRANCH}
    assert set(one.ignored[NO_IMAGE_BRANCH]) == set(branch)
    assert one.summary().startswith(
        "applied 1 modules; ignored 8 keys of an image branch that this model lacks (diffusion"
    )


@pytest.mark.parametrize("family", ["wan21-i2v", "wan21-flf2v"])
def test_an_image_branch_takes_its_keys(checkpoints: Path, tmp_path: Path, family: str) -> None:
    model = network(checkpoints, family)
    before = np.array(model.blocks[1].cross_attn.k_img.weight)
    tensors = image_branch()
    (one,) = matches(model, write(tmp_path, tensors))
    assert not one.ignored
    merge(model, [(one, 1.0)])
    down, up, *_ = tensors.values()
    assert relative_error(model.blocks[1].cross_attn.k_img.weight, before + up @ down) < 1e-6


def test_what_belongs_elsewhere_is_ignored_with_its_reason(
    checkpoints: Path, tmp_path: Path
) -> None:
    tensors = {
        **pair(QUERY),
        "lora_te_text_model_encoder.lora_down.weight": np.ones((2, 8), np.float32),
        "blocks.0.self_attn.k.alpha": np.float32(1),
        "blocks.0.self_attn.norm_x.diff": np.ones(8, np.float32),
        "patch_embedding.diff": np.ones((64, 36, 1, 2, 2), np.float32),
        "step": np.float32(3),
    }
    (one,) = matches(network(checkpoints), write(tmp_path, tensors))
    assert {reason: sorted(keys) for reason, keys in one.ignored.items()} == {
        "for a text encoder": ["lora_te_text_model_encoder.lora_down.weight"],
        ALPHA_ALONE: ["blocks.0.self_attn.k.alpha"],
        UNKNOWN: ["blocks.0.self_attn.norm_x.diff", "step"],
        OTHER_INPUT_CHANNELS: ["patch_embedding.diff"],
    }


REFUSED = {
    "changes no layer of this model": {"unet.down.0.lora_down.weight": np.ones((2, 8))},
    r"must have one rank, got 3 \(up\) and 2 \(down\)": {
        f"{QUERY}.lora_down.weight": np.ones((2, 64)),
        f"{QUERY}.lora_up.weight": np.ones((64, 3)),
    },
    "has only the down matrix of its two": {f"{QUERY}.lora_down.weight": np.ones((2, 64))},
    "must be a product of two matrices": {
        f"{QUERY}.lora_down.weight": np.ones((2, 64)),
        f"{QUERY}.lora_up.weight": np.ones(64),
    },
    r"it is for width 1536 \(Wan2.1 1.3B\), this model has width 64": pair(QUERY, 1536, 1536),
    r"it is for width 5120 \(Wan2.1 14B or Wan2.2 A14B\)": pair(QUERY, 5120, 5120),
    "it is for transformers of 30 layers, this model's has 2": pair("blocks.29.self_attn.q"),
    r"blocks.0.ffn.2 is \(64, 96\), this model's \(64, 128\)": pair("blocks.0.ffn.2", width=96),
    "is a DoRA adapter": {**pair(QUERY), f"{QUERY}.dora_scale": np.ones((64, 1))},
    "is a LoKr adapter": {f"{QUERY}.lokr_w1": np.ones((8, 8))},
    "gives blocks.0.self_attn.q twice": {**pair(QUERY), **pair("blocks.0.self_attn.q")},
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(
    checkpoints: Path, tmp_path: Path, says: str
) -> None:
    path = write(tmp_path, {key: np.float32(value) for key, value in REFUSED[says].items()})
    with pytest.raises(CheckpointError, match=says) as caught:
        matches(network(checkpoints), path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["lora_no_match", "lora_wrong_rank"])
def test_the_fixtures_bad_loras_are_refused(checkpoints: Path, tmp_path: Path, name: str) -> None:
    path = unpacked(f"bad/{name}.safetensors", tmp_path)
    with pytest.raises(CheckpointError, match=f"{name}.*(changes no layer|one rank)"):
        matches(network(checkpoints), path)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        (f"{QUERY}.alpha", np.ones(2), "must be one number"),
        (f"{QUERY}.alpha", np.array(np.nan), "must be finite"),
        (f"{QUERY}.lora_up.weight", np.full((64, 2), np.inf), "NaN or infinite values"),
        (f"{QUERY}.lora_up.weight", np.ones((64, 2), np.int32), "must hold floating-point"),
    ],
)
def test_numbers_that_are_none_are_refused(
    checkpoints: Path, tmp_path: Path, key: str, value: np.ndarray, says: str
) -> None:
    model = network(checkpoints)
    path = write(tmp_path, {**pair(QUERY), key: value})
    with pytest.raises(CheckpointError, match=says):
        merge(model, [(matches(model, path)[0], 1.0)])


def test_a_torch_file_is_read_safely(checkpoints: Path, files: Path, tmp_path: Path) -> None:
    tensors = load_file(files / SAME[0])
    path = torchfile.save(tmp_path / "lora.pt", tensors)
    outs = [merged_out(checkpoints, [(one, 1.0)]) for one in (path, files / SAME[0])]
    assert mx.array_equal(*outs)
    hostile = tmp_path / "hostile.pt"
    hostile.write_bytes((DATA / "bad" / "os_system.pth").read_bytes())
    with pytest.raises(CheckpointError):
        read_lora(hostile)


def test_a_lora_tells_ranks_targets_and_width(files: Path) -> None:
    lora = read_lora(files / "e_diffusers_transformer.safetensors")
    assert (lora.width, lora.layers, lora.image_branch) == (64, 2, False)
    assert lora.kinds()["self_attn.o"] == lora.kinds()["ffn.2"] == 2
    assert {lora.rank(module) for module in lora.modules} == {1, 2}
    assert set(lora.key_formats) == {
        "transformer.<diffusers module>.lora_A.weight",
        "transformer.<diffusers module>.lora_B.weight",
    }
