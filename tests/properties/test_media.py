"""The metadata of a video reads back as written, whatever its characters."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.properties import repeatable
from wanpipe.media.video import read_metadata, write_video

# titles are prompts and comments are JSON, so neither has a NUL or half a surrogate pair
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
ESCAPED = st.text("=;#\\\n\r[] \t\x1b'\"a🐈", max_size=30)
FRAME = np.zeros((1, 16, 16, 3), np.uint8)


@pytest.mark.parametrize("name", ["film.mp4", "film.webm", "film.gif", "film.png"])
def test_a_video_keeps_any_title_and_comment(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder: Path = tmp_path_factory.mktemp("video")

    @settings(repeatable, max_examples=4)
    @given((TEXTS | ESCAPED).filter(bool), (TEXTS | ESCAPED).filter(bool))
    @example("ends with \\", "line\r\nline\\")
    @example("\\\\", "=;#[a]\\\n\n\\")
    def check(title: str, comment: str) -> None:
        path = write_video(folder / name, [FRAME], 8, {"title": title, "comment": comment})
        metadata = read_metadata(path)
        assert metadata["comment"] == comment
        assert name == "film.gif" or metadata["title"] == title

    check()
