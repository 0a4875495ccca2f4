"""How the devices of a group may divide a step."""

import pytest

from wanpipe.backend.ways import Way, possible_ways


@pytest.mark.parametrize(
    ("devices", "passes", "splits", "ways"),
    [
        (1, 2, False, [Way()]),
        (2, 2, False, [Way(apart=2), Way(shares=2)]),
        (2, 1, True, [Way(shares=2)]),
        (3, 2, True, [Way(shares=3)]),
        (4, 2, True, [Way(apart=2, shares=2), Way(shares=4)]),
        (4, 2, False, [Way(shares=4)]),
        (8, 2, True, [Way(apart=2, shares=4), Way(shares=8)]),
    ],
)
def test_passes_apart_come_first_where_the_group_allows_it(
    devices: int, passes: int, splits: bool, ways: list[Way]
) -> None:
    assert possible_ways(devices, passes, splits) == ways
    assert {way.devices for way in ways} == {devices}


def test_neighbours_share_the_tokens_of_a_pass() -> None:
    assert [Way(apart=2, shares=2).part(rank) for rank in range(4)] == [0, 0, 1, 1]
