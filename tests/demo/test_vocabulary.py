"""The vocabulary of the demo models: what a prompt names, omits, and adds."""

from wanpipe.demo import vocabulary, world


def test_words_in_no_caption_are_unknown() -> None:
    unknown = vocabulary.unknown_words("A cat, red as a Fox, moves left over stripes")
    assert unknown == ["cat", "as", "fox"]
    assert not any(vocabulary.unknown_words(text) for text, _ in world.test_prompts())


def test_only_shape_is_a_name_of_a_kind_of_word_that_captions_have() -> None:
    assert vocabulary.unknown_words("a shape that is a color") == ["color"]


def test_a_prompt_must_name_shape_color_and_motion() -> None:
    assert vocabulary.missing("a red thing on a white background") == ["shape", "motion"]
    assert vocabulary.missing("a red circle rises") == []


def test_the_summary_is_one_line_that_names_every_kind() -> None:
    summary = vocabulary.summary()
    assert "\n" not in summary
    assert all(word in summary for word in (*world.SHAPES, *world.COLORS, *world.BACKGROUNDS))
    assert all(f"{kind}s: " in summary for kind in vocabulary.WORDS)
