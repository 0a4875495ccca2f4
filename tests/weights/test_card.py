"""The model card: what it says of a converted model, and what it leaves alone."""

from pathlib import Path

import pytest
from msgspec import structs

from stages import convert
from tests.workshop import Models, Place
from wanpipe.models.config import Quantization, read_model_config
from wanpipe.store import Store
from wanpipe.weights.card import describe_source, model_card
from wanpipe.weights.model import open_model

FRONT = """---
library_name: mlx
pipeline_tag: text-to-video
tags:
- mlx
- wan
- wanpipe
---

# wan2.1-t2v-1.3b for MLX

wanpipe converted this model from a checkpoint.
"""


def front(card: str) -> list[str]:
    """The lines between the dashes."""
    return card.split("---\n")[1].splitlines()


def test_a_card_says_only_what_is_known(models: Models) -> None:
    config = read_model_config(models("wan21-t2v"))
    assert model_card(config, {}).startswith(FRONT)
    known = {"base_model": "Wan-AI/Tiny", "license": "apache-2.0"}
    card = model_card(config, known)
    assert {"license: apache-2.0", "base_model: Wan-AI/Tiny"} <= set(front(card))
    assert "from [Wan-AI/Tiny](https://huggingface.co/Wan-AI/Tiny)" in card
    assert "base_model_relation" not in card


def test_a_card_names_task_and_quantization(models: Models) -> None:
    config = read_model_config(models("wan22-i2v-a14b"))
    assert "pipeline_tag: image-to-video" in front(model_card(config, {}))
    assert "--image cat.png" in model_card(config, {})
    config = structs.replace(config, quantization=Quantization(bits=4, group_size=64))
    lines = front(model_card(config, {"base_model": "Wan-AI/Tiny"}))
    assert {"base_model_relation: quantized", "- 4-bit"} <= set(lines)
    assert "| quantization | 4 bits in groups of 64 |" in model_card(config, {})


@pytest.mark.parametrize(
    ("text", "license"),
    [
        ("---\nlicense: apache-2.0\ntags: []\n---\n", "apache-2.0"),
        ("---\r\nlicense: 'mit'\r\n---\r\n", "mit"),
        ("license: mit\n", None),
        ("---\nlicense:\n- mit\n---\n", None),
        ("---\nlicense: a b\n---\n", None),
        ("---\nlicense: x\u202ey\n---\n", None),
        ("", None),
    ],
)
def test_a_license_is_that_of_the_checkpoints_card(
    text: str, license: str | None, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_bytes(text.encode())
    assert describe_source(tmp_path, is_model=False).get("license") == license


def test_the_base_of_a_checkpoint_is_the_repository_that_it_came_from(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nbase_model: Wan-AI/Tiny\n---\n")
    assert describe_source(tmp_path, is_model=False) == {}
    assert describe_source(tmp_path, is_model=True) == {"base_model": "Wan-AI/Tiny"}
    snapshot = tmp_path / "models--someone--Tuned" / "snapshots" / ("1" * 40)
    snapshot.mkdir(parents=True)
    assert describe_source(snapshot, is_model=False) == {"base_model": "someone/Tuned"}


def test_a_card_changes_no_model_and_replaces_no_file(
    checkpoints: Path, place: Place, tmp_path: Path
) -> None:
    store = Store(tmp_path / "cache")
    source = checkpoints / "wan21-t2v"
    entry = convert.run(convert.Params(checkpoint_dir=source), store)
    assert not (entry / "README.md").exists()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    params = convert.Params(checkpoint_dir=source, output_dir=folder)
    convert.run(params, store)
    assert (folder / "README.md").read_text() == "mine"
    (folder / "README.md").unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    convert.run(params, store)  # a model of an earlier version gets its card
    assert (folder / "README.md").read_text().startswith(FRONT)
    assert before == {
        path: time for path, time in before.items() if path.stat().st_mtime_ns == time
    }
    assert open_model(folder).config == open_model(entry).config


def test_a_quantized_model_keeps_the_base_of_its_source(models: Models, tmp_path: Path) -> None:
    store, first = Store(tmp_path / "cache"), tmp_path / "first"
    first.mkdir()
    for path in models("wan21-t2v").iterdir():
        if path.name != "README.md":
            (first / path.name).symlink_to(path)
    (first / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: Wan-AI/Tiny\n---\n")
    params = convert.Params(
        from_model=str(first), output_dir=tmp_path / "second", quantize=True, group_size=32
    )
    card = (convert.run(params, store) / "README.md").read_text()
    wanted = {"license: apache-2.0", "base_model: Wan-AI/Tiny", "base_model_relation: quantized"}
    assert {*wanted, "- 4-bit"} <= set(front(card))
