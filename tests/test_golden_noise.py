"""A seed is the same noise on every machine and with every NumPy: the numbers are pinned.

The digests are those of what version 0.1.0 drew, with `standard_normal` of NumPy 2.4 on x86-64.
"""

import numpy as np
import pytest
import xxhash

from tests.golden_runs import record_of
from tests.workshop import SMALL, Place
from wanpipe.sampling.noise import draw, log1p, tables

DIGESTS = [
    (0, (16, 2, 4, 4), "f029dafca19c2d9ac9f1598a98c9918d"),
    (0, (16, 21, 60, 104), "8400256ebd3be30a23a180906c2cca70"),
    (1, (16, 2, 4, 4), "5fcbe93e0998e691786e079e92909f08"),
    (2, (48, 2, 2, 2), "1a9fd9a5ee3a9db95fdaee43bccace1b"),
    (3, (1,), "2a82fb0c578decb1d7faea4e52c5adf6"),
    (4, (), "dda2a711d7f97c782b4005d0a4a58366"),
    (5, (0,), "99aa06d3014798d86001c324468d497f"),
    (42, (16, 21, 90, 160), "04583107b651658869c6fc7660abe7b2"),
    (2147483647, (48, 31, 44, 80), "6313a35bc152f72dbb01cd18aa57b04b"),
    (9223372036854775808, (16, 1, 60, 104), "db47ba672226e254cd08826732c41de1"),
    (1000000000000000000000000000000, (1000,), "a4bb4aa2f65ff2511e53d5e4b3a7c6f1"),
    (12, (600000,), "59c1fc3574c3e11c06f6be36ff85e8a6"),
    (27, (101000,), "043c87b7708c6ce5e12668f852a9c7a3"),
]
# log(1 - u) of every 4099th u that is a multiple of 2^-24, as the C library of 0.1.0 rounded it
LOGARITHMS = "af172c73de7d909b1cb20aa17835bce9"
TABLES = [
    "1a3f5d38a2d1c12a0ec86838f4b8f109",
    "b2dd40d08087130b8c37e816f08f583e",
    "8c4c5cc71e17a29ecbee8fab7be2f4a5",
]


def digest(array: np.ndarray) -> str:
    """Hash an array's little-endian bytes."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return xxhash.xxh3_128_hexdigest(little.tobytes())


@pytest.mark.parametrize(("seed", "shape", "expected"), DIGESTS)
def test_a_seed_is_the_pinned_noise(seed: int, shape: tuple[int, ...], expected: str) -> None:
    noise = draw(seed, shape)
    assert noise.dtype == np.float32
    assert noise.shape == shape
    assert digest(noise) == expected


def test_the_first_numbers_are_these() -> None:
    assert draw(0, (4,)).tolist() == [
        -0.24822916090488434,
        -0.02676701545715332,
        -1.9444162845611572,
        0.5245779752731323,
    ]
    assert draw(1, (4,)).tolist() == [
        0.4422069489955902,
        -0.1334790587425232,
        -0.2643882930278778,
        -0.188115656375885,
    ]


def test_the_streams_of_a_seed_are_pinned() -> None:
    streams = {number: digest(draw(0, (16, 2, 4, 4), number)) for number in (0, 1, 2, 99)}
    assert streams == {
        0: DIGESTS[0][2],
        1: "17e79466cfc8ebb17e3c8905b2fcc448",
        2: "c8a891ae90cdf48f7016c35e40de36b0",
        99: "9ee36b60b6c57dc4330f8fd2cb0b756b",
    }


def test_streams_of_a_seed_share_no_counter_of_philox() -> None:
    """One key encrypts each counter to other words, so streams have none in common."""
    states = [np.random.Philox(5).jumped(number).state["state"] for number in (0, 1, 2)]
    assert len({state["key"].tobytes() for state in states}) == 1
    assert [state["counter"].tolist() for state in states] == [[0, 0, n, 0] for n in range(3)]


def test_a_longer_noise_begins_with_a_shorter_one() -> None:
    long = draw(5, (5000,))
    for count in (*range(300), 4321):
        assert np.array_equal(draw(5, (count,)), long[:count])


def test_nothing_is_asked_of_numpy_but_raw_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = digest(draw(3, (16, 2, 4, 4)))
    for name in ("Generator", "default_rng", "standard_normal", "RandomState"):
        monkeypatch.delattr(np.random, name)
    assert digest(draw(3, (16, 2, 4, 4))) == expected


def test_the_strips_and_the_logarithm_are_the_pinned_ones() -> None:
    assert [digest(table) for table in tables()] == TABLES
    places = np.arange(1, 1 << 24, 4099).astype(np.float32) * np.float32(2.0**-24)
    assert digest(np.array([log1p(-place) for place in places])) == LOGARITHMS


def test_the_noise_is_normal() -> None:
    noise = draw(11, (1_000_000,)).astype(np.float64)
    assert abs(noise.mean()) < 4e-3
    assert abs(noise.std() - 1) < 3e-3
    assert abs(np.mean(np.abs(noise) > 3.6541529) - 2.58e-4) < 7e-5  # the tail
    assert abs(np.mean(noise**4) - 3) < 0.03


@pytest.mark.parametrize("seed", [0, 7])
def test_a_run_starts_from_the_noise_of_its_seed(seed: int, place: Place) -> None:
    np.save(place.root / "noise.npy", draw(seed, (16, 2, 4, 4)))
    words = ("denoise", "--model", place.model, "--from", place.text(), *SMALL, "--stop-at", 1)
    steps = [
        record_of(place.made(*words, *start))
        for start in (("--seed", seed), ("--noise", "noise.npy"))
    ]
    assert steps[0]["key"] != steps[1]["key"]
    assert steps[0]["digest"] == steps[1]["digest"]
