"""Random checkpoints have the official names and shapes, and convert."""

import math
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import mlx.core as mx
import pytest

from bench import layouts, make_checkpoint
from tests.checkpoints.foreign import converted

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_tensor_tables_match_the_official_checkpoints() -> None:
    def size(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[int, int]:
        table = dict(tensors)
        return len(table), sum(map(math.prod, table.values()))

    presets = make_checkpoint.PRESETS
    dits = {name: size(make_checkpoint.dit_tensors(one)) for name, one in presets.items()}
    assert dits == {
        "tiny": (69, 163_584),
        "1.3b": (825, 1_418_996_800),
        "14b": (1095, 14_288_491_584),
        "5b": (825, 4_999_787_712),
        "vace-1.3b": (1264, 2_153_972_032),
        "vace-14b": (1331, 17_337_592_896),
        "a14b-expert": (1095, 14_288_491_584),
    }
    assert size(make_checkpoint.t5_tensors(presets["14b"])) == (242, 5_680_910_336)
    assert size(layouts.vae("2.1", 96, 96, 16)) == (194, 126_892_531)
    assert size(layouts.vae("2.2", 160, 256, 48)) == (196, 704_688_668)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_random_checkpoint_converts(tmp_path: Path, dtype: str) -> None:
    source = tmp_path / "source"
    command = [sys.executable, "-m", "bench.make_checkpoint", "tiny", source, "--dtype", dtype]
    subprocess.run(command, check=True, cwd=ROOT)
    converted(source, tmp_path / "model")
    weights = mx.load(str(tmp_path / "model" / "model.safetensors"))
    for name, value in weights.items():
        assert mx.isfinite(value).all() and mx.std(value.astype(mx.float32)) > 0, name
    assert 1e-2 < mx.std(weights["blocks.1.ffn.fc1.weight"].astype(mx.float32)) < 1
