"""Tokenizers that their library would abort over, or that cannot be used: refused in one line."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wanpipe.errors import CheckpointError
from wanpipe.weights.vocabulary import parts, read_tokenizer

Table = dict[str, Any]


@pytest.fixture
def table(checkpoints: Path) -> Table:
    path = checkpoints / "wan21-t2v" / "google" / "umt5-xxl" / "tokenizer.json"
    data: Table = json.loads(path.read_text(encoding="utf-8"))
    return data


def part(table: Table, kind: str) -> Table:
    return next(part for part in parts(table) if part.get("type") == kind)


def with_map(change: Callable[[bytes], bytes]) -> Callable[[Table], object]:
    def spoil(table: Table) -> None:
        precompiled = part(table, "Precompiled")
        data = base64.b64decode(precompiled["precompiled_charsmap"])
        precompiled["precompiled_charsmap"] = base64.b64encode(change(data)).decode()

    return spoil


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda table: part(table, "Precompiled").clear(), "is no tokenizer"),
        (lambda table: part(table, "Precompiled").pop("precompiled_charsmap"), "without its map"),
        (
            lambda table: part(table, "Precompiled").update(precompiled_charsmap="é."),
            "without its map",
        ),
        (with_map(lambda data: b""), "without its map"),
        (with_map(lambda data: data[:100]), "without its map"),
        (with_map(lambda data: b"\xff" * 4 + data[4:]), "without its map"),
        (with_map(lambda data: data + b"\xff"), "without its map"),
        (
            lambda table: part(table, "TemplateProcessing").update(special_tokens={}),
            "a token that is not defined",
        ),
        (lambda table: table.pop("model"), "no model in it"),
        (lambda table: table["model"].update(vocab=3), "is no tokenizer"),
        (lambda table: table["model"].update(unk_id=1 << 40), "is no tokenizer"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_refused(
    table: Table, tmp_path: Path, spoil: Callable[[Table], object], why: str
) -> None:
    spoil(table)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(CheckpointError, match=why) as caught:
        read_tokenizer(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_tokenizer_is_taken_byte_for_byte(table: Table, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(table, indent=3), encoding="utf-8")
    assert read_tokenizer(path) == path.read_bytes()
