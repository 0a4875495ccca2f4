"""Files of a tiny VAE: what is read, and what is refused in one line."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from tests.checkpoints import torchfile
from tests.tiny_vae import NARROW, Tensors, draw_weights, write_tiny_vae
from wanpipe.checkpoints.rules import taehv
from wanpipe.errors import WanpipeError
from wanpipe.store import Store
from wanpipe.weights.tiny_vae import TinyVAE, open_tiny_vae


def opened(path: Path, channels: int = 16) -> TinyVAE:
    return open_tiny_vae(path, channels, Store(path.parent / "cache"))


def parameters(path: Path) -> dict[str, np.ndarray]:
    named: Any = tree_flatten(opened(path).load(mx.float32, Store(path.parent)).parameters())
    return {name: np.array(value) for name, value in named}


def test_dimensions_follow_from_the_shapes(tmp_path: Path) -> None:
    path = write_tiny_vae(tmp_path / "any name.safetensors", draw_weights("taew2_2", NARROW))
    config = opened(path, 48).config
    assert (config.z_dim, config.widths, config.patch_size) == (48, NARROW, 2)
    assert config.stride == (4, 16, 16)


def test_both_formats_hold_the_same_weights(tmp_path: Path) -> None:
    tensors = draw_weights("taew2_1", NARROW)
    first = parameters(write_tiny_vae(tmp_path / "a.safetensors", tensors))
    second = parameters(torchfile.save(tmp_path / "a.pth", tensors))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_of_a_matrix_for_more_frames_the_last_rows_are_used(tmp_path: Path) -> None:
    tensors = draw_weights("taew2_1", NARROW)
    longer = tensors[taehv.MATRICES[0]]
    assert len(longer) == 2 * NARROW[0]
    found = parameters(write_tiny_vae(tmp_path / "a.safetensors", tensors))
    assert np.array_equal(found["levels.0.grow.matrix"], longer[NARROW[0] :, :, 0, 0])


def changed(tensors: Tensors, **changes: tuple[int, ...] | None) -> Tensors:
    """Tensors of which some have another shape or are left out."""
    found = dict(tensors)
    for name, shape in changes.items():
        if shape is None:
            del found[name]
        else:
            found[name] = np.zeros(shape, np.float32)
    return found


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({taehv.SUPER: (32, 1, 7, 7)}, "larger decoder of the files called _super"),
        ({"decoder.4.conv.2.bias": None}, "missing tensors: levels.0.blocks.1.conv2.bias"),
        ({"decoder.4.conv.2.bias": (9,)}, "wrong shapes: decoder.4.conv.2.bias (9,) instead of"),
        ({taehv.MATRICES[1]: (6, 6, 1, 1)}, "wrong shapes: decoder.13.conv.weight (6, 6) instead"),
        ({taehv.MATRICES[1]: ()}, "wrong shapes: decoder.13.conv.weight () instead"),
        ({"decoder.23.weight": (1,)}, "unknown tensors: decoder.23.weight"),
        ({"decoder.1.weight": (8, 0, 3, 3)}, "from 0 channels"),
        ({"decoder.22.weight": (5, 4, 3, 3)}, "got 5 values"),
        ({"decoder.22.weight": (3, 4)}, "is not the tiny autoencoder TAEHV"),
        ({"decoder.1.weight": None}, "is not the tiny autoencoder TAEHV"),
        ({"decoder.1.weight": (1 << 15, 1, 1, 1)}, "is not the tiny autoencoder TAEHV"),
    ],
)
def test_another_network_is_refused(
    changes: dict[str, tuple[int, ...] | None], says: str, tmp_path: Path
) -> None:
    tensors = changed(draw_weights("taew2_1", NARROW), **changes)
    path = write_tiny_vae(tmp_path / "a.safetensors", tensors)
    with pytest.raises(WanpipeError) as error:
        opened(path)
    assert str(error.value).startswith(str(path))
    assert says in str(error.value)


def test_numbers_that_are_no_floats_are_refused(tmp_path: Path) -> None:
    tensors = draw_weights("taew2_1", NARROW)
    tensors["decoder.1.bias"] = tensors["decoder.1.bias"].astype(np.int32)
    with pytest.raises(WanpipeError, match=r"decoder\.1\.bias must hold floating-point numbers"):
        opened(write_tiny_vae(tmp_path / "a.safetensors", tensors))


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tensors = draw_weights("taew2_1", NARROW)
    tensors["decoder.1.bias"][3] = np.nan
    with pytest.raises(WanpipeError, match=r"decoder\.1\.bias holds numbers that are not finite"):
        parameters(write_tiny_vae(tmp_path / "a.safetensors", tensors))


@pytest.mark.parametrize(
    ("kind", "channels", "says"),
    [
        ("taew2_1", 48, "latents of 48 channels, got one for 16 with patches of 1; use taew2_2"),
        ("taew2_2", 16, "latents of 16 channels, got one for 48 with patches of 2; use taew2_1"),
    ],
)
def test_a_file_for_other_latents_is_refused(
    kind: str, channels: int, says: str, tmp_path: Path
) -> None:
    path = write_tiny_vae(tmp_path / "a.safetensors", draw_weights(kind, NARROW))
    with pytest.raises(WanpipeError, match=says):
        opened(path, channels)


def test_a_file_that_is_gone_or_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WanpipeError, match="is missing; give the path of taew2_1 or taew2_2"):
        opened(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(WanpipeError, match="no safetensors file, damaged or cut short"):
        opened(tmp_path / "b.safetensors")


def test_a_file_that_has_changed_since_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = write_tiny_vae(tmp_path / "a.safetensors", draw_weights("taew2_1", NARROW))
    tiny = opened(path)
    write_tiny_vae(path, draw_weights("taew2_1", NARROW, seed=1))
    with pytest.raises(WanpipeError, match="has changed meanwhile"):
        tiny.load(mx.float32, Store(tmp_path / "other"))
