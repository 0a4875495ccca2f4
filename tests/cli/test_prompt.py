"""--prompt -: the prompt is what standard input has, read with a limit and interruptible."""

import os
import signal
import subprocess
import sys

import pytest

from tests.workshop import PROMPT, Place
from wanpipe.runtime import documents, interrupt
from wanpipe.runtime.interrupt import Interrupted


def encode(place: Place, text: bytes | None, *more: object) -> subprocess.CompletedProcess[bytes]:
    """Encode the prompt on standard input; None: it is closed."""
    words = ["encode-text", "--model", place.model, "--prompt", "-", *more]
    command = [sys.executable, "-m", "wanpipe", *map(str, words)]
    if text is None:
        command = ["sh", "-c", '"$@" <&-', "sh", *command]
    return subprocess.run(command, cwd=place.root, input=text, capture_output=True)


@pytest.mark.parametrize("text", [PROMPT, f"\ufeff \n{PROMPT}\n\n"])
def test_a_prompt_on_standard_input_is_the_same_as_an_argument(text: str, studio: Place) -> None:
    result = encode(studio, text.encode())
    assert result.stdout.decode().strip() == str(studio.text().relative_to(studio.root))
    assert b"cached" in result.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "standard input has no prompt"),
        (b" \n", "standard input has no prompt"),
        (None, "standard input has no prompt"),
        (b"\xff", "standard input cannot be read as a prompt: 'utf-8' codec"),
        (b"a\0b", "a prompt must be text, got a NUL"),
        (b"x" * ((1 << 17) + 1), "it is larger than 131072 bytes"),
    ],
    ids=["empty", "blank", "closed", "not UTF-8", "NUL", "long"],
)
def test_standard_input_that_is_no_prompt_is_refused(
    text: bytes | None, says: str, studio: Place
) -> None:
    result = encode(studio, text)
    [line] = result.stderr.decode().splitlines()
    assert (result.returncode, result.stdout) == (2, b"")
    assert says in line


def test_waiting_for_a_prompt_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"a cat")  # and more may come
    checks = iter([None, None, Interrupted(signal.SIGINT)])

    def check() -> None:
        if (error := next(checks)) is not None:
            raise error

    monkeypatch.setattr(documents, "STDIN", reader)
    monkeypatch.setattr(interrupt, "check", check)
    with pytest.raises(Interrupted):
        documents.read_stdin(100)
    os.close(writer)
    os.close(reader)
