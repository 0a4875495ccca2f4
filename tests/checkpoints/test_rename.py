"""The rename engine: what it fills, and that it lists everything that does not fit at once."""

import numpy as np
import pytest

from wanpipe.checkpoints.rename import RenameRule, apply_transform, plan_renames, transformed_shape
from wanpipe.checkpoints.tensors import TensorInfo
from wanpipe.errors import CheckpointError

RULES = (
    RenameRule("stem.weight", "stem.weight", "patch", keep_float32=True),
    RenameRule("blocks.{i}.conv.{j}.{leaf}", "blocks.{i}.layers.{j}.{leaf}", "conv"),
    RenameRule("blocks.{i}.scale", "blocks.{i}.scale", "flatten", keep_float32=True),
    RenameRule("unused.{leaf}", None),
)


def info(*shape: int) -> TensorInfo:
    return TensorInfo(shape, "F32", 4 * int(np.prod(shape)))


SOURCES = {
    "stem.weight": info(8, 3, 1, 2, 2),
    "blocks.10.conv.0.weight": info(4, 2, 3, 3),
    "blocks.10.conv.0.bias": info(4),
    "blocks.10.scale": info(1, 6, 4),
    "unused.bias": info(9),
}
TARGETS = {
    "blocks.10.scale": (6, 4),
    "blocks.10.layers.0.bias": (4,),
    "blocks.10.layers.0.weight": (4, 3, 3, 2),
    "stem.weight": (8, 12),
}


def test_every_target_is_filled_in_the_order_of_the_network() -> None:
    renames = plan_renames(SOURCES, RULES, TARGETS, "file")
    assert [rename.target for rename in renames] == list(TARGETS)
    assert [rename.source for rename in renames] == [
        "blocks.10.scale",
        "blocks.10.conv.0.bias",
        "blocks.10.conv.0.weight",
        "stem.weight",
    ]
    assert [rename.keep_float32 for rename in renames] == [True, False, False, True]


def test_all_that_does_not_fit_is_listed_at_once() -> None:
    sources = {**SOURCES, "strange": info(1), "blocks.10.scale": info(1, 5, 4)}
    targets = {**TARGETS, "blocks.11.scale": (6, 4)}
    with pytest.raises(CheckpointError) as caught:
        plan_renames(sources, RULES, targets, "file")
    assert str(caught.value) == (
        "file does not fit: unknown tensors: strange; missing tensors: blocks.11.scale; "
        "wrong shapes: blocks.10.scale (5, 4) instead of (6, 4)"
    )


def test_long_lists_are_cut_and_counted() -> None:
    sources = {**SOURCES, **{f"strange{i}": info(1) for i in range(20)}}
    with pytest.raises(CheckpointError, match=r"strange5 and 14 more$"):
        plan_renames(sources, RULES, TARGETS, "file")


def test_a_tensor_that_a_row_knows_and_the_network_does_not_is_unknown() -> None:
    targets = {name: shape for name, shape in TARGETS.items() if name != "stem.weight"}
    with pytest.raises(CheckpointError, match=r"unknown tensors: stem\.weight$"):
        plan_renames(SOURCES, RULES, targets, "file")


def test_two_sources_of_one_target_are_refused() -> None:
    rules = (*RULES, RenameRule("trunk.weight", "stem.weight", "patch"))
    sources = {**SOURCES, "trunk.weight": info(8, 3, 1, 2, 2)}
    with pytest.raises(CheckpointError, match=r"given twice: stem\.weight$"):
        plan_renames(sources, rules, TARGETS, "file")


def test_the_first_row_that_matches_counts() -> None:
    rules = (RenameRule("blocks.10.scale", None), *RULES)
    targets = {name: shape for name, shape in TARGETS.items() if name != "blocks.10.scale"}
    assert len(plan_renames(SOURCES, rules, targets, "file")) == 3


def test_a_hole_does_not_reach_over_a_dot() -> None:
    with pytest.raises(CheckpointError, match=r"unknown tensors: unused\.a\.bias$"):
        plan_renames({**SOURCES, "unused.a.bias": info(1)}, RULES, TARGETS, "file")


@pytest.mark.parametrize(
    ("transform", "shape", "expected"),
    [
        ("copy", (2, 3), (2, 3)),
        ("conv", (4, 2, 3, 3), (4, 3, 3, 2)),
        ("conv", (4, 2, 3, 5, 6), (4, 3, 5, 6, 2)),
        ("flatten", (4, 1, 1, 1), (4,)),
        ("patch", (8, 3, 1, 2, 2), (8, 12)),
        ("patch", (8, 3, 1, 1), (8, 3)),
    ],
)
def test_transforms_give_the_shape_that_was_planned(
    transform: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    values = np.arange(np.prod(shape)).reshape(shape)
    result = apply_transform(values, transform)
    assert result.shape == transformed_shape(shape, transform) == expected
    # the writer transforms slices of the first axis
    slices = [apply_transform(values[i : i + 1], transform).ravel() for i in range(shape[0])]
    np.testing.assert_array_equal(np.concatenate(slices), result.ravel())


def test_a_patch_row_multiplies_pixels_with_channels_last() -> None:
    weight = np.arange(2 * 3 * 1 * 2 * 2).reshape(2, 3, 1, 2, 2)
    pixels = np.arange(3 * 1 * 2 * 2).reshape(3, 1, 2, 2)
    flat = np.moveaxis(pixels, 0, -1).ravel()
    np.testing.assert_array_equal(
        apply_transform(weight, "patch") @ flat, np.einsum("ocfhw,cfhw->o", weight, pixels)
    )
