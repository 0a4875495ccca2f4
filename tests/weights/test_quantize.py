"""Quantized matrices: MLX's format, their error, how they load, and LoRAs on top of them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from safetensors.mlx import load_file, save_file

from tests.conftest import golden, relative_error
from tests.models.official import converted
from tests.weights.test_lora import files as files  # a fixture
from tests.weights.test_lora import matches, network, pair, write
from wanpipe.checkpoints.detect import detect
from wanpipe.checkpoints.dtypes import widen
from wanpipe.checkpoints.read import open_tensors
from wanpipe.errors import CheckpointError, UsageError
from wanpipe.models.config import ModelConfig, Quantization, read_model_config
from wanpipe.models.dit import DiT
from wanpipe.models.layers import QuantizedLinear
from wanpipe.pipeline.encoders import text as text_encoder
from wanpipe.weights.convert import Options, convert, requantize
from wanpipe.weights.load import load_network
from wanpipe.weights.merge import merge
from wanpipe.weights.quantize import MATRICES, dequantize, quantize, quantized_specs
from wanpipe.weights.write import TensorSpec

EIGHT, FOUR = (Quantization(bits=bits, group_size=64) for bits in (8, 4))
ROWS = np.random.default_rng(0).standard_normal((48, 256), dtype=np.float32) / 32

Made = Callable[..., tuple[Path, ModelConfig]]


def silent(name: str, done: int, total: int) -> None:
    assert 0 <= done <= total


@pytest.fixture(scope="session")
def made(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Converts a tiny checkpoint quantized, once per session for each way."""

    @cache
    def convert_quantized(
        family: str,
        quantization: Quantization | None = EIGHT,
        text_encoder: Quantization | None = None,
        dtype: str = "float32",
    ) -> tuple[Path, ModelConfig]:
        directory = tmp_path_factory.mktemp("quantized")
        options = Options(dtype=dtype, quantization=quantization, text_encoder=text_encoder)
        checkpoint = detect(checkpoints / family)
        return directory, convert(checkpoint, directory, "0" * 32, options, silent)

    return convert_quantized


def loaded(made: Made, spec: Quantization, dtype: mx.Dtype = mx.float32) -> DiT:
    directory, config = made("wan21-t2v", spec)
    return load_network(DiT(config.dit), directory / "model.safetensors", dtype)


def forward(model: DiT, name: str) -> mx.array:
    arrays = golden("wan21-t2v/dit")
    condition = model.condition(mx.array(arrays[f"{name}_context"]))
    [out] = model(mx.array(arrays[f"{name}_x"]), arrays[f"{name}_t"].tolist(), [condition])
    return out


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_those_of_mlx(bits: int, group_size: int) -> None:
    spec = Quantization(bits=bits, group_size=group_size)
    ours = quantize(ROWS, spec, "F32", "rows")
    theirs = mx.quantize(mx.array(ROWS), group_size, bits)
    for one, other in zip(ours, theirs, strict=True):
        assert np.array_equal(one, np.array(other))


@pytest.mark.parametrize(("dtype", "cost"), [("BF16", 1.05), ("F16", 1.01)])
@pytest.mark.parametrize("spec", [EIGHT, FOUR])
def test_narrow_scales_cost_next_to_nothing(spec: Quantization, dtype: str, cost: float) -> None:
    exact, narrow = (
        relative_error(dequantize(*quantize(ROWS, spec, each, "rows"), spec, each), ROWS)
        for each in ("F32", dtype)
    )
    assert narrow < cost * exact
    codes, scales, biases = quantize(ROWS, spec, dtype, "rows")
    step = np.abs(widen(scales, dtype, "scales")).repeat(64, axis=1)
    lost = np.abs(dequantize(codes, scales, biases, spec, dtype) - ROWS)
    assert (lost <= 0.5 * step + 1e-6).mean() > 0.99  # but for ends that a rounded scale cuts


def test_not_a_number_is_refused() -> None:
    broken = ROWS.copy()
    broken[3, 5] = np.nan
    with pytest.raises(CheckpointError, match="rows has NaN or infinite values"):
        quantize(broken, EIGHT, "BF16", "rows")


def test_scales_follow_their_matrix_aligned() -> None:
    names = ("blocks.0.ffn.fc1.weight", "blocks.0.norm3.weight", "head.linear.weight")
    specs = [
        TensorSpec(names[0], "BF16", (96, 64)),
        TensorSpec(names[1], "F32", (64,)),
        TensorSpec(names[2], "BF16", (16, 64)),
    ]
    result = quantized_specs(specs, FOUR)
    assert result == [
        TensorSpec(names[0], "U32", (96, 8)),
        TensorSpec("blocks.0.ffn.fc1.scales", "BF16", (96, 1)),
        TensorSpec("blocks.0.ffn.fc1.biases", "BF16", (96, 1)),
        *specs[1:],
    ]
    offset = 0
    for one in result:
        assert offset % (2 if one.dtype == "BF16" else 4) == 0
        offset += one.nbytes


@pytest.mark.parametrize("family", ["wan21-t2v", "wan21-i2v", "wan21-flf2v", "wan22-t2v-a14b"])
def test_matrices_of_blocks_are_quantized_and_nothing_else(made: Made, family: str) -> None:
    spec = Quantization(bits=8, group_size=32)
    directory, config = made(family, spec, spec)
    assert config == read_model_config(directory)
    assert config.quantization == spec
    image = ["k_img", "v_img"] if config.dit.clip_dim else []
    cross = ["q", "k", "v", "o", *image]
    kinds = [*(f"self_attn.{part}" for part in "qkvo"), "ffn.fc1", "ffn.fc2"]
    kinds += [f"cross_attn.{part}" for part in cross]
    for name in config.experts:
        expected = [f"blocks.{i}.{kind}" for i in range(config.dit.layers) for kind in kinds]
        assert quantized_modules(directory / f"{name}.safetensors") == sorted(expected)
    kinds = [*(f"attn.{part}" for part in "qkvo"), "ffn.gate", "ffn.fc1", "ffn.fc2"]
    expected = [f"blocks.{index}.{kind}" for index in range(3) for kind in kinds]
    assert quantized_modules(directory / "t5_encoder.safetensors") == sorted(expected)
    assert not quantized_modules(directory / "vae.safetensors")


def quantized_modules(path: Path) -> list[str]:
    with open_tensors(path) as file:
        names = [name for name, info in file.tensors.items() if info.dtype == "U32"]
        for name in names:
            assert {f"{name[:-6]}scales", f"{name[:-6]}biases"} <= set(file.tensors)
        assert sum(name.endswith((".scales", ".biases")) for name in file.tensors) == 2 * len(names)
    return sorted(name.removesuffix(".weight") for name in names)


def test_other_components_and_counts_stay(checkpoints: Path, made: Made) -> None:
    _, plain = converted(checkpoints, "wan21-t2v")
    _, fewer = made("wan21-t2v")
    for name, component in plain.components.items():
        assert fewer.components[name].parameters == component.parameters
        assert (fewer.components[name].hash == component.hash) == (name != "model")
        assert fewer.components[name].config == component.config


@pytest.mark.parametrize("name", "abcd")
@pytest.mark.parametrize(
    ("bits", "group_size", "limit"), [(8, 32, 0.02), (8, 64, 0.02), (4, 32, 0.3), (4, 64, 0.3)]
)
def test_a_forward_stays_near_the_unquantized_one(
    checkpoints: Path, made: Made, bits: int, group_size: int, limit: float, name: str
) -> None:
    spec = Quantization(bits=bits, group_size=group_size)
    error = relative_error(forward(loaded(made, spec), name), forward(network(checkpoints), name))
    print(f"{bits} bits, groups of {group_size}, forward {name}: {100 * error:.2f} %")
    assert limit / 100 < error < limit


def test_the_text_encoder_stays_near_the_unquantized_one(checkpoints: Path, made: Made) -> None:
    arrays = golden("wan21-t2v/tokenizer")
    pairs = zip(arrays["ids"], arrays["lengths"].tolist(), strict=True)
    ids = [row[:length].tolist() for row, length in pairs][:5]
    spec = Quantization(bits=8, group_size=32)
    rows = []
    for directory, config in (
        converted(checkpoints, "wan21-t2v"),
        made("wan21-t2v", None, spec),
    ):
        path = directory / "t5_encoder.safetensors"
        rows.append(text_encoder.encode(path, config.t5, ids, mx.float32))
    for plain, fewer in zip(*rows, strict=True):
        error = relative_error(fewer, plain)
        print(f"8 bits, groups of 32, T5, {len(plain)} tokens: {100 * error:.2f} %")
        assert 1e-4 < error < 0.02


def test_a_quantized_model_computes_in_the_dtype_asked_for(made: Made) -> None:
    model = loaded(made, EIGHT, mx.bfloat16)
    layer = model.blocks[0].ffn.fc1
    assert isinstance(layer, QuantizedLinear)
    assert (layer.weight.dtype, layer.scales.dtype) == (mx.uint32, mx.bfloat16)
    assert layer.matrix().dtype == mx.bfloat16
    for tokens in (1, 100):
        assert layer(mx.zeros((tokens, 64), mx.bfloat16)).dtype == mx.bfloat16


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("blocks.0.ffn.fc1.biases", None, "missing tensors: blocks.0.ffn.fc1.biases"),
        ("blocks.0.ffn.fc1.scales", None, "unknown tensors: blocks.0.ffn.fc1.biases"),
        ("blocks.0.ffn.fc1.scales", mx.zeros((128, 3)), "unknown tensors"),
        ("blocks.0.ffn.fc1.biases", mx.zeros((128, 3)), "wrong shapes: blocks.0.ffn.fc1.biases"),
        ("blocks.0.ffn.fc1.weight", mx.zeros((128, 7), mx.uint32), "unknown tensors"),
        ("blocks.0.ffn.fc1.weight", mx.zeros((128, 64)), "unknown tensors"),
        ("head.linear.scales", mx.zeros((64, 1)), "unknown tensors: head.linear.scales"),
    ],
)
def test_a_file_with_half_a_quantized_layer_is_refused(
    made: Made, tmp_path: Path, name: str, change: mx.array | None, says: str
) -> None:
    directory, config = made("wan21-t2v", EIGHT)
    tensors = load_file(directory / "model.safetensors")
    tensors.pop(name, None)
    if change is not None:
        tensors[name] = change
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=says):
        load_network(DiT(config.dit), tmp_path / "model.safetensors", mx.float32)


def plain_twin(model: DiT) -> DiT:
    """The same network with every quantized matrix dequantized once and for all."""
    twin = DiT(model.config)
    weights = {
        f"{path}.weight": module.matrix()
        for path, module in model.named_modules()
        if isinstance(module, QuantizedLinear)
    }
    parameters = dict(nn.utils.tree_flatten(model.parameters()))
    for name in dict(nn.utils.tree_flatten(twin.parameters())):
        weights.setdefault(name, parameters[name])
    twin.load_weights(list(weights.items()))
    return twin


@pytest.mark.parametrize("spec", [EIGHT, FOUR])
@pytest.mark.parametrize("name", ["a_lightning_down_up_alpha", "c2_lightx2v_diff_modulation"])
def test_a_lora_on_a_quantized_model_is_the_sum_after_dequantizing(
    made: Made, files: Path, spec: Quantization, name: str
) -> None:
    model = loaded(made, spec)
    twin = plain_twin(model)
    loras = [(one, 0.7) for one in matches(twin, files / f"{name}.safetensors")]
    merge(model, loras)
    merge(twin, loras)
    assert isinstance(model.blocks[0].ffn.fc1, QuantizedLinear)
    assert isinstance(twin.blocks[0].ffn.fc1, nn.Linear)
    for index, block in enumerate(model.blocks):
        for path, layer in block.named_modules():
            if isinstance(layer, QuantizedLinear):
                plain = dict(twin.blocks[index].named_modules())[path]
                assert mx.array_equal(layer.matrix(), plain.weight)
    assert np.array_equal(np.array(forward(model, "a")), np.array(forward(twin, "a")))


def test_a_lora_becomes_part_of_a_plain_matrix_where_that_is_smaller(
    made: Made, tmp_path: Path
) -> None:
    tensors = {
        "blocks.0.self_attn.q.diff": np.ones((64, 64), np.float32),
        **pair("blocks.0.self_attn.k", rank=2),
        **pair("blocks.0.self_attn.v", rank=40),
    }
    model = loaded(made, EIGHT)
    expected = model.blocks[0].self_attn.q.matrix() + 0.5
    merge(model, [(matches(plain_twin(model), write(tmp_path, tensors))[0], 0.5)])
    attention = model.blocks[0].self_attn
    assert mx.array_equal(attention.q.weight, expected)
    assert [type(getattr(attention, name)).__name__ for name in "qkvo"] == [
        "Linear",
        "QuantizedLinear",
        "Linear",
        "QuantizedLinear",
    ]
    assert attention.q.bias.shape == (64,)


def test_a_converted_model_is_quantized_as_its_checkpoint_would_be(
    checkpoints: Path, made: Made, tmp_path: Path
) -> None:
    directory, _ = converted(checkpoints, "wan21-t2v")
    _, direct = made("wan21-t2v", EIGHT)
    options = Options(dtype="float32", quantization=EIGHT)
    told: dict[str, float] = {}
    config = requantize(
        directory,
        tmp_path,
        "0" * 32,
        options,
        silent,
        lambda component, kind, error: told.update({f"{component} {kind}": error}),
    )
    assert config == direct  # hashes, bytes and all
    kinds = {
        found["kind"]
        for path in quantized_modules(tmp_path / "model.safetensors")
        if (found := MATRICES.fullmatch(f"{path}.weight"))
    }
    assert set(told) == {f"model {kind}" for kind in kinds}
    assert all(0.001 < error < 0.01 for error in told.values())


def test_a_quantized_model_gets_its_text_encoder_quantized_later(
    checkpoints: Path, made: Made, tmp_path: Path
) -> None:
    spec = Quantization(bits=8, group_size=32)
    directory, first = made("wan21-t2v", FOUR)
    options = Options(dtype="float32", text_encoder=spec)
    config = requantize(directory, tmp_path, "0" * 32, options, silent)
    _, direct = made("wan21-t2v", FOUR, spec)
    assert config == direct
    assert config.quantization == FOUR
    assert config.components["model"] == first.components["model"]


def test_quantizing_twice_is_refused(made: Made, tmp_path: Path) -> None:
    directory, _ = made("wan21-t2v", EIGHT)
    with pytest.raises(UsageError, match="quantized already"):
        requantize(directory, tmp_path / "twice", "0" * 32, Options(quantization=FOUR), silent)
    assert not (tmp_path / "twice").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"quantization": Quantization(bits=4, group_size=128)}, r"\(64, 128\), got 128; use 32 "),
        ({"text_encoder": Quantization(bits=4, group_size=64)}, r"\(64, 64, 160\), got 64; use 32"),
        ({"quantization": Quantization(bits=3, group_size=64)}, "bits must be 4 or 8, got 3"),
        ({"quantization": Quantization(bits=4, group_size=48)}, "group-size must be 32 or 64 or"),
    ],
)
def test_what_mlx_does_not_have_or_does_not_fit_is_refused(
    checkpoints: Path, tmp_path: Path, options: dict[str, Quantization], says: str
) -> None:
    checkpoint = detect(checkpoints / "wan21-t2v")
    with pytest.raises(UsageError, match=says):
        convert(checkpoint, tmp_path / "model", "0" * 32, Options(**options), silent)
    assert not (tmp_path / "model").exists()


def test_a_quantized_file_is_pinned(checkpoints: Path, tmp_path: Path) -> None:
    options = Options(quantization=FOUR)
    config = convert(detect(checkpoints / "wan21-t2v"), tmp_path, "0" * 32, options, silent)
    assert config.components["model"].hash == "b5ab14b4616c5fd235312d0b67e5e8c6"
