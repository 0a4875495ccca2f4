"""Remembered token ids: only those of this text, length and tokenizer, and only if they can be."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wanpipe.store.index_file import FILE, MAX_NAMES, MAX_TOKENS, TOKENS, IndexFile, TokenCache

DEEP, BIG = b"[" * 20_000, b"[1" + b" " * MAX_TOKENS + b"]"
IDS = {"a cat": [5, 6, 1], "": [1], "ein Hund 🦊": [7, (1 << 31) - 1, 1]}


@pytest.fixture
def cache(tmp_path: Path) -> TokenCache:
    cache = TokenCache(IndexFile(tmp_path), "t5")
    cache.put(IDS, 8)
    return cache


def test_ids_are_remembered_by_text(cache: TokenCache) -> None:
    assert cache.get([*IDS, "a dog"], 8) == IDS


def test_ids_are_those_of_one_tokenizer_and_one_length(cache: TokenCache) -> None:
    assert TokenCache(cache.index_file, "other").get(IDS, 8) == {}
    assert cache.get(IDS, 9) == {}


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"[1.5]",
        b"[true]",
        b"[-1]",
        b"[2147483648]",
        b"[1,2,3,4,5]",
        DEEP,
        BIG,
    ],
)
def test_ids_that_cannot_be_are_ignored(cache: TokenCache, value: bytes) -> None:
    cache.put({"a cat": [5, 6, 1]}, 4)
    cache.index_file.put(TOKENS, {cache.name("a cat", 4): value})
    assert cache.get(["a cat"], 4) == {}


def test_a_damaged_file_never_gives_other_ids(cache: TokenCache, tmp_path: Path) -> None:
    data, generator = (tmp_path / FILE).read_bytes(), random.Random(5)
    lost = restored = 0
    for _ in range(100):
        spoilt = bytearray(data)
        for _ in range(20):
            spoilt[generator.randrange(len(spoilt))] = generator.randrange(256)
        (tmp_path / FILE).write_bytes(spoilt)
        found = cache.get(IDS, 8)
        assert found.items() <= IDS.items()
        lost += found != IDS
        cache.put(IDS, 8)
        found = cache.get(IDS, 8)
        assert found.items() <= IDS.items()
        restored += found == IDS
    assert lost > 10
    assert restored > 97  # else rows are in a wrong order, which only reading all of them shows


def test_a_file_whose_table_is_damaged_is_rebuilt(cache: TokenCache, tmp_path: Path) -> None:
    data = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(data.replace(b"CREATE TABLE", b"CREATE TA\x8cLE"))
    assert cache.get(IDS, 8) == {}
    cache.put(IDS, 8)
    assert cache.get(IDS, 8) == IDS


def test_many_texts_are_found_together(cache: TokenCache) -> None:
    many = {f"text {number}": [number, 1] for number in range(2 * MAX_NAMES + 1)}
    cache.put(many, 8)
    assert cache.get(many, 8) == many


def test_many_ids_are_not_stored(cache: TokenCache) -> None:
    cache.put({"long": [1000] * MAX_TOKENS}, MAX_TOKENS)
    assert cache.index_file.all(TOKENS).keys() == {cache.name(text, 8) for text in IDS}


def test_a_cache_to_plan_with_stores_no_ids(cache: TokenCache, tmp_path: Path) -> None:
    before = (tmp_path / FILE).read_bytes()
    planning = TokenCache(IndexFile(tmp_path, writes=False), "t5")
    planning.put({"a dog": [8, 1]}, 8)
    assert planning.get([*IDS, "a dog"], 8) == IDS
    assert (tmp_path / FILE).read_bytes() == before


def test_ids_stored_at_once_are_all_remembered(tmp_path: Path) -> None:
    def store(number: int) -> None:
        TokenCache(IndexFile(tmp_path), "t5").put({f"text {number}": [number, 1]}, 8)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(store, range(64)))
    expected = {f"text {number}": [number, 1] for number in range(64)}
    assert TokenCache(IndexFile(tmp_path), "t5").get(expected, 8) == expected
