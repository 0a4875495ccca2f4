"""Blocks read from the disk whenever they are gone through: the same bits in less memory."""

import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from msgspec import structs

from stages import convert
from tests.conftest import golden
from tests.models.official import converted
from tests.weights.test_lora import RUN, files, matches  # noqa: F401
from wanpipe.errors import CheckpointError
from wanpipe.models.config import read_model_config
from wanpipe.models.dit import Block, DiT
from wanpipe.store import Store
from wanpipe.weights.load import Weights, load_network
from wanpipe.weights.lora_match import LoraMatch
from wanpipe.weights.merge import merge
from wanpipe.weights.stream import StreamedBlocks, load_streamed, numbered

Loras = list[tuple[LoraMatch, float]]


def networks(path: Path, config: object, dtype: mx.Dtype, loras: Loras) -> tuple[DiT, DiT]:
    """The same network with its blocks in memory, and with its blocks on the disk."""
    whole = load_network(DiT(config), path, dtype)
    streamed = load_streamed(DiT(config), path, dtype, loras)
    merge(whole, loras)
    merge(streamed, loras)
    return whole, streamed


def velocities(network: DiT) -> list[np.ndarray]:
    """Two passes at once, twice: blocks in memory keep what they made of the text."""
    arrays = golden("wan21-t2v/dit")
    context = mx.array(arrays["a_context"])
    seen = [network.condition(context), network.condition(context[:2])]
    x, t = mx.array(arrays["a_x"]), arrays["a_t"].tolist()
    return [np.array(out) for _ in range(2) for out in network(x, t, seen)]


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_streamed_blocks_give_the_same_bits(checkpoints: Path, dtype: mx.Dtype) -> None:
    directory, config = converted(checkpoints, "wan21-t2v", str(dtype).removeprefix("mlx.core."))
    resident, streamed = networks(directory / "model.safetensors", config.dit, dtype, [])
    for one, other in zip(velocities(resident), velocities(streamed), strict=True):
        assert np.array_equal(one, other)


def test_keys_and_values_of_the_text_are_kept_for_blocks_in_memory_alone(
    checkpoints: Path,
) -> None:
    directory, config = converted(checkpoints, "wan21-t2v")
    arrays = golden("wan21-t2v/dit")
    x, t = mx.array(arrays["a_x"]), arrays["a_t"].tolist()
    counts = []
    for network in networks(directory / "model.safetensors", config.dit, mx.float32, []):
        seen = network.condition(mx.array(arrays["a_context"]))
        network(x, t, [seen])
        counts.append(len(seen.kv_cache))
    assert counts == [config.dit.layers, 0]


def test_passes_together_give_the_bits_of_passes_alone(checkpoints: Path) -> None:
    directory, config = converted(checkpoints, "wan21-t2v")
    network, _ = networks(directory / "model.safetensors", config.dit, mx.float32, [])
    arrays = golden("wan21-t2v/dit")
    seen = [network.condition(mx.array(arrays["a_context"][:count])) for count in (1, 2)]
    x, t = mx.array(arrays["a_x"]), arrays["a_t"].tolist()
    for one, condition in zip(network(x, t, seen), seen, strict=True):
        [alone] = network(x, t, [condition])
        assert np.array_equal(np.array(one), np.array(alone))


def test_streamed_blocks_get_their_loras(checkpoints: Path, files: Path) -> None:  # noqa: F811
    directory, config = converted(checkpoints, "wan21-t2v")
    path = directory / "model.safetensors"
    names = (RUN["same_delta"][0], RUN["full_delta_with_modulation"])
    matched = matches(DiT(config.dit), *(files / name for name in names))
    resident, streamed = networks(
        path,
        config.dit,
        mx.float32,
        [(one, strength) for one, strength in zip(matched, (1.0, 0.5), strict=True)],
    )
    plain, _ = networks(path, config.dit, mx.float32, [])
    for one, other in zip(velocities(resident), velocities(streamed), strict=True):
        assert np.array_equal(one, other)
    assert not np.array_equal(velocities(plain)[0], velocities(resident)[0])


def test_streamed_quantized_blocks_get_their_loras(
    checkpoints: Path,
    files: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    params = convert.Params(
        checkpoint_dir=checkpoints / "wan21-t2v",
        output_dir=tmp_path / "model",
        quantize=True,
        bits=8,
        group_size=32,
    )
    directory = convert.run(params, Store(tmp_path / "cache"))
    config, path = read_model_config(directory), directory / "model.safetensors"
    loras = [(one, 1.0) for one in matches(DiT(config.dit), files / RUN["same_delta"][0])]
    resident, streamed = networks(path, config.dit, mx.float32, loras)
    for one, other in zip(velocities(resident), velocities(streamed), strict=True):
        assert np.array_equal(one, other)


def test_no_more_than_two_blocks_are_made(checkpoints: Path, tmp_path: Path) -> None:
    _, model = converted(checkpoints, "wan21-t2v")
    config = structs.replace(model.dit, layers=6)
    network, path = DiT(config), tmp_path / "model.safetensors"
    mx.save_safetensors(str(path), dict(tree_flatten(network.parameters())))
    seen: list[weakref.ref[Block]] = []
    living: list[int] = []

    class Watched(StreamedBlocks[Block]):
        def __iter__(self) -> Iterator[Block]:
            for block in super().__iter__():
                seen.append(weakref.ref(block))
                living.append(sum(one() is not None for one in seen))
                yield block

    makers = numbered(lambda: Block(config), 6)
    network.blocks = Watched(path=path, makers=makers, dtype=mx.float32)
    velocities(network)
    assert living == 2 * [1, 2, 2, 2, 2, 2]


def test_what_is_taken_was_read_to_the_end(checkpoints: Path, tmp_path: Path) -> None:
    directory, config = converted(checkpoints, "wan21-t2v")
    path = tmp_path / "model.safetensors"
    shutil.copyfile(directory / "model.safetensors", path)
    exact = dict(tree_flatten(load_network(DiT(config.dit), path, mx.float32).parameters()))
    taken = [
        ("", load_network(DiT(config.dit), path, mx.float32)),
        ("blocks.0.", Weights(path, mx.float32).fill(Block(config.dit), "blocks.0.")),
    ]
    path.write_bytes(b"")  # what was left for later would be zeros or an error
    for prefix, network in taken:
        for name, value in tree_flatten(network.parameters()):
            assert np.array_equal(np.array(value), np.array(exact[prefix + name])), name


def test_a_file_that_lacks_a_tensor_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    directory, config = converted(checkpoints, "wan21-t2v")
    weights = mx.load(str(directory / "model.safetensors"))
    del weights["blocks.1.ffn.fc1.weight"]
    path = tmp_path / "model.safetensors"
    mx.save_safetensors(str(path), weights)
    makers = numbered(lambda: Block(config.dit), 2)
    blocks = StreamedBlocks(path=path, makers=makers, dtype=mx.float32)
    with pytest.raises(CheckpointError, match=r"lacks blocks\.1\.ffn\.fc1\.weight; convert"):
        list(blocks)
