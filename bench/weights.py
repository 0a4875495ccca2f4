"""Shared parts of the programs: random models, timing, and rows of output.

Weights are normal with fan-in scale, so outputs have about the size of inputs. Quantized blocks
all use the codes of one block. Writing a file takes the memory of one tensor and does not flush,
so that the file is in the page cache afterwards.
"""

import json
import os
import re
import statistics
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import xxhash

from wanpipe.backend.device import describe
from wanpipe.checkpoints.rename import RenameRule, match_rules
from wanpipe.checkpoints.tensors import TensorInfo
from wanpipe.models.config import Quantization
from wanpipe.weights.load import FLOAT32_NAMES, PACKED_DTYPE, parameter_shapes, with_quantized
from wanpipe.weights.quantize import MATRICES, quantize, quantized_specs
from wanpipe.weights.write import TensorSpec, WrittenFile, encode_header, sort_specs

READ = 1 << 24  # bytes per read
DTYPES = {"F32": mx.float32, "BF16": mx.bfloat16, PACKED_DTYPE: mx.uint32}
Network = TypeVar("Network", bound=nn.Module)


class Random:
    """Draws the tensors of a converted `network`, quantized if `spec` is given.

    `rules` say which tensors stay float32, and `dtype` is the format of the others. `gains` scale
    single tensors.
    """

    def __init__(
        self,
        network: nn.Module,
        rules: Sequence[RenameRule],
        spec: Quantization | None = None,
        dtype: str = "BF16",
        gains: Mapping[str, float] | None = None,
    ) -> None:
        shapes: Any = parameter_shapes(network)
        ours = [
            RenameRule(rule.target, rule.target, keep_float32=rule.keep_float32)
            for rule in rules
            if rule.target
        ]
        self.full = [
            name for name, rule, _ in match_rules(shapes, ours) if rule and rule.keep_float32
        ]
        plain = sort_specs(
            TensorSpec(name, "F32" if name in set(self.full) else dtype, shape)
            for name, shape in shapes.items()
        )
        self.parameters = sum(prod(one.shape) for one in plain)
        self.quantization, self.gains = spec, gains or {}
        self.specs = quantized_specs(plain, spec) if spec else plain
        self._widths = {one.name: one.shape for one in plain}
        assert self.gains.keys() <= self._widths.keys(), self.gains
        self._codes: dict[str, tuple[np.ndarray, ...]] = {}  # codes of one block's matrices

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of the file."""
        return {FLOAT32_NAMES: " ".join(self.full)}

    @property
    def bytes(self) -> int:
        """Size of the file in bytes."""
        return len(encode_header(self.specs, self.metadata)) + sum(one.nbytes for one in self.specs)

    def draw(self, spec: TensorSpec) -> mx.array:
        """Draw a tensor in the format of the file."""
        stem, _, word = spec.name.rpartition(".")
        if self.quantization and MATRICES.fullmatch(f"{stem}.weight") and word != "bias":
            part = ("weight", "scales", "biases").index(word)
            array = mx.array(self._quantized(f"{stem}.weight")[part])
            drawn = array if part == 0 else array.view(mx.bfloat16)
        else:
            mean, deviation = scale(spec.name, spec.shape)
            normal = mx.random.normal(spec.shape) * deviation + mean
            drawn = (normal * self.gains.get(spec.name, 1.0)).astype(DTYPES[spec.dtype])
        mx.eval(drawn)
        assert drawn.shape == spec.shape, (spec, drawn.shape)
        return drawn

    def _quantized(self, name: str) -> tuple[np.ndarray, ...]:
        kind = re.sub(r"^(vace_)?blocks\.\d+\.", "", name)
        if kind not in self._codes:
            rows = np.array(mx.random.normal(self._widths[name])) * self._widths[name][1] ** -0.5
            assert self.quantization is not None
            self._codes[kind] = quantize(rows.astype(np.float32), self.quantization, "BF16", name)
        return self._codes[kind]

    def fill(self, network: Network, dtype: mx.Dtype) -> Network:
        """Load these tensors into a network that computes in `dtype`."""
        stored = {one.name: TensorInfo(one.shape, one.dtype, one.nbytes) for one in self.specs}
        with_quantized(network, stored)
        assert parameter_shapes(network).keys() == stored.keys()
        full = {*self.full, *(one.name for one in self.specs if one.dtype == PACKED_DTYPE)}
        for one in self.specs:
            drawn = self.draw(one)
            weight = drawn if one.name in full else drawn.astype(dtype)
            network.load_weights([(one.name, weight)], strict=False)
            mx.eval(weight)
        return network

    def write(self, path: Path) -> WrittenFile:
        """Write the file one tensor at a time."""
        written = write_file(path, self.specs, map(self.draw, self.specs), self.metadata)
        assert written.bytes == self.bytes
        return written


def write_file(
    path: Path,
    specs: Sequence[TensorSpec],
    tensors: Iterable[mx.array],
    metadata: dict[str, str] | None = None,
) -> WrittenFile:
    """Write the tensors of `specs`, in this order."""
    state, size = xxhash.xxh3_128(), 0
    with path.open("wb") as file:
        for data in chain([encode_header(specs, metadata or {})], map(contents, tensors)):
            state.update(data)
            file.write(data)
            size += len(data)
    return WrittenFile(state.hexdigest(), size)


def contents(tensor: mx.array) -> Any:
    """Return the numbers of a tensor as bytes."""
    plain = tensor.view(mx.uint16) if tensor.dtype == mx.bfloat16 else tensor
    return np.array(plain).reshape(-1).view(np.uint8).data


def scale(name: str, shape: Sequence[int]) -> tuple[float, float]:
    """Return the mean and the standard deviation of a tensor."""
    stem, _, word = name.rpartition(".")
    if word == "gamma" or (word == "weight" and "norm" in stem.rpartition(".")[2]):
        return 1.0, 0.05
    if word == "bias":
        return 0.0, 0.02
    if "token_embedding" in name:
        return 0.0, 1.0
    fan = shape[-1] if word == "modulation" else prod(shape[1:])
    return 0.0, max(fan, 1) ** -0.5


@dataclass(frozen=True)
class Timing:
    """Median and shortest time of several runs in seconds, and their highest peak in bytes."""

    seconds: float
    shortest: float
    peak: int


def measure(run: Callable[[], object], repeats: int = 3, warm: int = 2) -> Timing:
    """Time `run`, which evaluates its results, after `warm` untimed runs."""
    for _ in range(warm):
        run()
    seconds, peak = [], 0
    for _ in range(repeats):
        mx.synchronize()
        mx.reset_peak_memory()
        start = time.perf_counter()
        run()
        mx.synchronize()
        seconds.append(time.perf_counter() - start)
        peak = max(peak, mx.get_peak_memory())
    return Timing(statistics.median(seconds), min(seconds), peak)


def read_plainly(path: Path) -> float:
    """Return the seconds it takes to read a file sequentially into one buffer."""
    buffer = bytearray(READ)
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - start


def relative(ours: np.ndarray, reference: np.ndarray) -> float:
    """Return the relative L2 error, computed in float64."""
    a, b = (np.asarray(one, dtype=np.float64) for one in (ours, reference))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


class Rows:
    """Prints one result per line, as text or as JSON."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def print(self, subject: str, **values: Any) -> None:
        """Print one result."""
        if self.as_json:
            line = json.dumps({"subject": subject, **values}, ensure_ascii=False)
        else:
            line = f"{subject}: " + ", ".join(f"{k} {formatted(v)}" for k, v in values.items())
        print(line, flush=True)

    def print_machine(self) -> None:
        """Print the device and the versions."""
        batch = os.environ.get("MLX_MAX_MB_PER_BUFFER", "default")
        self.print("machine", device=describe(), mlx=mx.__version__, mb_per_buffer=batch)


def formatted(value: Any) -> str:
    """Format a value, with four digits of a float."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def parser(description: str | None) -> ArgumentParser:
    """Return a parser with the options that the programs share."""
    result = ArgumentParser(description=(description or "").partition("\n")[0])
    result.add_argument("--small", action="store_true", help="Use tiny sizes.")
    result.add_argument("--json", action="store_true", help="Print one JSON object per line.")
    result.add_argument("--repeats", type=int, default=3, help="Timed runs per measurement.")
    return result
