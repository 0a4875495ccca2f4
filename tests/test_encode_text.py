"""encode-text: one entry per prompt, T5 loaded at most once."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workshop import PROMPT, Models, Place
from wanpipe.models.variants import NEGATIVE
from wanpipe.store.index_file import FILE
from wanpipe.store.keys import hash_file


def progress(result: object) -> list[str]:
    """Labels of the stretches of work that were done: T5 going through its layers is one."""
    events = result.events  # type: ignore[attr-defined]
    return [event["stage"] for event in events if event["event"] == "progress"]


def test_several_prompts_go_through_t5_together(place: Place) -> None:
    words = ("encode-text", "--model", place.model, "--prompt", "a", "--prompt", "b")
    one = place.do(*words[:-2])
    both = place.do(*words, "--prompt", "c")
    assert len(both.paths) == 3
    assert both.paths[0] == one.paths[0]
    assert len(both.computed()) == 2
    assert len(progress(both)) == len(progress(one)) > 0  # each layer once


def test_encoding_alone_or_together_gives_the_same_entry(place: Place, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other", place.model)
    alone = place.entry(place.text("a dog"))
    words = ("--prompt", "a much longer prompt than the other one", "--prompt", "a dog")
    together = other.entry(other.made("encode-text", "--model", other.model, *words))
    assert together.key == alone.key
    assert together.record.digest == alone.record.digest


def test_prompts_of_a_file_are_one_a_line_in_order(place: Place) -> None:
    (place.root / "prompts.txt").write_text("one\n\n  \ntwo\n一只猫\n", encoding="utf-8")
    words = ("encode-text", "--model", place.model)
    made = place.do(*words, "--prompt", "zero", "--prompt-file", "prompts.txt")
    prompts = [place.entry(path).made.prompt for path in made.paths]
    assert prompts == ["zero", "one", "two", "一只猫"]


def test_only_line_ends_divide_prompts(place: Place) -> None:
    lines = ["a\u2028b", "c\x85d", "e\x0bf", "g\x0ch", "i\x1cj", "k"]
    text = "\ufeff" + "\r\n".join(lines[:3]) + "\r" + "\n".join(lines[3:])
    (place.root / "prompts.txt").write_bytes(text.encode())
    made = place.do("encode-text", "--model", place.model, "--prompt-file", "prompts.txt")
    assert [place.entry(path).made.prompt for path in made.paths] == lines


def test_prompts_may_come_through_a_pipe_but_are_not_waited_for(place: Place) -> None:
    os.mkfifo(place.root / "pipe")
    words = ("encode-text", "--model", place.model, "--prompt-file")
    place.refuse(*words, "pipe", code=2, says="has no prompt")
    place.refuse(*words, "/dev/zero", code=2, says="larger than 16777216 bytes")
    wanpipe = shlex.join([sys.executable, "-m", "wanpipe", *map(str, words)])
    done = subprocess.run(
        ["bash", "-c", f"{wanpipe} <(sleep 0.3; echo one; echo two)"],
        cwd=place.root,
        capture_output=True,
        text=True,
    )
    assert len(done.stdout.split()) == 2, done.stderr


def test_names_of_several_prompts_are_numbered(place: Place) -> None:
    words = ("encode-text", "--model", place.model, "--prompt", "a", "--prompt", "b")
    made = place.do(*words, "--name", "pair")
    shown = [place.do("show", f"pair-{number}", "--json") for number in (1, 2)]
    for path, result in zip(made.paths, shown, strict=True):
        assert Path(path).name in " ".join(result.paths)


def negative(place: Place, *more: str) -> tuple[str, str]:
    """The key, and the negative prompt that was taken."""
    entry = place.entry(place.made("encode-text", "--model", place.model, "--prompt", "a", *more))
    return entry.key, entry.made.negative_prompt


def test_an_empty_negative_prompt_is_the_models_own(place: Place) -> None:
    assert negative(place, "--negative-prompt", "") == negative(place)
    assert negative(place)[1] == NEGATIVE


def test_the_empty_text_is_taken_only_when_asked_for(place: Place) -> None:
    key, prompt = negative(place, "--no-negative-prompt")
    assert prompt == ""
    assert key != negative(place)[0]
    assert place.entry(place.cache / "encode-text" / key).shape("negative")[0] == 1


def test_the_same_text_in_other_spelling_is_the_same_entry(place: Place) -> None:
    spellings = (PROMPT, f"  {PROMPT}\n", PROMPT.replace(" ", "\t  "), PROMPT.replace("a", "ａ"))
    assert len({place.text(spelling) for spelling in spellings}) == 1


def test_models_with_the_same_t5_share_texts(place: Place, models: Models) -> None:
    text = place.text()
    for name in ("wan22-t2v-a14b", "wan22-ti2v-5b"):
        again = place.do("encode-text", "--model", models(name), "--prompt", PROMPT)
        assert not again.computed()
        assert again.paths == [str(text.relative_to(place.root))]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "no prompt is given"),
        (("--prompt-file", "nowhere.txt"), "nowhere.txt cannot be read"),
        (("--prompt-file", "empty.txt"), "has no prompt"),
        (("--prompt-file", "latin.txt"), "as UTF-8 text"),
        (("--prompt", "a", "--negative-prompt", "b", "--no-negative-prompt"), "exclude each other"),
        (("--prompt", "a\0b"), "got a NUL at character 2"),
        (("--prompt", "cat \udcff"), "lone surrogate U+DCFF at character 5"),
        (("--prompt", "a", "--negative-prompt", "\ud800"), "lone surrogate U+D800"),
    ],
)
def test_a_wrong_prompt_is_refused(words: tuple[str, ...], says: str, place: Place) -> None:
    (place.root / "empty.txt").write_text("\n\n")
    (place.root / "latin.txt").write_bytes(b"caf\xe9\n")
    place.refuse("encode-text", "--model", place.model, *words, code=2, says=says)


def test_the_tokenizer_is_opened_once_for_a_text(place: Place, opened: list[str]) -> None:
    words = ("encode-text", "--model", place.model, "--prompt", "a  cat")
    first = place.do(*words)
    assert len(opened) == 1
    again = place.do(*words)
    spelled = place.do(*words[:-1], "a cat", "--prompt", " a\tcat")
    assert len(opened) == 1
    assert [*again.paths, *spelled.paths] == first.paths * 3
    place.do(*words, "--prompt", "a dog")
    assert len(opened) == 2


def test_remembered_ids_give_the_keys_of_the_tokenizer(place: Place, opened: list[str]) -> None:
    words = ("encode-text", "--model", place.model, "--prompt", "a cat", "--prompt", "hat " * 999)
    paths = place.do(*words).paths
    shutil.rmtree(place.cache / "encode-text")
    assert place.do(*words).paths == paths
    assert len(opened) == 1
    (place.cache / FILE).write_bytes(b"damaged")
    assert place.do(*words).paths == paths
    assert len(opened) == 2


def test_another_tokenizer_is_checked_and_opened(
    place: Place, opened: list[str], tmp_path: Path
) -> None:
    words = ("encode-text", "--prompt", "a cat", "--model")
    first = place.do(*words, place.model)
    model = shutil.copytree(place.model, tmp_path / "other")
    file = model / "tokenizer.json"
    file.write_bytes(file.read_bytes() + b"\n")
    place.refuse(*words, model, code=1, says="must have")
    config = json.loads((model / "config.json").read_text())
    config["components"]["tokenizer"].update(bytes=file.stat().st_size)
    (model / "config.json").write_text(json.dumps(config))
    place.refuse(*words, model, code=1, says="does not have the content hash")
    config["components"]["tokenizer"].update(hash=hash_file(file))
    (model / "config.json").write_text(json.dumps(config))
    assert len(opened) == 1
    assert place.do(*words, model).paths != first.paths
    assert len(opened) == 2


def test_a_dry_run_reads_remembered_ids_and_stores_none(place: Place, opened: list[str]) -> None:
    words = ("encode-text", "--model", place.model, "--prompt", "a cat")
    place.do(*words)
    place.do(*words, "--dry-run")
    assert len(opened) == 1
    index = (place.cache / FILE).read_bytes()
    for _ in range(2):
        place.do(*words, "--prompt", "a dog", "--dry-run")
    assert len(opened) == 3
    assert (place.cache / FILE).read_bytes() == index


def test_a_wrong_prompt_is_refused_beside_remembered_ones(place: Place, opened: list[str]) -> None:
    words = ("encode-text", "--model", place.model, "--prompt", "a cat")
    place.do(*words)
    place.refuse(*words, "--prompt", "a\0b", code=2, says="got a NUL at character 2")
    assert len(opened) == 1


def test_the_cache_is_kept_in_order_beside_remembered_ids(place: Place, opened: list[str]) -> None:
    words = ("encode-text", "--model", place.model, "--prompt", "a cat")
    first = place.do(*words)
    place.do("cache", "verify")
    assert len(place.do("cache", "ls").paths) > 0
    place.do("cache", "gc", "--max-size", "0")
    again = place.do(*words)
    assert again.computed()
    assert again.paths == first.paths
    assert len(opened) == 1
