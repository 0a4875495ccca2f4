"""VACE in the transformer against the official code: each scale, together, streamed, quantized."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from msgspec import UNSET, structs

from tests.conftest import golden, relative_error
from tests.models.official import TOLERANCE, allocated, converted, on_the_cpu
from tests.weights.test_quantize import plain_twin
from wanpipe.backend.device import mlx_dtype
from wanpipe.checkpoints.detect import detect
from wanpipe.errors import CheckpointError
from wanpipe.models import dit_blocks
from wanpipe.models.config import DiTConfig, ModelConfig, Quantization
from wanpipe.models.dit import Block, Condition, DiT
from wanpipe.models.layers import QuantizedLinear
from wanpipe.runtime import documents
from wanpipe.weights import convert
from wanpipe.weights.load import load_network
from wanpipe.weights.shape_check import check_shapes
from wanpipe.weights.stream import load_streamed

TOPIC = "wan21-vace"
SCALES = {1.0: "out", 0.5: "out_scale0.5", 0.0: "out_scale0"}
CASES = [(name, scale) for name in "abcd" for scale in (1.0, 0.5)] + [("a", 0.0)]


Json = dict[str, Any]


def dit_of(data: Json) -> Json:
    """The dimensions of the transformer in a model's config.json."""
    return data["components"]["model"]["config"]


def without_vace(data: Json) -> None:
    """Drop what VACE adds to the dimensions."""
    for name in ("vace_layers", "vace_in_dim"):
        del dit_of(data)[name]


@cache
def reference() -> dict[str, np.ndarray]:
    return golden(f"{TOPIC}/dit")


def load(checkpoints: Path, dtype: str = "float32") -> DiT:
    directory, config = converted(checkpoints, TOPIC, dtype)
    return load_network(DiT(config.dit), directory / "model.safetensors", mlx_dtype(dtype))


def stream(checkpoints: Path) -> DiT:
    directory, config = converted(checkpoints, TOPIC)
    path = directory / "model.safetensors"
    return load_streamed(DiT(config.dit), path, mx.float32)


def condition(network: DiT, name: str) -> Condition:
    return network.condition(mx.array(reference()[f"{name}_context"]))


def forward(
    network: DiT, name: str, conditions: list[Condition] | None = None, scale: float = 1.0
) -> list[np.ndarray]:
    """Run the inputs of a forward pass, by default under its own text."""
    x, t, context = (mx.array(reference()[f"{name}_{one}"]) for one in ("x", "t", "vace_context"))
    seen = conditions or [condition(network, name)]
    found = network(x, t.tolist(), seen, context=context, context_scale=scale)
    return [np.array(one) for one in found]


@pytest.mark.parametrize("make", [load, stream], ids=["resident", "streamed"])
@pytest.mark.parametrize(("name", "scale"), CASES)
def test_forward_matches_the_official_code(
    checkpoints: Path, name: str, scale: float, make: object
) -> None:
    [out] = forward(make(checkpoints), name, scale=scale)
    assert relative_error(out, reference()[f"{name}_{SCALES[scale]}"]) < TOLERANCE


@pytest.mark.parametrize("make", [load, stream], ids=["resident", "streamed"])
def test_passes_together_give_the_bits_of_passes_alone(checkpoints: Path, make: object) -> None:
    network = make(checkpoints)
    seen = [condition(network, name) for name in "ab"]
    together = forward(network, "a", seen)
    assert relative_error(together[0], reference()["a_out"]) < TOLERANCE
    for one, prompt in zip(together, seen, strict=True):
        [alone] = forward(network, "a", [prompt])
        assert np.array_equal(one, alone)
    assert not np.array_equal(*together)


def test_streamed_blocks_give_the_same_bits_at_every_step(checkpoints: Path) -> None:
    resident, streamed = load(checkpoints), stream(checkpoints)
    for network in (resident, streamed):
        [first], [second] = forward(network, "b"), forward(network, "b")
        assert np.array_equal(first, second)
    assert np.array_equal(forward(resident, "b")[0], forward(streamed, "b")[0])


def test_keys_and_values_are_kept_for_vace_blocks_too(checkpoints: Path) -> None:
    network = load(checkpoints)
    prompt = condition(network, "a")
    [first] = forward(network, "a", [prompt])
    kept = dict(prompt.kv_cache)
    assert sorted(kept) == list(range(network.config.layers + 2))
    [second] = forward(network, "a", [prompt])
    assert all(prompt.kv_cache[index] is kept[index] for index in kept)
    assert np.array_equal(first, second)


def test_each_first_self_attention_runs_once(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, calls, original = load(checkpoints), [], Block.attend_self
    monkeypatch.setattr(
        Block, "attend_self", lambda *args: (calls.append(args[0]), original(*args))[1]
    )
    forward(network, "a", [condition(network, name) for name in "ab"])
    assert len(calls) == 2 * (network.config.layers + 2) - 2
    once = [network.blocks[0], network.vace_blocks[0]]
    assert [sum(one is block for one in calls) for block in once] == [1, 1]


def test_a_vace_block_runs_right_after_its_main_block(checkpoints: Path) -> None:
    network = load(checkpoints)
    names = ["blocks.0", "vace_blocks.0", "blocks.1", "blocks.2", "vace_blocks.1", "blocks.3"]
    assert network.config.block_names == names
    assert list(network.blocks[0].keys()) == list(network.blocks[1].keys())
    projections = [
        set(block.keys()) - set(network.blocks[0].keys()) for block in network.vace_blocks
    ]
    assert projections == [{"before_proj", "after_proj"}, {"after_proj"}]


def test_a_network_without_vace_takes_no_context_and_vace_needs_one(checkpoints: Path) -> None:
    network = load(checkpoints)
    x, t = mx.array(reference()["a_x"]), reference()["a_t"].tolist()
    with pytest.raises(AssertionError):
        network(x, t, [condition(network, "a")])


def test_products_are_bfloat16_and_streams_float32(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, seen, original = load(checkpoints, "bfloat16"), set(), dit_blocks.VaceBlock.hint

    def hint(block: dit_blocks.VaceBlock, context: dit_blocks.Stream) -> mx.array:
        found = original(block, context)
        seen.add((context.x.dtype, found.dtype))
        return found

    monkeypatch.setattr(dit_blocks.VaceBlock, "hint", hint)
    [out] = forward(network, "a")
    assert seen == {(mx.float32, mx.bfloat16)}
    assert out.dtype == np.float32
    assert relative_error(out, reference()["a_out"]) < 2e-2


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_network_computes_with_its_dequantized_weights(
    checkpoints: Path, tmp_path: Path, bits: int
) -> None:
    spec = Quantization(bits=bits, group_size=32)
    options = convert.Options(dtype="float32", quantization=spec)
    source = detect(checkpoints / TOPIC)
    config = convert.convert(source, tmp_path, "0" * 32, options, lambda *_: None)
    path = tmp_path / "model.safetensors"
    network = load_network(DiT(config.dit), path, mx.float32)
    modules = network.named_modules()
    quantized = {name for name, layer in modules if isinstance(layer, QuantizedLinear)}
    own = {"vace_blocks.0.before_proj", "vace_blocks.0.after_proj", "vace_blocks.1.after_proj"}
    assert own <= quantized
    assert len(quantized) == 6 * 10 + len(own)
    twin = plain_twin(network)
    [ours], [theirs] = forward(network, "a"), forward(twin, "a")
    assert relative_error(ours, theirs) < 1e-6
    streamed = load_streamed(DiT(config.dit), path, mx.float32)
    assert np.array_equal(forward(streamed, "a")[0], ours)
    error = relative_error(ours, reference()["a_out"])
    assert 1e-4 < error < (0.02 if bits == 8 else 0.3)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"vace_layers": [0, 4]}, "must rise from 0 and stay below 4 layers"),
        ({"vace_layers": [1, 2]}, "must rise from 0"),
        ({"vace_layers": [0, 2, 2]}, "must rise from 0"),
        ({"vace_layers": []}, "must rise from 0"),
        ({"vace_layers": [0, -1]}, ">= 0"),
        ({"vace_in_dim": 0}, ">= 1"),
        ({"vace_in_dim": None}, "must be given together"),
        ({"vace_layers": None}, "must be given together"),
    ],
)
def test_impossible_layers_are_refused(changes: dict[str, object], why: str) -> None:
    sizes = {"dim": 8, "ffn_dim": 8, "heads": 1, "layers": 4, "in_dim": 16, "out_dim": 16}
    config = {**sizes, "vace_layers": [0, 2], "vace_in_dim": 96}
    assert documents.to_builtins(documents.convert(config, DiTConfig))["vace_layers"] == (0, 2)
    wanted = {name: value for name, value in {**config, **changes}.items() if value is not None}
    with pytest.raises(documents.DocumentError, match=why):
        documents.convert(wanted, DiTConfig)


def test_a_file_without_a_vace_block_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    directory, config = converted(checkpoints, TOPIC)
    weights = mx.load(str(directory / "model.safetensors"))
    del weights["vace_blocks.1.after_proj.weight"]
    path = tmp_path / "model.safetensors"
    mx.save_safetensors(str(path), weights)
    with pytest.raises(CheckpointError, match=r"missing tensors: vace_blocks\.1\.after_proj"):
        load_streamed(DiT(config.dit), path, mx.float32)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda data: data["components"].pop("vae_encoder"), "must have a vae_encoder, got none"),
        (lambda data: dit_of(data).update(in_dim=36), "in_dim must be 16 to match"),
        (lambda data: dit_of(data).update(vace_in_dim=16), "vace_in_dim must be 96 in .*, got 16"),
        (without_vace, "vace_in_dim must be 96 in wan2.1-vace-1.3b, got none"),
        (lambda data: dit_of(data).update(clip_dim=32), "clip_dim must be None"),
        (lambda data: dit_of(data).update(vace_layers=[2, 0]), "vace_layers must rise from 0"),
        (
            lambda data: data.update(variant="wan2.1-t2v-1.3b"),
            "vace_in_dim must be absent in wan2.1-t2v-1.3b, got 96",
        ),
    ],
)
def test_a_model_that_contradicts_itself_is_refused(
    checkpoints: Path, spoil: Callable[[Json], object], says: str
) -> None:
    _, config = converted(checkpoints, TOPIC)
    data = json.loads(documents.encode(config))
    assert documents.decode(json.dumps(data), ModelConfig) == config
    spoil(data)
    with pytest.raises(documents.DocumentError, match=says):
        documents.decode(json.dumps(data), ModelConfig)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vace_in_dim": 48}, r"vace_patch_embedding.weight \(64, 384\) instead of \(64, 192\)"),
        ({"vace_layers": (0, 1, 2)}, "2 VACE blocks instead of 3"),
        (
            {"vace_layers": UNSET, "vace_in_dim": UNSET},
            r"instead of \(\), 2 VACE blocks instead of 0",
        ),
    ],
)
def test_dimensions_that_do_not_match_the_file_are_refused(
    checkpoints: Path, changes: dict[str, object], says: str
) -> None:
    directory, config = converted(checkpoints, TOPIC)
    path = directory / "model.safetensors"
    check_shapes("model", path, config.dit)
    with pytest.raises(CheckpointError, match=says):
        check_shapes("model", path, structs.replace(config.dit, **changes))


@on_the_cpu
def test_memory_does_not_grow_with_the_number_of_hints(checkpoints: Path) -> None:
    def peak(layers: int) -> int:
        _, tiny = converted(checkpoints, TOPIC)
        config = structs.replace(
            tiny.dit, ffn_dim=1024, layers=layers, vace_layers=tuple(range(layers))
        )
        network = DiT(config)
        x, context = (mx.random.normal((channels, 2, 16, 16)) for channels in (16, 96))
        prompt = network.condition(mx.random.normal((3, config.text_dim)))

        def run() -> None:
            mx.eval(network(x, [500.0], [prompt], context=context))

        mx.eval(network.parameters())
        run()
        # the highest of several: where others use the processor, some work is done too soon
        return max(allocated(run) for _ in range(5))

    assert peak(8) < 1.2 * peak(2)
