"""Names of videos: fields are filled with what a video is made from, and stay safe names."""

from pathlib import Path

import pytest

from wanpipe.errors import UsageError
from wanpipe.media.names import (
    MAX_NAME_BYTES,
    Named,
    check_distinct,
    name_video,
    name_videos,
    words_of,
)

KEY = "0123456789abcdef0123456789abcdef"
CAT = Named(key=KEY, number=3, prompt="A cat, plays: the/piano & sings loudly", seed=7)


@pytest.mark.parametrize(
    ("output", "name"),
    [
        (None, "a-cat-plays-the-piano-sings-01234567.mp4"),
        ("{seed}.mp4", "7.mp4"),
        ("out/{n}-{seed}-{key}.gif", "out/3-7-01234567.gif"),
        ("{prompt}.webm", "a-cat-plays-the-piano-sings.webm"),
        ("{seed}{seed}", "77"),
        ("{n:03}-{seed:2}.mp4", "003- 7.mp4"),
        ("plain.mp4", "plain.mp4"),
        ("{}.mp4", "{}.mp4"),
        ("{1} {a b} {-} {{seed}} {n.mp4", "{1} {a b} {-} {7} {n.mp4"),
        ("{folder}/a.mp4", "{folder}/a.mp4"),
    ],
)
def test_fields_are_filled_and_other_braces_stay(output: str | None, name: str) -> None:
    assert name_video(None if output is None else Path(output), CAT) == Path(name)


def films(prompts: str, seeds: tuple[int | None, ...]) -> list[Named]:
    """Videos of prompts of one letter, and seeds."""
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    return [
        Named(key=f"{number}" * 32, number=number, prompt=prompt, seed=seed)
        for number, (prompt, seed) in enumerate(pairs, 1)
    ]


@pytest.mark.parametrize(
    ("output", "prompts", "seeds", "names"),
    [
        (None, "a", (7, 9), "a-11111111 a-22222222"),
        ("film", "a", (7,), "film"),
        ("film", "a", (7, 9), "film-7 film-9"),
        ("film", "a", (None, None), "film-1 film-2"),
        ("film", "ab", (7,), "film-1 film-2"),
        ("film", "ab", (7, 9), "film-1 film-2 film-3 film-4"),
        ("{prompt}", "a", (7, 9), "a-7 a-9"),
        ("{prompt}", "ab", (7,), "a b"),
        ("{prompt}", "ab", (7, 9), "a-7 a-9 b-7 b-9"),
        ("{prompt}", "aa", (7,), "a-1 a-2"),  # the first words of two prompts
        ("{prompt}", "ab", (None,), "a b"),
        ("{prompt}-{seed}", "ab", (7,), "a-7 b-7"),
        ("{n}", "ab", (7,), "1 2"),
    ],
)
def test_videos_get_their_seed_or_number_unless_their_names_differ(
    output: str | None, prompts: str, seeds: tuple[int | None, ...], names: str
) -> None:
    paths = name_videos(Path(f"{output}.gif") if output else None, films(prompts, seeds))
    assert [path.stem for path in paths] == names.split()


@pytest.mark.parametrize("output", ["{seed}.mp4", "cat-{seed}.mp4"])
def test_a_name_that_tells_only_seeds_apart_is_refused_for_two_prompts(output: str) -> None:
    with pytest.raises(UsageError, match=r"2 videos would be named .*7\.mp4; add"):
        name_videos(Path(output), films("ab", (7,)))


@pytest.mark.parametrize(
    "name", ["{sed}.mp4", "{seed}-{Prompt}.mp4", "{prompt__class__}.mp4", "{guide-scale}"]
)
def test_an_unknown_field_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"is no field of a name; use \{seed\}, \{key\}"):
        name_video(Path(name), CAT)


@pytest.mark.parametrize("name", ["{prompt:3}.mp4", "{key:08}", "{n:999}", "{seed!r}", "{n:>3}"])
def test_a_form_that_is_no_width_of_a_number_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="only numbers have a form, their width"):
        name_video(Path(name), CAT)


def test_a_field_that_a_video_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match="the video has no seed; leave it out"):
        name_video(Path("{seed}.mp4"), Named(key=KEY))
    with pytest.raises(UsageError, match="the video has no prompt"):
        name_video(Path("{prompt}.mp4"), Named(key=KEY, seed=1))


@pytest.mark.parametrize("output", ["{prompt}.mp4", "{prompt}-{prompt}-{seed}-{key}.mp4"])
@pytest.mark.parametrize("letters", ["𠀀" * 90, "猫" * 90, "word " * 90, "x" * 900])
def test_a_long_prompt_is_cut_to_a_name_that_file_systems_take(output: str, letters: str) -> None:
    name = name_video(Path(output), Named(key=KEY, prompt=letters, seed=1 << 32)).name
    assert 20 < len(name.encode()) <= MAX_NAME_BYTES


@pytest.mark.parametrize("prompt", ["../../etc/passwd", "-rf *", ".hidden", "a\0b\n\x1b[2J", "%s"])
def test_a_prompt_gives_only_letters_digits_and_hyphens(prompt: str) -> None:
    words = words_of(prompt)
    assert words.replace("-", "").isalnum()
    assert words[0] != "-"


def test_a_prompt_without_letters_still_names_a_video() -> None:
    assert words_of("?! …") == "video"


def test_videos_of_one_name_are_refused() -> None:
    check_distinct([Path("a.mp4"), Path("b.mp4")])
    with pytest.raises(UsageError, match=r"2 videos would be named a\.mp4; add"):
        check_distinct([Path("a.mp4"), Path("b.mp4"), Path("a.mp4")])
