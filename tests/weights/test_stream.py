"""Blocks read from the disk while they are gone through: in every pass, or in the first one."""

import gc
import shutil
import signal
import time
import weakref
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from threading import Event, Timer

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
from wanpipe.runtime import interrupt
from wanpipe.runtime.interrupt import Interrupted
from wanpipe.store import Store
from wanpipe.weights import networks as kept_networks
from wanpipe.weights.load import Weights, load_network, read_whole
from wanpipe.weights.lora_match import LoraMatch
from wanpipe.weights.merge import merge
from wanpipe.weights.networks import Upcoming
from wanpipe.weights.reader import Ended
from wanpipe.weights.stream import StreamedBlocks, load_streamed, numbered

Loras = list[tuple[LoraMatch, float]]


def every_way(path: Path, config: object, dtype: mx.Dtype, loras: Loras) -> list[DiT]:
    """The same network in memory, with its blocks on the disk, and read in its first pass."""
    whole = load_network(DiT(config), path, dtype)
    ways = [load_streamed(DiT(config), path, dtype, loras, stay=stay) for stay in (False, True)]
    for network in (whole, *ways):
        merge(network, loras)
    return [whole, *ways]


def arriving(path: Path, config: object) -> DiT:
    """A network that its first pass reads."""
    return load_streamed(DiT(config), path, mx.float32, stay=True)


def same_bits(networks: list[DiT]) -> None:
    """Assert that all give the same velocities, in several passes."""
    resident, *others = map(velocities, networks)
    for other in others:
        assert all(map(np.array_equal, resident, other))


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
    same_bits(every_way(directory / "model.safetensors", config.dit, dtype, []))


def test_keys_and_values_of_the_text_are_kept_for_blocks_in_memory_alone(
    checkpoints: Path,
) -> None:
    directory, config = converted(checkpoints, "wan21-t2v")
    arrays = golden("wan21-t2v/dit")
    x, t = mx.array(arrays["a_x"]), arrays["a_t"].tolist()
    counts = []
    for network in every_way(directory / "model.safetensors", config.dit, mx.float32, []):
        seen = network.condition(mx.array(arrays["a_context"]))
        network(x, t, [seen])
        counts.append(len(seen.kv_cache))
    assert counts == [config.dit.layers, 0, config.dit.layers]


def test_passes_together_give_the_bits_of_passes_alone(checkpoints: Path) -> None:
    directory, config = converted(checkpoints, "wan21-t2v")
    network = load_network(DiT(config.dit), directory / "model.safetensors", mx.float32)
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
    networks = every_way(
        path,
        config.dit,
        mx.float32,
        [(one, strength) for one, strength in zip(matched, (1.0, 0.5), strict=True)],
    )
    same_bits(networks)
    plain = load_network(DiT(config.dit), path, mx.float32)
    assert not np.array_equal(velocities(plain)[0], velocities(networks[0])[0])


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
    same_bits(every_way(path, config.dit, mx.float32, loras))


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


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Event:
    """What the thread of the reader waits for before it reads the last block."""
    event, original = Event(), Weights.through_mlx

    def waiting(self: Weights, names: list[str]) -> Iterator[tuple[str, mx.array]]:
        for name in names:
            if name.startswith("blocks.1."):
                assert event.wait(10)
            yield from original(self, [name])

    monkeypatch.setattr(Weights, "through_mlx", waiting)
    return event


def test_a_block_is_given_before_the_last_one_is_read(checkpoints: Path, held: Event) -> None:
    directory, config = converted(checkpoints, "wan21-t2v")
    path, done = directory / "model.safetensors", Event()
    network = arriving(path, config.dit)
    blocks = iter(network.blocks)
    exact = Weights(path, mx.float32)
    first = next(blocks)
    Timer(0.1, lambda: (done.set(), held.set())).start()
    rest = list(blocks)
    assert done.is_set()
    assert len(rest) == 1
    for number, block in enumerate((first, *rest)):
        expected = exact.fill(Block(config.dit), f"blocks.{number}.")
        values = dict(tree_flatten(expected.parameters()))
        assert all(
            mx.array_equal(one, values[name]) for name, one in tree_flatten(block.parameters())
        )


def test_a_file_is_read_in_the_order_in_which_it_is_used(checkpoints: Path) -> None:
    directory, config = converted(checkpoints, "wan21-vace")
    path, names = directory / "model.safetensors", config.dit.block_names
    found = [name for name, _ in read_whole(path, mx.float32, names, lambda: False)]
    assert sorted(found) == sorted(Weights(path, mx.float32).stored)
    owners = [".".join(name.split(".")[:2]) for name in found]
    blocks = [owner for owner, _ in groupby(owners) if owner in names]
    assert blocks == names
    assert not set(owners[: -sum(owner in names for owner in owners)]) & set(names)


def test_what_arrived_stays_and_is_freed_with_its_network(
    checkpoints: Path, tmp_path: Path
) -> None:
    directory, config = converted(checkpoints, "wan21-vace")
    path = shutil.copyfile(directory / "model.safetensors", tmp_path / "model.safetensors")
    network = arriving(path, config.dit)
    blocks = list(network.blocks)
    assert len(blocks) == len(config.dit.block_names)
    path.unlink()  # later passes read nothing
    assert all(one is other for one, other in zip(network.blocks, blocks, strict=True))
    gc.disable()
    try:
        seen = [weakref.ref(block) for block in blocks]
        del network, blocks
        assert all(block() is None for block in seen)
    finally:
        gc.enable()


def test_a_network_is_loaded_with_its_last_block(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, config = converted(checkpoints, "wan21-t2v")
    path, loaded = directory / "model.safetensors", []
    monkeypatch.setattr(kept_networks, "loaded", loaded.append)
    network = arriving(path, config.dit)
    blocks = iter(network.blocks)
    next(blocks)
    assert loaded == []
    next(blocks)
    assert loaded == [path]
    assert list(blocks) == []
    velocities(network)
    assert loaded == [path]


def test_a_network_that_is_read_ahead_is_read_once(
    checkpoints: Path, held: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, config = converted(checkpoints, "wan21-t2v")
    path = directory / "model.safetensors"
    held.set()
    exact = velocities(load_network(DiT(config.dit), path, mx.float32))
    held.clear()
    monkeypatch.setattr(Weights, "begin", None)
    read = partial(read_whole, path, mx.float32, config.dit.block_names)
    with kept_networks.scheduled([Upcoming(path=path, bytes=1, read=read)]):
        network = arriving(path, config.dit)
        Timer(0.1, held.set).start()
        assert all(map(np.array_equal, velocities(network), exact))
        assert kept_networks.take(path) is None


def test_an_interrupted_first_pass_ends_the_reading_and_is_not_kept(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, config = converted(checkpoints, "wan21-t2v")
    path, stopped = directory / "model.safetensors", Event()
    exact = velocities(load_network(DiT(config.dit), path, mx.float32))
    original = Weights.read

    def slow(self: Weights, names: list[str], ended: Ended, **more: bool) -> Iterator[object]:
        for name, array in original(self, names, ended, **more):
            while name.startswith("blocks.1.") and not ended():
                time.sleep(0.01)
            yield name, array
        if names[-1].startswith("blocks.1."):
            stopped.set()

    def check() -> None:
        if network.blocks.kept:  # while the first block computes
            raise Interrupted(signal.SIGINT)

    with kept_networks.scheduled([]):
        network = kept_networks.kept("a", lambda: arriving(path, config.dit))
        with monkeypatch.context() as patched, pytest.raises(Interrupted):
            patched.setattr(Weights, "read", slow)
            patched.setattr(interrupt, "check", check)
            velocities(network)
        assert stopped.is_set()
        assert len(network.blocks.kept) == 1
        again = kept_networks.kept("a", lambda: arriving(path, config.dit))
        assert again is not network
        for one in (network, again):  # the pass can also be made again
            assert all(map(np.array_equal, velocities(one), exact))


def test_an_error_of_the_reader_ends_the_first_pass(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, config = converted(checkpoints, "wan21-t2v")
    network, original = arriving(directory / "model.safetensors", config.dit), Weights.through_mlx

    def broken(self: Weights, names: list[str]) -> Iterator[tuple[str, mx.array]]:
        for name in names:
            if name.startswith("blocks.1."):
                raise CheckpointError("ends inside a tensor")
            yield from original(self, [name])

    monkeypatch.setattr(Weights, "through_mlx", broken)
    with pytest.raises(CheckpointError, match="ends inside a tensor"):
        velocities(network)
    assert len(network.blocks.kept) == 1
