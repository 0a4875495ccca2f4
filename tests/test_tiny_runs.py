"""decode, run and preview with a tiny VAE: other frames, under another key, marked as such."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.sweeps.sheets import SEEDS, graph_of, make
from tests.test_preview import rows
from tests.tiny_vae import NARROW, draw_weights, write_tiny_vae
from tests.workshop import SMALL, Place, inside
from wanpipe.cli.options import TINY
from wanpipe.media.video import read_video
from wanpipe.pipeline.lineage import read_lineage
from wanpipe.store.keys import hash_file

pytest_plugins = ["tests.workshop"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a tiny VAE for 16 channels."""
    path = tmp_path_factory.mktemp("tiny") / "taew2_1.safetensors"
    return write_tiny_vae(path, draw_weights("taew2_1", NARROW))


@pytest.fixture
def step(studio: Place) -> Path:
    """The last step of the small film."""
    return studio.made("denoise", "--from", studio.text(), *SMALL)


def test_frames_of_a_tiny_vae_have_a_key_of_their_own(
    studio: Place, step: Path, tiny: Path
) -> None:
    [real] = studio.cache.glob("decode/*")
    made = studio.do("decode", "--from", step, "--tiny", "--vae-tiny", tiny)
    assert made.loaded() == ["vae_tiny"]
    path = studio.root / made.paths[0]
    assert path != real
    frames, material = studio.entry(path).read("frames"), studio.entry(path).material
    assert (material.decoder, material.vae) == ("tiny", hash_file(tiny))
    assert frames.shape == studio.entry(real).read("frames").shape == (5, 32, 32, 3)
    assert not np.array_equal(frames, studio.entry(real).read("frames"))
    assert studio.do("decode", "--from", step).paths == [str(real.relative_to(studio.root))]


def test_frames_of_a_tiny_vae_are_decoded_once(studio: Place, step: Path, tiny: Path) -> None:
    words = ("decode", "--from", step, "--vae-tiny", tiny, "--output", "tiny.mp4")
    assert studio.do(*words).computed("decode")
    again = studio.do(*words)
    assert not again.computed() and not again.loaded()
    assert again.events[-1]["event"] == "reused"


def test_a_video_of_a_tiny_vae_says_so(studio: Place, step: Path, tiny: Path) -> None:
    made = studio.do("decode", "--from", step, "--vae-tiny", tiny, "--output", "tiny.mp4")
    lineage = read_lineage(studio.root / "tiny.mp4")
    assert (lineage["decoder"], lineage["vae_tiny"]) == ("tiny", hash_file(tiny))
    studio.do("decode", "--from", made.paths[0], "--output", "again.mp4")
    assert read_lineage(studio.root / "again.mp4") == lineage
    assert "decoder" not in read_lineage(studio.root / "film.mp4")
    shown = inside("show", made.paths[0], cwd=studio.root)
    assert "material decoder tiny" in " ".join(shown.paths)
    for words in (("cache", "ls"), ("log", made.paths[0])):
        assert "tiny VAE" in " ".join(inside(*words, cwd=studio.root).paths)


def test_a_run_takes_a_tiny_vae(place: Place, tiny: Path) -> None:
    made = place.film("--vae-tiny", tiny)
    assert made.loaded() == ["model", "vae_tiny"]
    film = read_video(place.root / "film.mp4")[0]
    assert film.shape == place.frames(made).shape == (5, 32, 32, 3)
    assert not place.film("--vae-tiny", tiny).computed()
    assert [event["stage"] for event in place.film().computed()] == ["decode"]


def test_making_it_again_without_the_tiny_vae_is_told(studio: Place, tiny: Path) -> None:
    studio.film("--vae-tiny", tiny, "--output", "tiny.mp4")
    again = studio.do("run", "--like", "tiny.mp4", "--output", "again.mp4")
    [remark] = [event["text"] for event in again.events if event["event"] == "remark"]
    assert "was decoded by a tiny VAE; give --vae-tiny FILE" in remark
    words = ("run", "--like", "tiny.mp4", "--vae-tiny", tiny, "--output", "same.mp4")
    same = studio.do(*words)
    assert not [event for event in same.events if event["event"] == "remark"]
    assert read_lineage(studio.root / "same.mp4") == read_lineage(studio.root / "tiny.mp4")


def test_the_environment_names_the_file_and_decides_nothing(
    studio: Place, step: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TINY, str(tiny))
    assert not studio.do("decode", "--from", step).computed()
    assert studio.do("decode", "--from", step, "--tiny").loaded() == ["vae_tiny"]


def test_trimmed_and_first_frames_are_dropped(place: Place, tiny: Path) -> None:
    whole = place.film("--num-frames", 9, "--vae-tiny", tiny)
    trimmed = place.film("--num-frames", 5, "--trim-first-frames", 1, "--vae-tiny", tiny)
    assert len(place.frames(whole)) == 9
    assert np.array_equal(place.frames(trimmed), place.frames(whole)[4:])


def test_entries_of_a_tiny_vae_are_verified_exported_and_imported(
    studio: Place, step: Path, tiny: Path, tmp_path: Path
) -> None:
    made = studio.do("decode", "--from", step, "--vae-tiny", tiny)
    studio.do("cache", "verify")
    studio.do("cache", "export", made.paths[0], tmp_path / "a.zip")
    shutil.rmtree(studio.root / made.paths[0])
    studio.do("cache", "import", tmp_path / "a.zip")
    assert not studio.do("decode", "--from", step, "--vae-tiny", tiny).computed()


def test_a_dry_run_plans_the_tiny_vae(studio: Place, step: Path, tiny: Path) -> None:
    words = ("decode", "--from", step, "--vae-tiny", tiny)
    planned = studio.do(*words, "--dry-run")
    [forecast] = [event for event in planned.events if event["event"] == "forecast"]
    assert forecast["component"] == "vae_tiny"
    assert not planned.loaded()
    assert studio.do(*words).paths == planned.paths


def test_a_preview_is_decoded_by_a_tiny_vae(place: Place, tiny: Path) -> None:
    words = ("denoise", "--model", place.model, "--from", place.text(), *SMALL)
    drafts = place.do(*words, "--seed", 1, "--seed", 2, "--stop-at", 2).paths
    place.do("preview", *drafts, "--columns", 2, "--output", "map.png")
    place.do("preview", *drafts, "--vae-tiny", tiny, "--output", "tiny.png")
    sheets = [Image.open(place.root / name) for name in ("map.png", "tiny.png")]
    assert [sheet.width for sheet in sheets] == [8 + 2 * 248, 8 + 5 * 248]
    assert len(rows(sheets[1])) == 2
    place.refuse(
        "preview", *drafts, "--vae", "--vae-tiny", tiny, code=2, says="either --vae or a tiny VAE"
    )


def test_a_sweep_decodes_with_a_tiny_vae(place: Place, tiny: Path) -> None:
    text = f'vae-tiny = "{tiny}"\n{SEEDS}'
    graph = graph_of(place, text)
    make(place, graph)
    videos = [node for node in graph.nodes if node.stage == "decode"]
    assert {node.network for node in videos} == {hash_file(tiny)}
    for node in videos:
        assert place.entry(place.cache / "decode" / node.key).material.decoder == "tiny"
    shutil.rmtree(place.cache / "denoise")
    again = [node for node in graph_of(place, text).nodes if node.stage == "decode"]
    assert [node.key for node in again] == [node.key for node in videos]
    assert all("--vae-tiny" not in node.command for node in again)  # their frames are there


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--tiny",), 2, "--tiny needs the file of a tiny VAE; use --vae-tiny or $WANPIPE_VAE"),
        (("--vae-tiny", "gone.safetensors"), 1, "gone.safetensors is missing"),
        (("--vae-tiny", "{other}"), 2, "must decode latents of 16 channels, got one for 48"),
        (("--vae-tiny", "{tiny}", "--tiling", "spatial"), 2, "leave out --tiling spatial"),
        (("--vae-tiny", "{tiny}", "--memory", "100KB"), 2, "vae_tiny needs"),
    ],
)
def test_what_cannot_be_decoded_is_refused_before_anything_is_computed(
    words: tuple[str, ...], code: int, says: str, studio: Place, tiny: Path
) -> None:
    other = write_tiny_vae(studio.root / "48.safetensors", draw_weights("taew2_2", NARROW))
    words = tuple(word.format(tiny=tiny, other=other) for word in words)
    last = studio.made("denoise", "--from", studio.text(), *SMALL)
    studio.refuse("decode", "--from", last, *words, code=code, says=says)
    if "--memory" not in words:
        making = ("run", "--model", studio.model, "--prompt", "new", *SMALL)
        studio.refuse(*making, *words, code=code, says=says)


def test_frames_are_not_decoded_again_by_a_tiny_vae(studio: Place, tiny: Path) -> None:
    [frames] = studio.cache.glob("decode/*")
    says = "a tiny VAE decodes a step, but frames are given"
    studio.refuse("decode", "--from", frames, "--vae-tiny", tiny, code=2, says=says)
