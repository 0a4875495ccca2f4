"""The toy world: its clips, its captions, and the combinations held out of training."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wanpipe.demo import world
from wanpipe.demo.vocabulary import ORDERS, WORDS

ROOT = Path(__file__).parents[2]


def test_a_clip_has_the_size_of_the_world() -> None:
    clip = world.render(world.Scene(shape="star", color="red", motion="left"))
    assert clip.shape == (world.FRAMES, world.SIZE, world.SIZE, 3)
    assert clip.dtype == np.uint8


def test_the_seed_determines_the_clip() -> None:
    scene = world.Scene(shape="square", color="green", motion="up", background="sky", speed="fast")
    assert (world.render(scene, seed=3) == world.render(scene, seed=3)).all()
    assert (world.render(scene, seed=3) != world.render(scene, seed=4)).any()


def test_every_scene_stays_on_the_canvas() -> None:
    rng = np.random.default_rng(0)
    for scene in world.sample_scenes(rng, 300):
        row = dict(zip(world.COLUMNS, world.sample_row(scene, rng), strict=True))
        reach = row["size"] * row["growth"] * world.REACH[int(row["shape"])]
        for at, travel in ((row["x"], row["dx"]), (row["y"], row["dy"])):
            assert min(at, at + travel) - reach >= 0
            assert max(at, at + travel) + reach <= world.SIZE


def test_the_words_of_the_captions_are_the_values_of_the_world() -> None:
    values = {kind: tuple(phrases) for kind, phrases in WORDS.items()}
    assert values == {
        "shape": world.SHAPES,
        "color": tuple(world.COLORS),
        "background": tuple(world.BACKGROUNDS),
        "motion": world.MOTIONS,
        "speed": world.SPEEDS,
    }


@pytest.mark.parametrize("order", range(len(ORDERS)))
def test_a_caption_parses_to_its_scene(order: int) -> None:
    rng = np.random.default_rng(order)
    for sampled in world.sample_scenes(rng, 200):
        scene = world.omit_words(sampled, rng)
        assert world.parse(world.caption(scene, rng, order)) == scene


def test_captions_use_every_phrase() -> None:
    rng = np.random.default_rng(1)
    texts = [world.caption(s, rng).lower() for s in world.sample_scenes(rng, 3000)]
    for values in WORDS.values():
        for phrase in (phrase for phrases in values.values() for phrase in phrases):
            assert any(re.search(rf"\b{phrase}\b", text) for text in texts), phrase


def test_a_caption_without_a_shape_is_rejected() -> None:
    with pytest.raises(ValueError, match="must name a shape"):
        world.parse("something red moves left")


def test_the_prompt_of_the_readme_parses() -> None:
    assert world.parse("a red circle moves right on a blue background") == world.Scene(
        shape="circle", color="red", motion="right", background="blue"
    )


def test_the_fifty_test_prompts_are_fixed_and_balanced() -> None:
    prompts = world.test_prompts()
    assert len(prompts) == 50
    assert prompts == world.test_prompts()
    assert prompts[0][0] == "A golden disc drifts to the left fast over black"
    assert all(world.parse(text) == scene for text, scene in prompts)
    motions = [scene.motion for _, scene in prompts]
    assert {motions.count(m) for m in world.MOTIONS} == {7, 8}
    spinning = {scene.shape for _, scene in prompts if scene.motion == "spinning"}
    assert spinning == {"square", "triangle", "star"}


def test_training_never_sees_a_held_out_combination() -> None:
    held = set(world.held_out())
    assert len(held) == 50
    drawn = world.sample_scenes(np.random.default_rng(0), 5000)
    seen = {(s.shape, s.color, s.background, s.motion) for s in drawn}
    assert not seen & held
    assert len(seen) > 1100


def test_invisible_combinations_are_excluded() -> None:
    assert not world.possible("circle", "red", "white", "spinning")
    assert not world.possible("square", "blue", "blue", "left")
    assert len(world.combinations()) == 1269


def test_importing_the_judge_loads_neither_mlx_nor_torch() -> None:
    code = (
        "import sys, bench.train_demo.judge; "
        "print([m for m in ('mlx', 'torch', 'zarr') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
