"""Cleaning and tokenizing against the official code, and prompts that are no text."""

from pathlib import Path

import pytest

from tests.conftest import golden, settings
from wanpipe.errors import CheckpointError, UsageError
from wanpipe.models.variants import NEGATIVE
from wanpipe.pipeline.tokenizer import Tokenizer, clean

TOPIC = "wan21-t2v/tokenizer"


@pytest.fixture(scope="module")
def tokenizer(checkpoints: Path) -> Tokenizer:
    return Tokenizer(checkpoints / "wan21-t2v" / "google" / "umt5-xxl" / "tokenizer.json")


def test_prompts_are_cleaned_as_officially() -> None:
    facts = settings(TOPIC)
    assert [clean(prompt) for prompt in facts["prompts"]] == facts["cleaned"]


def test_ids_are_the_official_ones(tokenizer: Tokenizer) -> None:
    facts, reference = settings(TOPIC), golden(TOPIC)
    for index, prompt in enumerate(facts["prompts"]):
        length = int(reference["lengths"][index])
        [ids] = tokenizer.ids([prompt], facts["text_len"])
        assert ids == reference["ids"][index, :length].tolist()
        assert not reference["mask"][index, length:].any()


def test_the_default_negative_prompt_has_the_official_ids(tokenizer: Tokenizer) -> None:
    reference = golden(TOPIC)
    length = int(reference["neg_mask"].sum())
    assert tokenizer.ids([NEGATIVE], 512) == [reference["neg_ids"][0, :length].tolist()]


@pytest.mark.parametrize("prompt", ["", " \n\t ", "&#32;"])
def test_empty_prompt_is_one_token(tokenizer: Tokenizer, prompt: str) -> None:
    assert tokenizer.ids([prompt], 512) == [[1]]


def test_truncation_keeps_the_end_token(tokenizer: Tokenizer) -> None:
    [long] = tokenizer.ids(["the old man walks " * 40], 512)
    assert tokenizer.ids(["the old man walks " * 40], 8) == [[*long[:7], 1]]


def test_a_literal_end_token_is_the_end_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.ids(["a</s>"], 512)[0][-2:] == [1, 1]


def test_a_nul_is_refused() -> None:
    with pytest.raises(UsageError, match="got a NUL at character 2"):
        clean("a\0b")


@pytest.mark.parametrize("prompt", ["ab\udcff", "ab\ud83e", "ab\udd8a\ud83e"])
def test_a_lone_surrogate_is_refused(prompt: str) -> None:
    with pytest.raises(UsageError, match=r"lone surrogate U\+D\w{3} at character 3"):
        clean(prompt)


def test_a_surrogate_pair_is_one_character() -> None:
    assert clean("\ud83e\udd8a fox") == "🦊 fox"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": {"type": "Unigram"}}'])
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="is not a tokenizer") as caught:
        Tokenizer(path).ids(["a"], 8)
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        Tokenizer(tmp_path / "tokenizer.json").ids(["a"], 8)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe\0\xff")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Tokenizer(tmp_path / "tokenizer.json").ids(["a"], 8)
