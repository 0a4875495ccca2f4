"""The text encoder against the official code, run block by block from a file."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import save_file

from tests.conftest import golden, relative_error
from tests.models.official import allocated, converted
from wanpipe.errors import CheckpointError
from wanpipe.models import umt5
from wanpipe.models.config import T5Config
from wanpipe.pipeline.encoders import text as text_encoder

TOLERANCE = 1e-5
WIDE = T5Config(vocab=1000, dim=256, attention_dim=256, ffn_dim=1024, heads=4, layers=10)


@pytest.fixture(scope="module")
def config(checkpoints: Path) -> T5Config:
    _, model = converted(checkpoints, "wan21-t2v")
    return model.t5


@pytest.fixture(scope="module")
def file(checkpoints: Path) -> Path:
    directory, model = converted(checkpoints, "wan21-t2v")
    return directory / model.components["t5_encoder"].file


@pytest.fixture(scope="module")
def ids() -> list[list[int]]:
    """Return the token ids of the golden prompts, without padding."""
    arrays = golden("wan21-t2v/tokenizer")
    return [
        row[:length].tolist()
        for row, length in zip(arrays["ids"], arrays["lengths"].tolist(), strict=True)
    ]


def test_embeddings_match_the_official_code(
    file: Path, config: T5Config, ids: list[list[int]]
) -> None:
    rows = text_encoder.encode(file, config, ids, mx.float32)
    reference = golden("wan21-t2v/t5")
    for index, ours in enumerate(rows[:11]):
        assert relative_error(ours, reference[f"embed_{index:02d}"]) < TOLERANCE
    assert rows[11].shape == (512, config.dim)
    assert relative_error(rows[11][:32], reference["embed_11_first32"]) < TOLERANCE
    assert relative_error(rows[11][-32:], reference["embed_11_last32"]) < TOLERANCE


def test_encoding_several_prompts_equals_encoding_each(
    file: Path, config: T5Config, ids: list[list[int]]
) -> None:
    together = text_encoder.encode(file, config, ids[:3], mx.float32)
    for prompt, rows in zip(ids[:3], together, strict=True):
        (alone,) = text_encoder.encode(file, config, [prompt], mx.float32)
        assert np.array_equal(np.array(alone), np.array(rows))


def test_block_by_block_equals_the_whole_network(
    file: Path, config: T5Config, ids: list[list[int]]
) -> None:
    network = umt5.T5(config)
    network.load_weights(str(file))
    (rows,) = text_encoder.encode(file, config, ids[:1], mx.float32)
    assert np.array_equal(np.array(network(ids[0])), np.array(rows))


def test_bfloat16_products_keep_a_float32_stream(
    checkpoints: Path, config: T5Config, ids: list[list[int]]
) -> None:
    directory, model = converted(checkpoints, "wan21-t2v", "bfloat16")
    file = directory / model.components["t5_encoder"].file
    (rows,) = text_encoder.encode(file, config, ids[:1], mx.bfloat16)
    assert rows.dtype == mx.float32
    assert relative_error(rows, golden("wan21-t2v/t5")["embed_00"]) < 2e-2


def test_buckets_match_the_official_code() -> None:
    # key minus query: -200 to 200
    assert np.array_equal(umt5.buckets(201, 32), golden("wan21-t2v/t5")["rel_bucket"])


@pytest.mark.parametrize("length", [1, 2, 40])
def test_the_position_bias_follows_the_distance_from_query_to_key(length: int) -> None:
    table = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    got = umt5.position_bias(mx.array(table), umt5.one_hot_buckets(length, 32))
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    rows = umt5.buckets(length, 32)[distance + length - 1]
    assert np.array_equal(np.array(got), table[rows].transpose(2, 0, 1))


def test_progress_is_reported_for_each_block(file: Path, config: T5Config) -> None:
    calls: list[None] = []
    text_encoder.encode(file, config, [[1]], mx.float32, lambda: calls.append(None))
    assert len(calls) == config.layers


def test_all_weights_are_never_in_memory_together(tmp_path: Path) -> None:
    file = tmp_path / "t5_encoder.safetensors"
    weights = tree_flatten(umt5.T5(WIDE).parameters())
    save_file({name: np.array(array) for name, array in weights}, file)
    del weights
    peak = allocated(lambda: mx.eval(text_encoder.encode(file, WIDE, [[5, 6, 7, 1]], mx.float32)))
    assert peak < file.stat().st_size / 3


def test_a_token_id_outside_the_table_is_refused(file: Path, config: T5Config) -> None:
    with pytest.raises(CheckpointError, match="has rows 0 to 400, asked for 401"):
        text_encoder.encode(file, config, [[401, 1]], mx.float32)


def test_a_file_that_lacks_a_block_is_refused(file: Path, config: T5Config, tmp_path: Path) -> None:
    weights = mx.load(str(file))
    short = {name: np.array(value) for name, value in weights.items() if "blocks.2." not in name}
    save_file(short, tmp_path / "short.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks blocks\.2\."):
        text_encoder.encode(tmp_path / "short.safetensors", config, [[1]], mx.float32)
