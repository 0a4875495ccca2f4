"""The toy world: its pictures, its captions and what is kept out of training."""

import re
import subprocess
import sys

import numpy as np
import pytest

from wanpipe.demo import world


def test_clip_has_the_size_of_the_world() -> None:
    clip = world.render(world.Scene(shape="star", colour="red", motion="left"))
    assert clip.shape == (world.FRAMES, world.SIZE, world.SIZE, 3)
    assert clip.dtype == np.uint8


def test_one_seed_draws_one_clip() -> None:
    scene = world.Scene(shape="square", colour="green", motion="up", background="sky", speed="fast")
    assert (world.render(scene, seed=3) == world.render(scene, seed=3)).all()
    assert (world.render(scene, seed=3) != world.render(scene, seed=4)).any()


def test_every_scene_stays_on_the_canvas() -> None:
    rng = np.random.default_rng(0)
    for scene in world.sample_scenes(rng, 300):
        row = dict(zip(world.COLUMNS, world.place(scene, rng), strict=True))
        reach = row["size"] * row["growth"] * world.REACH[int(row["shape"])]
        for at, travel in ((row["x"], row["dx"]), (row["y"], row["dy"])):
            assert min(at, at + travel) - reach >= 0
            assert max(at, at + travel) + reach <= world.SIZE


@pytest.mark.parametrize("order", range(len(world.ORDERS)))
def test_captions_read_back_as_what_they_say(order: int) -> None:
    rng = np.random.default_rng(order)
    for scene in world.sample_scenes(rng, 200):
        said = world.vaguer(scene, rng)
        assert world.parse(world.caption(said, rng, order)) == said


def test_every_synonym_is_used_and_none_hides_in_another_kind() -> None:
    rng = np.random.default_rng(1)
    texts = [world.caption(s, rng).lower() for s in world.sample_scenes(rng, 3000)]
    for ways in world.WORDS.values():
        for phrase in (p for phrases in ways.values() for p in phrases):
            assert any(re.search(rf"\b{phrase}\b", text) for text in texts), phrase


def test_a_caption_without_a_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="must name a shape"):
        world.parse("something red moves left")


def test_prompt_of_the_readme_is_understood() -> None:
    assert world.parse("a red circle moves right on a blue background") == world.Scene(
        shape="circle", colour="red", motion="right", background="blue"
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
    seen = {(s.shape, s.colour, s.background, s.motion) for s in drawn}
    assert not seen & held
    assert len(seen) > 1100


def test_invisible_combinations_do_not_exist() -> None:
    assert not world.possible("circle", "red", "white", "spinning")
    assert not world.possible("square", "blue", "blue", "left")
    assert len(world.combinations()) == 1269


def test_importing_the_world_loads_neither_mlx_nor_torch() -> None:
    code = (
        "import sys, wanpipe.demo.judge; "
        "print([m for m in ('mlx', 'torch', 'zarr') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_words_that_no_caption_has_are_strangers() -> None:
    assert world.strangers("A cat, red as a Fox, moves left over stripes") == ["cat", "as", "fox"]
    assert not any(world.strangers(text) for text, _ in world.test_prompts())


def test_what_a_prompt_leaves_open_is_told() -> None:
    assert world.missing("a red thing on a white background") == ["shape", "motion"]
    assert world.missing("a red circle rises") == []


def test_vocabulary_is_one_line_that_names_every_kind() -> None:
    told = world.vocabulary()
    assert "\n" not in told
    assert all(word in told for word in (*world.SHAPES, *world.COLOURS, *world.BACKGROUNDS))
    assert all(f"{kind}s: " in told for kind in world.WORDS)
