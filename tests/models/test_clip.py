"""CLIP's vision tower against the official code, from the image file to the tokens."""

from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from tests.conftest import DATA, golden, relative_error
from tests.models.official import converted
from wanpipe.backend.device import mlx_dtype
from wanpipe.media.image import clip_pixels, open_image
from wanpipe.models.clip import CLIP
from wanpipe.weights.load import load_network


def network(checkpoints: Path, dtype: str) -> CLIP:
    directory, model = converted(checkpoints, "wan21-i2v", dtype)
    component = model.components["clip"]
    config = component.config
    return load_network(CLIP(config), directory / component.file, mlx_dtype(dtype))


@pytest.mark.parametrize(
    ("topic", "index", "image"),
    [("wan21-i2v", 0, "image"), ("wan21-flf2v", 0, "first"), ("wan21-flf2v", 1, "last")],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_tokens_match_the_official_code(
    checkpoints: Path, dtype: str, tolerance: float, topic: str, index: int, image: str
) -> None:
    pixels = clip_pixels(open_image(DATA / "expected" / topic / f"{image}.png"))
    tokens = network(checkpoints, dtype)(mx.array(pixels))
    assert tokens.dtype == mx.float32
    assert relative_error(tokens, golden(f"{topic}/clip")["clip_fea"][index]) < tolerance


def test_the_last_block_and_the_final_norm_are_dropped(checkpoints: Path) -> None:
    model = network(checkpoints, "float32")
    names = [name for name, _ in tree_flatten(model.parameters())]
    assert len(model.blocks) == model.config.layers - 1
    assert not [name for name in names if "post_norm" in name or "head" in name]
