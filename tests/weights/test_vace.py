"""LoRAs on VACE blocks, under every name: in memory, streamed and quantized."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.checkpoints.foreign import silent
from tests.conftest import golden, relative_error
from tests.models.official import converted
from tests.weights.test_lora import matches, network, pair, write
from tests.weights.test_quantize import plain_twin
from wanpipe.checkpoints.detect import detect
from wanpipe.errors import CheckpointError
from wanpipe.models.config import Quantization
from wanpipe.models.dit import DiT
from wanpipe.models.layers import QuantizedLinear
from wanpipe.weights import convert
from wanpipe.weights.load import load_network
from wanpipe.weights.lora import read_lora
from wanpipe.weights.lora_match import NO_VACE
from wanpipe.weights.merge import merge
from wanpipe.weights.stream import load_streamed

TOPIC = "wan21-vace"
# a module by the name of the official code, and by other names
NAMES = {
    "vace_blocks.1.cross_attn.q": (
        "diffusion_model.vace_blocks.1.cross_attn.q",
        "transformer.vace_blocks.1.attn2.to_q",
        "lora_unet_vace_blocks_1_cross_attn_q",
        "lora_transformer_vace_blocks_1_attn2_to_q",
    ),
    "vace_blocks.0.before_proj": (
        "vace_blocks.0.before_proj",
        "transformer.vace_blocks.0.proj_in",
        "lora_unet__vace_blocks_0_before_proj",
    ),
    "vace_blocks.1.after_proj": (
        "base_model.model.vace_blocks.1.after_proj",
        "transformer.vace_blocks.1.proj_out",
        "lycoris_vace_blocks_1_after_proj",
    ),
}
WRITTEN = [(ours, theirs) for ours, names in NAMES.items() for theirs in names]


def velocity(model: DiT) -> np.ndarray:
    x, t, text, context = (
        mx.array(golden(f"{TOPIC}/dit")[f"a_{name}"])
        for name in ("x", "t", "context", "vace_context")
    )
    [out] = model(x, t.tolist(), [model.condition(text)], context=context)
    return np.array(out)


def every_kind(tmp_path: Path) -> Path:
    """A LoRA of several VACE layers, and of one main block."""
    tensors = {**pair("blocks.3.ffn.0", out=96), "vace_blocks.1.diff_m": np.ones((1, 6, 64))}
    for number, names in enumerate(NAMES.values()):
        tensors |= pair(names[0], rank=number + 1)
    return write(tmp_path, {name: np.float32(array) * 0.05 for name, array in tensors.items()})


@pytest.mark.parametrize(("module", "written"), WRITTEN)
def test_a_lora_changes_a_vace_layer_under_every_name(
    checkpoints: Path, tmp_path: Path, module: str, written: str
) -> None:
    model, tensors = network(checkpoints, TOPIC), pair(written)
    layer = dict(model.named_modules())[module]
    before = np.array(layer.weight)
    (one,) = matches(model, write(tmp_path, tensors))
    assert (one.modules, one.ignored) == (1, {})
    merge(model, [(one, 0.5)])
    down, up = tensors.values()
    assert relative_error(layer.weight, before + 0.5 * (up @ down)) < 1e-6


def test_streamed_vace_blocks_get_their_loras(checkpoints: Path, tmp_path: Path) -> None:
    directory, config = converted(checkpoints, TOPIC)
    resident = network(checkpoints, TOPIC)
    plain = velocity(resident)
    (one,) = matches(resident, every_kind(tmp_path))
    assert (one.modules, one.ignored) == (5, {})
    path = directory / "model.safetensors"
    streamed = load_streamed(DiT(config.dit), path, mx.float32, [(one, 1.0)])
    for model in (resident, streamed):
        merge(model, [(one, 1.0)])
    assert np.array_equal(velocity(resident), velocity(streamed))
    assert relative_error(velocity(resident), plain) > 1e-2


@pytest.mark.parametrize("bits", [4, 8])
def test_a_lora_on_quantized_vace_blocks_is_the_sum_after_dequantizing(
    checkpoints: Path, tmp_path: Path, bits: int
) -> None:
    options = convert.Options(quantization=Quantization(bits=bits, group_size=32))
    source, target = detect(checkpoints / TOPIC), tmp_path / "model"
    config = convert.convert(source, target, "0" * 32, options, silent)
    model = load_network(DiT(config.dit), target / "model.safetensors", mx.float32)
    twin = plain_twin(model)
    loras = [(one, 0.7) for one in matches(twin, every_kind(tmp_path))]
    merge(model, loras)
    merge(twin, loras)
    modules = dict(twin.named_modules())
    kept = [
        relative_error(layer.matrix(), modules[name].weight)
        for name, layer in model.named_modules()
        if isinstance(layer, QuantizedLinear)
    ]
    assert len(kept) > 50
    assert max(kept) < 1e-6
    assert relative_error(velocity(model), velocity(twin)) < 1e-5


def test_keys_of_vace_are_named_where_there_are_no_such_blocks(
    checkpoints: Path, tmp_path: Path
) -> None:
    model = network(checkpoints, "wan21-t2v")
    path = write(tmp_path, pair("vace_blocks.0.before_proj") | pair("blocks.0.self_attn.q"))
    (one,) = matches(model, path)
    assert list(one.ignored) == [NO_VACE]
    assert one.modules == 1
    with pytest.raises(CheckpointError, match=r"changes only VACE blocks \(vace_blocks.0.*lacks"):
        matches(model, write(tmp_path, pair("vace_blocks.0.before_proj")))


def test_a_lora_counts_vace_layers_by_kind(tmp_path: Path) -> None:
    tensors = pair("vace_blocks.0.self_attn.q") | pair("vace_blocks.7.self_attn.q")
    lora = read_lora(write(tmp_path, tensors))
    assert lora.kinds() == {"vace_blocks.self_attn.q": 2}
    assert (lora.width, lora.layers) == (64, 0)
