"""Tokenizers that their library would abort over, or that cannot be used: refused in one line."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wanpipe.checkpoints.tokenizer_file import read_tokenizer
from wanpipe.errors import CheckpointError

Table = dict[str, Any]


@pytest.fixture
def table(checkpoints: Path) -> Table:
    path = checkpoints / "wan21-t2v" / "google" / "umt5-xxl" / "tokenizer.json"
    data: Table = json.loads(path.read_text(encoding="utf-8"))
    return data


def part(table: Table, kind: str) -> Table:
    """The object of this type, at any depth of normalizer and post-processor."""
    left: list[Any] = [table["normalizer"], table["post_processor"]]
    while left:
        value = left.pop()
        if isinstance(value, dict) and value.get("type") == kind:
            return value
        left += (
            value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        )
    raise LookupError(kind)


def with_map(change: Callable[[bytes], bytes]) -> Callable[[Table], object]:
    def spoil(table: Table) -> None:
        precompiled = part(table, "Precompiled")
        data = base64.b64decode(precompiled["precompiled_charsmap"])
        precompiled["precompiled_charsmap"] = base64.b64encode(change(data)).decode()

    return spoil


def with_steps(table: Table) -> None:
    """Let every a become 1000, six times over."""
    longer = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
    table["normalizer"] = {"type": "Sequence", "normalizers": [longer] * 6}


def shifted(data: bytes) -> bytes:
    """Let the replacements of a map begin inside a character: only some characters tell."""
    start = 4 + int.from_bytes(data[:4], "little")
    return data[:start] + b"zz" + data[start:]


SPOILT: dict[str, Callable[[Table], object]] = {
    "an empty map": lambda table: part(table, "Precompiled").clear(),
    "no map": lambda table: part(table, "Precompiled").pop("precompiled_charsmap"),
    "no base64": lambda table: part(table, "Precompiled").update(precompiled_charsmap="é."),
    "a map of nothing": with_map(lambda data: b""),
    "a map cut short": with_map(lambda data: data[:100]),
    "a map of no size": with_map(lambda data: b"\xff" * 4 + data[4:]),
    "a map of no text": with_map(lambda data: data + b"\xff"),
    "a map of less text": with_map(lambda data: data[:-2000]),
    "a map that misses its text": with_map(shifted),
    "an undefined token": lambda table: part(table, "TemplateProcessing").update(special_tokens={}),
    "no model": lambda table: table.pop("model"),
    "no vocabulary": lambda table: table["model"].update(vocab=3),
    "an unknown piece that is none": lambda table: table["model"].update(unk_id=1 << 40),
    "text that grows": with_steps,
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_tokenizer_that_cannot_be_used_is_refused(table: Table, tmp_path: Path, how: str) -> None:
    SPOILT[how](table)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"is no tokenizer: .*; download it again") as caught:
        read_tokenizer(path)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff", b"3"])
def test_what_is_no_json_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is no tokenizer: ") as caught:
        read_tokenizer(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_tokenizer_is_taken_byte_for_byte(table: Table, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(table, indent=3), encoding="utf-8")
    assert read_tokenizer(path) == path.read_bytes()
