"""Seeds as people give them: ranges, lists, and random ones that can be repeated."""

import re

import pytest

from tests.workshop import SMALL, Place
from wanpipe.cli.seeds import MOST, RANDOM, draw_seeds, parse_seeds
from wanpipe.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("7", (7,)),
        ("1-4", (1, 2, 3, 4)),
        ("1,5,9", (1, 5, 9)),
        ("9, 1-3, 2", (9, 1, 2, 3)),
        ("5-5", (5,)),
        ("123456789012345678901234567890", (123456789012345678901234567890,)),
        (f"1-{MOST}", tuple(range(1, MOST + 1))),
    ],
)
def test_ranges_and_lists_are_read_in_order_each_seed_once(
    text: str, seeds: tuple[int, ...]
) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must be like 7, 1-20 or 1,5,9"),
        ("a", "must be like"),
        ("1,,2", "must be like"),
        ("1-", "must be like"),
        ("1-2-3", "must be like"),
        ("1.5", "must be like"),
        ("٣", "must be like"),
        ("9" * 5000, "must be like"),
        ("-1", "seed must not be negative, got -1"),
        ("-3-5", "seed must not be negative, got -3"),
        ("9-3", "must go up, got 9-3; use 3-9"),
        ("0-1000", "at most 1000 seeds, got 1001"),
        ("1-999999999999999999999999", "at most 1000 seeds, got many more"),
        ("1-600,601-1200", "at most 1000 seeds, got 1200"),
    ],
)
def test_other_seeds_are_refused_before_any_is_listed(text: str, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_seeds(text)
    assert says in str(refused.value)
    assert len(str(refused.value)) < 120


def test_random_seeds_differ() -> None:
    drawn = draw_seeds(MOST)
    assert len(set(drawn)) == MOST
    assert all(0 <= seed < RANDOM for seed in drawn)
    assert drawn != draw_seeds(MOST)


def test_a_range_of_seeds_makes_a_video_for_each(studio: Place) -> None:
    made = studio.film("--seed", "0-1", "--seed", "1,3", "--output", "{n}-{seed}.gif")
    assert made.paths == ["1-0.gif", "2-1.gif", "3-3.gif"]
    assert len(made.computed("denoise")) == 8  # seed 0 is in the cache
    assert not studio.film("--seed", 3).computed()


def test_random_seeds_are_printed_recorded_and_repeat_the_video(studio: Place) -> None:
    made = studio.film("--auto-seeds", 2, "--output", "{seed}.gif")
    remark = next(event["text"] for event in made.events if event["event"] == "remark")
    found = re.fullmatch(r"random seeds; to resume or repeat, use --seed ((\d+),(\d+))", remark)
    assert found
    assert made.paths == [f"{found[2]}.gif", f"{found[3]}.gif"]
    steps = [event["path"] for event in made.computed("denoise")]
    assert [str(studio.run(steps[index]).seed) for index in (0, -1)] == [found[2], found[3]]
    assert not studio.film("--seed", found[1], "--output", "{seed}.gif").computed()


def test_seeds_that_cannot_be_are_refused(studio: Place) -> None:
    run = ("run", "--model", studio.model, "--prompt", "a cat", *SMALL)
    studio.refuse(*run, "--seed", "1-1001", code=2, says="at most 1000 seeds, got 1001")
    both = ("--seed", "1-600", "--seed", "700-1300")
    studio.refuse(*run, *both, code=2, says="at most 1000 seeds, got 1201")
    studio.refuse(*run, "--auto-seeds", 0, code=2, says="auto-seeds must be 1 or more, got 0")
    studio.refuse(*run, "--auto-seeds", 1001, code=2, says="at most 1000 seeds")
    studio.refuse(
        *run, "--auto-seeds", 2, "--seed", 1, code=2, says="--seed and --auto-seeds exclude"
    )


def test_fields_of_an_output_are_filled_and_checked_before_the_work(studio: Place) -> None:
    run = ("run", "--model", studio.model, "--prompt", "a cat", *SMALL, "--seed", "8,9")
    studio.refuse(*run, "--output", "{sed}.mp4", code=2, says="{sed} in {sed}.mp4 is no field")
    step = studio.made("denoise", "--from", studio.text(), *SMALL, "--seed", 8)
    made = studio.do("decode", "--from", step, "--output", "{prompt}-{seed}-{key}-{n}.gif")
    assert (studio.root / f"a-cat-plays-the-piano-8-{step.name[:8]}-1.gif").is_file()
    frames = made.paths[-1]
    studio.do("decode", "--from", frames, "--output", "{seed}.gif")
    assert (studio.root / "8.gif").is_file()
