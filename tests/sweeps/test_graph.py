"""The graph of a sweep: its keys are those of `wanpipe run`, and each node's command makes it."""

import lzma
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.sweep_plan import plan
from tests.conftest import DATA
from tests.sweeps.sheets import SEEDS, graph_of, make, read, write
from tests.workshop import SMALL, Models, Place, files, inside
from wanpipe.store import Store

STYLE = "a_lightning_down_up_alpha.safetensors"


@pytest.fixture
def gallery(place: Place) -> Place:
    """The tiny Wan2.1 T2V, with a LoRA for it."""
    packed = DATA / "expected/wan21-t2v/lora_files" / f"{STYLE}.xz"
    (place.root / STYLE).write_bytes(lzma.decompress(packed.read_bytes()))
    return place


def place_of(models: Models, name: str, root: Path) -> Place:
    """A folder with a tiny model and an image."""
    pixels = np.random.default_rng(7).integers(0, 255, (48, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "cat.png")
    return Place(root, models(name))


def stages_of(place: Place, text: str, draft: int | None = None) -> Counter[str]:
    return Counter(node.stage for node in graph_of(place, text, draft).nodes)


def test_each_command_makes_the_entry_of_its_node(place: Place) -> None:
    graph = graph_of(place, SEEDS, draft=2)
    make(place, graph)
    assert [(node.rank, node.stage, node.units) for node in graph.nodes] == [
        (0, "encode-text", 1),
        (1, "denoise", 2),
        (1, "denoise", 2),
        (3, "denoise", 2),
        (3, "denoise", 2),
        (5, "decode", 1),
        (5, "decode", 1),
    ]


def test_the_keys_are_those_of_run(place: Place) -> None:
    graph = graph_of(place, SEEDS)
    run = place.do(
        *("run", "--model", place.model, "--prompt", "a cat", *SMALL),
        *("--seed", 1, "--seed", 2, "--output", "film.mp4"),
    )
    made = {event["key"] for event in run.computed()}
    assert {node.key for node in graph.nodes} <= made
    again = graph_of(place, SEEDS)
    assert all(node.exists for node in again.nodes if node.stage != "decode")


def test_the_videos_are_those_of_run(place: Place) -> None:
    make(place, graph_of(place, SEEDS))
    place.film("--seed", 2, prompt="a cat")
    ours, theirs = (place.root / name for name in ("2.mp4", "film.mp4"))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("wan21-i2v", 'image = "cat.png"\nnum-frames = 9'),
        ("wan22-ti2v-5b", 'image = "cat.png"\nwidth = 64\nheight = 32\ntrim-first-frames = 1'),
        ("wan21-vace", 'reference = "cat.png"\ncontext-scale = 0.5'),
        ("wan21-vace", "num-frames = 5"),
        ("wan21-t2v", f'lora = ["{STYLE}", 0.5]\nnegative-prompt = "-bad"'),
        ("wan21-t2v", "no-negative-prompt = true\ntimesteps = [1000, 700.5, 300]\nfps = 12"),
        ("wan21-t2v", 'scheduler = "euler"\nshift = 3\nguide-scale = 1\ntiling = "spatial"'),
    ],
)
def test_every_way_to_make_a_video_has_its_keys(
    model: str, options: str, models: Models, gallery: Place
) -> None:
    place = place_of(models, model, gallery.root)
    graph = graph_of(place, f'prompt = "a cat"\n{options}\n')
    make(place, graph)
    assert graph.nodes[-1].stage == "decode"


def test_two_experts_are_cut_where_the_second_takes_over(models: Models, tmp_path: Path) -> None:
    place = place_of(models, "wan22-t2v-a14b", tmp_path)
    text = SEEDS + "guide-scale = [[3, 4], [2, 4]]\n"
    graph = graph_of(place, text)
    steps = [node for node in graph.nodes if node.stage == "denoise"]
    # both low guidances share what the high-noise expert does
    assert [(node.rank, len(node.videos)) for node in steps] == [(3, 2)] * 2 + [(4, 1)] * 4
    high, low = ({node.network for node in part} for part in (steps[:2], steps[2:]))
    assert len(high) == len(low) == 1
    assert high != low
    make(place, graph)


def test_a_draft_within_the_first_expert_comes_before_all_others(
    models: Models, tmp_path: Path
) -> None:
    graph = graph_of(place_of(models, "wan22-t2v-a14b", tmp_path), SEEDS, draft=1)
    steps = [node for node in graph.nodes if node.stage == "denoise"]
    assert [node.rank for node in steps] == sorted(node.rank for node in steps)
    assert [node.units for node in steps[:2]] == [1, 1]
    assert {node.rank for node in steps[:2]} == {1}


def test_a_shared_start_is_one_node(place: Place) -> None:
    text = 'prompt = "a cat"\n[axes]\ntimesteps = [[1000, 700, 300], [1000, 700, 200]]\n'
    graph = graph_of(place, text)
    steps = [node for node in graph.nodes if node.stage == "denoise"]
    assert [(node.units, len(node.videos)) for node in steps] == [(1, 2), (2, 1), (2, 1)]
    make(place, graph)


def test_prompts_share_nothing_and_seeds_share_the_text(place: Place) -> None:
    text = '[axes]\nprompt = ["a cat", "a dog"]\nseed = "1-3"\n'
    assert stages_of(place, text) == {"encode-text": 2, "denoise": 6, "decode": 6}


def test_many_prompts_are_encoded_by_one_command(place: Place) -> None:
    prompts = [f"cat {number}" for number in range(34)]
    text = f"negative-prompt = 'bad'\n[axes]\nprompt = {prompts}\n"
    nodes = [node for node in graph_of(place, text).nodes if node.stage == "encode-text"]
    assert [node.units for node in nodes] == [32, *[0] * 31, 2, 0]
    results = [place.do(*node.command) for node in nodes]
    assert [len(result.computed()) for result in results] == [32, *[0] * 31, 2, 0]
    assert [Path(result.paths[-1]).name for result in results] == [node.key for node in nodes]
    another = [node for node in graph_of(place, text).nodes if node.stage == "encode-text"]
    assert all(node.exists for node in another)


def test_two_spellings_of_a_prompt_are_one_text(place: Place) -> None:
    text = '[axes]\nprompt = ["a cat", "a  cat", "a dog"]\n'
    graph = graph_of(place, text)
    assert [node.stage for node in graph.nodes].count("encode-text") == 2
    assert [node.needs for node in graph.nodes[:2]] == [(), (graph.nodes[0].key,)]


def test_what_exists_is_known_and_its_inputs_are_not_needed(place: Place) -> None:
    make(place, graph_of(place, SEEDS))
    graph = graph_of(place, SEEDS)
    assert [(node.stage, node.exists) for node in graph.nodes] == [("decode", True)] * 2


def test_a_video_that_was_removed_is_written_again_from_its_frames(place: Place) -> None:
    make(place, graph_of(place, SEEDS))
    (place.root / "1.mp4").unlink()
    shutil.rmtree(place.cache / "denoise")
    graph = graph_of(place, SEEDS)
    assert [node.exists for node in graph.nodes] == [False, True]
    assert graph.nodes[0].needs == ()
    make(place, graph)
    assert (place.root / "1.mp4").is_file()


def test_another_video_of_that_name_is_replaced(place: Place) -> None:
    make(place, graph_of(place, SEEDS))
    shutil.copyfile(place.root / "2.mp4", place.root / "1.mp4")
    [first, second] = graph_of(place, SEEDS).nodes
    assert not first.exists
    assert second.exists


def test_steps_that_were_removed_are_made_again_from_the_noise(place: Place) -> None:
    make(place, graph_of(place, SEEDS, draft=2))
    for stage in ("denoise", "decode"):
        shutil.rmtree(place.cache / stage)
    graph = graph_of(place, SEEDS, draft=2)
    assert sum(node.exists for node in graph.nodes) == 1
    make(place, graph)


def test_planning_writes_nothing(finished: Place, tmp_path: Path) -> None:
    sweep = read(Place(tmp_path, finished.model), SEEDS)
    before = files(finished.root)
    plan(sweep, Store(finished.cache), 2)
    assert files(finished.root) == before


def test_videos_that_cannot_differ_are_made_once(place: Place) -> None:
    text = '[axes]\nprompt = ["a cat"]\nguide-scale = [1]\nnegative-prompt = ["bad", "worse"]\n'
    result = inside("sweep", write(place, text), "--dry-run", cwd=place.root)
    assert result.code == 0, result.stderr
    assert "1 of 2 videos are the same as others" in result.stderr
    assert stages_of(place, text) == {"encode-text": 1, "denoise": 1, "decode": 1}


def test_an_earlier_run_speeds_up_the_estimate(place: Place) -> None:
    assert {node.seconds for node in graph_of(place, SEEDS).nodes} == {None}
    place.film()
    graph = graph_of(place, SEEDS)
    assert all(node.seconds is not None for node in graph.nodes)
    assert all(node.size > 0 and node.memory > 0 for node in graph.nodes)


def test_steps_that_an_interrupted_run_has_left_are_not_counted(place: Place) -> None:
    make(place, graph_of(place, SEEDS, draft=1))
    for step in (place.cache / "denoise").iterdir():
        if place.entry(step).step > 0:
            shutil.rmtree(step)
    shutil.rmtree(place.cache / "decode")
    steps = [node for node in graph_of(place, SEEDS).nodes if node.stage == "denoise"]
    assert [(node.units, node.exists) for node in steps] == [(3, False)] * 2
