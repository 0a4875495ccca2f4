"""show: an entry, a model or a video is described back to its prompt and model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from tests.checkpoints.ggufs import write_pair
from tests.conftest import DATA, unpack
from tests.hub_server import store_snapshot
from tests.workshop import PROMPT, SMALL, Models, Place, inside
from wanpipe.media.video import write_video


def show(place: Place, reference: object) -> dict[str, Any]:
    """The rows of show as JSON."""
    result = inside("show", reference, "--json", cwd=place.root)
    assert result.code == 0, result.stderr
    rows: dict[str, Any] = json.loads(" ".join(result.paths))
    return rows


@pytest.mark.parametrize("name", ["film.mp4", "film.webm", "film.gif", "film.png"])
def test_a_video_shows_how_it_was_made(name: str, studio: Place) -> None:
    made = studio.film("--seed", 3, "--guide-scale", 4, "--output", name)
    rows = show(studio, name)
    assert rows["prompt"] == PROMPT
    assert (rows["width"], rows["height"], rows["num_frames"], rows["steps"]) == (32, 32, 5, 4)
    assert (rows["seed"], rows["guide_scale"], rows["fps"]) == (3, [4.0, 4.0], 16)
    assert rows["denoise"] == made.computed("denoise")[-1]["key"]
    assert rows["decode"] == made.computed("decode")[0]["key"]
    assert rows["encode-text"] == studio.text().name
    assert rows["variant"] == "wan2.1-t2v-1.3b"


def test_a_video_made_from_an_image_names_its_image_entry(models: Models, tmp_path: Path) -> None:
    place = Place(tmp_path, models("wan22-i2v-a14b"))
    made = place.film("--image", DATA / "bad" / "cmyk.jpg", "--steps", 2)
    assert show(place, "film.mp4")["encode-image"] == made.computed("encode-image")[0]["key"]


def test_an_entry_is_shown_by_path_by_prefix_and_by_name(studio: Place) -> None:
    step = studio.made("denoise", "--from", studio.text(), *SMALL, "--name", "cat")
    rows = [show(studio, reference) for reference in (step, step.name[:12], "cat")]
    assert rows[0]["stage"] == "denoise"
    assert rows[0]["step"] == "4 of 4"
    assert rows[0]["from text"].endswith(PROMPT)
    for other in rows[1:]:
        assert {**other, "entry": ""} == {**rows[0], "entry": ""}


def test_every_stage_of_a_video_can_be_shown(studio: Place) -> None:
    for path in studio.cache.glob("[a-z]*/*"):
        rows = show(studio, path)
        assert rows["stage"] == path.parent.name
        assert any(name.startswith("array ") for name in rows)


@pytest.mark.parametrize(
    ("name", "variant", "networks"),
    [
        ("wan21-t2v", "wan2.1-t2v-1.3b", ["model"]),
        ("wan22-t2v-a14b", "wan2.2-t2v-a14b", ["low_noise_model", "high_noise_model"]),
        ("wan21-i2v", "wan2.1-i2v-14b-480p", ["clip", "model"]),
        ("wan21-flf2v", "wan2.1-flf2v-14b-720p", ["clip", "model"]),
        ("wan21-vace", "wan2.1-vace-1.3b", ["model"]),
        ("wan22-ti2v-5b", "wan2.2-ti2v-5b", ["model"]),
    ],
)
def test_a_model_shows_its_variant_parameters_and_defaults(
    name: str, variant: str, networks: list[str], models: Models, tmp_path: Path
) -> None:
    rows = show(Place(tmp_path, tmp_path), models(name))
    assert rows["variant"] == variant
    assert rows["dtype"] == "float32"
    assert rows["quantization"] == "none"
    for network in networks:
        assert "parameters" in rows[f"component {network}"]
    assert rows["default steps"] in (40, 50)
    assert rows["on disk"].endswith("MB")


def test_a_gguf_file_shows_its_network_and_types(checkpoints: Path, tmp_path: Path) -> None:
    folder, _ = write_pair(checkpoints / "wan21-t2v", tmp_path, Kind.Q8_0)
    place = Place(tmp_path, tmp_path)
    assert show(place, folder / "wan-Q8_0.gguf") == {
        "gguf": str(folder / "wan-Q8_0.gguf"),
        "network": "transformer",
        "made for": "width 64 (no released Wan model)",
        "architecture": "wan",
        "types": {"F32": "43 tensors", "Q8_0": "26 tensors"},
        "parameters": "164 k",
        "on disk": "205 kB",
    }
    rows = show(place, folder / "umt5-Q8_0.gguf")
    assert (rows["network"], rows["architecture"]) == ("text encoder", "t5encoder")


def test_what_was_downloaded_is_shown_by_the_name_of_its_repository(
    studio: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    source, file = tmp_path / "source", "style.safetensors"
    packed = DATA / "expected/wan21-t2v/lora_files/a_lightning_down_up_alpha.safetensors.xz"
    unpack(packed, source / f"{file}.xz")
    model = store_snapshot(tmp_path / "hub", studio.model, "someone/Model", "1" * 40)
    lora = store_snapshot(tmp_path / "hub", source, "someone/Style", "2" * 40)
    assert show(studio, "someone/Model") == show(studio, model)
    for reference in ("someone/Style", f"someone/Style:{file}", f"someone/Style@{'2' * 40}"):
        assert show(studio, reference) == show(studio, lora / file)


def test_a_repository_that_cannot_be_shown_is_refused(
    studio: Place, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    store_snapshot(tmp_path / "hub", checkpoints / "wan22-t2v-a14b", "someone/Wan", "1" * 40)
    says = "with `wanpipe convert --checkpoint-dir someone/Wan`"
    studio.refuse("show", "someone/Wan", code=1, says=says)
    says = "run `wanpipe download someone/Other`"
    studio.refuse("show", "someone/Other", code=1, says=says)
    says = "run `wanpipe download someone/Wan --include x.safetensors`"
    studio.refuse("show", "someone/Wan:x.safetensors", code=1, says=says)
    studio.refuse("show", "not/a/repository", code=1, says="no entry not/a/repository")


def test_show_writes_nothing(studio: Place) -> None:
    before = sorted(studio.root.rglob("*"))
    show(studio, "film.mp4")
    show(studio, next(studio.cache.glob("decode/*")))
    assert sorted(studio.root.rglob("*")) == before


def test_a_file_that_is_not_a_video_is_refused(studio: Place) -> None:
    (studio.root / "notes.txt").write_text("not a video")
    studio.refuse("show", "notes.txt", code=1, says="notes.txt cannot be read as a video")
    studio.refuse("show", "nowhere.mp4", code=1, says="no entry nowhere.mp4")
    (studio.root / "model.gguf").write_bytes(b"GGUF\3\0\0\0")
    studio.refuse("show", "model.gguf", code=1, says="model.gguf ends inside its header")
    os.mkfifo(studio.root / "pipe.mp4")
    studio.refuse("show", "pipe.mp4", code=2, says="it is not a regular file")


NO_LINEAGES = [
    "",
    "a holiday",
    "[]",
    '{"wanpipe": 1}',
    '{"wanpipe": [{"prompt": "x"}]}',
    '{"wanpipe": {"seed": NaN}}',
    '{"wanpipe": {"seed": 1e999}}',
    '{"wanpipe": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}",
    json.dumps({"wanpipe": {"k" * 10_000: 1}}),
    json.dumps({"wanpipe": {str(number): 1 for number in range(2000)}}),
]


@pytest.mark.parametrize("name", ["x.gif", "x.mp4", "x"])
@pytest.mark.parametrize("comment", NO_LINEAGES, ids=lambda comment: comment[:20])
def test_a_comment_that_is_no_lineage_is_refused(name: str, comment: str, studio: Place) -> None:
    write_video(studio.root / name, [np.zeros((1, 32, 32, 3), np.uint8)], 8, {"comment": comment})
    studio.refuse("show", name, code=2, says=f"{name} has no record of how it was made")


def test_a_lineage_cannot_control_the_terminal(studio: Place) -> None:
    lineage = json.dumps({"wanpipe": {"\x1b[2J": "\x1b]0;x\x07\u202e\x9b", "b": ["\x1b"]}})
    write_video(
        studio.root / "x.gif", [np.zeros((1, 32, 32, 3), np.uint8)], 8, {"comment": lineage}
    )
    assert show(studio, "x.gif")["b"] == ["\x1b"]
    for more in ((), ("--json",)):
        shown = subprocess.run(
            [sys.executable, "-m", "wanpipe", "show", "x.gif", *more],
            cwd=studio.root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert all(line.isprintable() for line in shown.splitlines())
        assert r"\u202e" in shown
