"""Converts the tiny official checkpoints for tests of the networks, as users do."""

import gc
from collections.abc import Callable
from functools import cache
from pathlib import Path

import mlx.core as mx
import pytest

from wanpipe.backend.device import is_gpu
from wanpipe.checkpoints.detect import detect
from wanpipe.models.config import ModelConfig, read_model_config
from wanpipe.weights.convert import Options, convert

# relative error; fixtures are exact to 2e-5, and a GPU adds in a different order
TOLERANCE = 2e-5 if is_gpu() else 5e-6
on_the_cpu = pytest.mark.skipif(is_gpu(), reason="counts what MLX allocates on the CPU")


def allocated(work: Callable[[], object]) -> int:
    """Return the peak bytes that MLX allocates during `work`, above those allocated before."""
    mx.synchronize()
    gc.collect()  # otherwise garbage of earlier tests would be freed during `work`
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    work()
    return mx.get_peak_memory() - before


@cache
def converted(checkpoints: Path, family: str, dtype: str = "float32") -> tuple[Path, ModelConfig]:
    """Convert a checkpoint once per session, and return the model's directory and config."""
    directory = checkpoints.parent / f"{checkpoints.name}-models" / f"{family}-{dtype}"
    checkpoint = detect(checkpoints / family)
    convert(checkpoint, directory, "0" * 32, Options(dtype=dtype), lambda *_: None)
    return directory, read_model_config(directory)
