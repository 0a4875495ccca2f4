"""Measures quantization: file sizes, errors, and the time of quantized products.

    python -m bench.quantize --model DIR             a converted, unquantized model
    python -m bench.quantize --dim 512 --layers 8    random weights of a chosen size
    python -m bench.quantize --sizes                 file sizes of the real models

Prints the error of the weights and of one forward, and the number of tokens from which dequantizing
is faster than the quantized product.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from bench.sizes import T2V_1_3B, T2V_14B, T5_XXL, TI2V_5B
from wanpipe.backend.device import compute_dtype, describe, mlx_dtype
from wanpipe.checkpoints.dtypes import Array, recast
from wanpipe.checkpoints.read import TensorFile, open_tensors
from wanpipe.models.config import DiTConfig, Quantization, T5Config, read_model_config
from wanpipe.models.dit import DiT
from wanpipe.models.layers import linear
from wanpipe.models.umt5 import T5
from wanpipe.weights.load import FLOAT32_NAMES, load_network, parameter_shapes
from wanpipe.weights.quantize import BITS, GROUP_SIZES, MATRICES, Quantizer, quantized_specs
from wanpipe.weights.write import TensorSpec, encode_header, write_tensors

FRAMES, STEP = 5, 500.0
REAL: dict[str, DiTConfig | T5Config] = {
    "Wan2.1 T2V 1.3B": T2V_1_3B,
    "Wan2.2 TI2V-5B": TI2V_5B,
    "14B, or one A14B expert": T2V_14B,
    "umT5-XXL": T5_XXL,
}
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 512)  # tokens


def random_model(path: Path, config: DiTConfig, seed: int) -> None:
    """Write a transformer with random weights like a converted bfloat16 model."""
    mx.random.seed(seed)
    weights = dict(tree_flatten(DiT(config).parameters()))
    for name, value in weights.items():
        if value.ndim == 2:  # nearly normal, like trained weights; MLX initializes uniformly
            weights[name] = mx.random.normal(value.shape) * value.shape[1] ** -0.5
    full = [name for name in weights if not narrow(name)]
    for name in weights.keys() - set(full):
        weights[name] = weights[name].astype(mx.bfloat16)
    mx.save_safetensors(str(path), weights, {FLOAT32_NAMES: " ".join(full)})


def narrow(name: str) -> bool:
    """Return whether a converted model stores this parameter in its dtype, not in float32."""
    matrix = name.removesuffix("bias") + "weight" if name.endswith("bias") else name
    return bool(MATRICES.fullmatch(matrix)) or name.startswith(("text_emb", "token_emb"))


def quantize_file(source: Path, target: Path, spec: Quantization) -> dict[str, float]:
    """Quantize a transformer's file and return the relative error of each kind of layer."""
    with open_tensors(source) as file:
        specs = [TensorSpec(name, info.dtype, info.shape) for name, info in file.tensors.items()]
        quantizer = Quantizer(spec, specs)
        blocks = partial(quantizer.blocks, plain=partial(read, file))
        write_tensors(target, quantized_specs(specs, spec), blocks, file.metadata)
    return quantizer.errors


def read(file: TensorFile, spec: TensorSpec) -> Iterator[Array]:
    """Read a tensor block by block in the format of its spec."""
    for block in file.blocks(spec.name):
        yield recast(block, file.tensors[spec.name].dtype, spec.dtype, spec.name)


def forward(path: Path, config: DiTConfig, side: int) -> tuple[mx.array, float, float]:
    """Run a forward on a square latent; return the result, the seconds and the peak in bytes."""
    model = load_network(DiT(config), path, mlx_dtype(compute_dtype("bfloat16")))
    mx.random.seed(1)
    x = mx.random.normal((config.in_dim, FRAMES, side, side))
    clip = (
        None if config.clip_dim is None else mx.random.normal((config.clip_tokens, config.clip_dim))
    )
    condition = model.condition(mx.random.normal((40, config.text_dim)), clip)
    mx.eval(model(x, [STEP], [condition]))  # loads the weights
    mx.reset_peak_memory()
    start = time.perf_counter()
    [out] = model(x, [STEP], [condition])
    mx.eval(out)
    return out, time.perf_counter() - start, mx.get_peak_memory()


def relative(ours: mx.array, reference: mx.array) -> float:
    """Return the relative L2 error."""
    a, b = (np.array(one, dtype=np.float64) for one in (ours, reference))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def compare(source: Path, config: DiTConfig, side: int) -> None:
    """Print the table of sizes and errors."""
    plain, seconds, peak = forward(source, config, side)
    size = source.stat().st_size
    print("| bits, group | file | of bfloat16 | weights | one forward | time | peak memory |")
    print("|---|---|---|---|---|---|---|")
    row = f"{size / 1e6:.1f} MB | 100 % | – | – | {seconds:.2f} s | {peak / 1e6:.0f} MB"
    print(f"| bfloat16 | {row} |")
    for bits in BITS[::-1]:
        for group_size in GROUP_SIZES:
            if config.dim % group_size or config.ffn_dim % group_size:
                continue
            target = source.with_name("quantized.safetensors")
            errors = quantize_file(source, target, Quantization(bits=bits, group_size=group_size))
            out, seconds, peak = forward(target, config, side)
            fewer = target.stat().st_size
            print(
                f"| {bits}, {group_size} | {fewer / 1e6:.1f} MB | {100 * fewer / size:.0f} % "
                f"| {100 * max(errors.values()):.2f} % | {100 * relative(out, plain):.2f} % "
                f"| {seconds:.2f} s | {peak / 1e6:.0f} MB |"
            )


def sizes() -> None:
    """Print the file sizes of the real models, from their shapes."""
    formats = [(bits, group) for bits in BITS[::-1] for group in GROUP_SIZES]
    print("| file | bfloat16 |", " | ".join(f"{bits}, {group}" for bits, group in formats), "|")
    print("|---|---|" + "---|" * len(formats))
    for name, config in REAL.items():
        shapes = parameter_shapes(DiT(config) if isinstance(config, DiTConfig) else T5(config))
        plain = [
            TensorSpec(key, "BF16" if narrow(key) else "F32", shape)
            for key, shape in shapes.items()
        ]
        files = [
            quantized_specs(plain, Quantization(bits=bits, group_size=group))
            for bits, group in formats
        ]
        row = [f"{file_size(specs) / 1e9:.2f} GB" for specs in (plain, *files)]
        print(f"| {name} |", " | ".join(row), "|")


def file_size(specs: Sequence[TensorSpec]) -> int:
    """Return the size of a file with these tensors in bytes."""
    full = " ".join(one.name for one in specs if one.dtype == "F32")
    return len(encode_header(specs, {FLOAT32_NAMES: full})) + sum(one.nbytes for one in specs)


def switch(width: int, out: int, bits: int) -> None:
    """Print the time of a quantized product and of a dequantized one, by tokens."""
    dtype = mlx_dtype(compute_dtype("bfloat16"))
    quantized = mx.quantize(mx.random.normal((out, width)).astype(dtype), 64, bits)
    print(f"\n| tokens, {bits} bits, {width} to {out} | quantized product | dequantized |")
    print("|---|---|---|")
    for tokens in SIZES:
        x = mx.random.normal((tokens, width)).astype(dtype)
        mx.eval(x, quantized)
        product = best(lambda x=x: mx.quantized_matmul(x, *quantized, group_size=64, bits=bits))
        dense = best(lambda x=x: linear(x, mx.dequantize(*quantized, 64, bits), None))
        print(f"| {tokens} | {1e3 * product:.2f} ms | {1e3 * dense:.2f} ms |")


def best(work: Callable[[], mx.array], times: int = 4) -> float:
    """Return the shortest time of several runs, in seconds."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        mx.eval(work())
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the options, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, help="A converted, unquantized model.")
    for name, value in (("dim", 512), ("ffn-dim", 2048), ("heads", 4), ("layers", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--side", type=int, default=16, help="Side of the latent, which has 5 frames."
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--sizes", action="store_true", help="Print only the file sizes of the real models."
    )
    chosen = parser.parse_args(arguments)
    if chosen.sizes:
        sizes()
        return
    config = DiTConfig(
        dim=chosen.dim,
        ffn_dim=chosen.ffn_dim,
        heads=chosen.heads,
        layers=chosen.layers,
        in_dim=16,
        out_dim=16,
    )
    print(f"MLX {mx.__version__}, {describe()}\n")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.safetensors"
        if chosen.model:
            model = read_model_config(chosen.model)
            config = model.dit
            source.symlink_to((chosen.model / f"{model.experts[-1]}.safetensors").resolve())
        else:
            random_model(source, config, chosen.seed)
        print(f"width {config.dim}, feed forward {config.ffn_dim}, {config.layers} layers\n")
        compare(source, config, chosen.side)
    switch(1536, 8960, 4)  # the feed forward of 1.3B


if __name__ == "__main__":
    main()
