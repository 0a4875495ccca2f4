"""The help of every command, pinned: tests/data/help.txt has it as people read it.

To accept a change, write the file anew with `python -m tests.test_help` and read its diff.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from wanpipe.app import cli

GOLDEN = Path(__file__).parent / "data" / "help.txt"
WIDTH = 80  # columns of the terminal
Names = tuple[str, ...]


def commands(group: click.Group = cli, above: Names = ()) -> Iterator[tuple[Names, click.Command]]:
    """Every command and subcommand with its names, the application itself first."""
    context = click.Context(group)
    yield above, group
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*above, name))
        else:
            yield (*above, name), command


def helps() -> str:
    """The help of every command at a fixed width."""
    runner, texts = CliRunner(), []
    for names, _ in commands():
        words = [*names, "--help"]
        shown = runner.invoke(cli, words, prog_name="wanpipe", terminal_width=WIDTH)
        assert shown.exit_code == 0, shown.output
        texts.append(f"$ wanpipe {' '.join(words)}\n{shown.output}")
    return "\n".join(texts)


def test_the_help_of_every_command_is_pinned() -> None:
    assert helps() == GOLDEN.read_text("utf-8")


COMMANDS = list(commands())
IDS = [" ".join(("wanpipe", *names)) for names, _ in COMMANDS]


def options(command: click.Command) -> Iterator[click.Option]:
    """The options of a command."""
    yield from (one for one in command.params if isinstance(one, click.Option))


@pytest.mark.parametrize(("names", "command"), COMMANDS, ids=IDS)
def test_every_command_and_option_has_a_sentence_of_help(
    names: Names, command: click.Command
) -> None:
    texts = [command.help or "", *(option.help or "" for option in options(command))]
    sentence = re.compile(r"[A-Z][a-z]+,? .*\.(  \[default: .*\])?", re.DOTALL)
    assert [text for text in texts if not sentence.fullmatch(text.strip())] == []


@pytest.mark.parametrize(("names", "command"), COMMANDS, ids=IDS)
def test_every_command_has_its_own_help_option(names: Names, command: click.Command) -> None:
    assert [option.opts for option in options(command)].count(["-h", "--help"]) == 1


@pytest.mark.parametrize(("names", "command"), COMMANDS, ids=IDS)
def test_no_summary_of_a_command_is_cut(names: Names, command: click.Command) -> None:
    assert not command.get_short_help_str(limit=WIDTH - 18).endswith("...")


def test_an_option_has_the_same_help_in_every_command() -> None:
    shared = {"--cache", "--dry-run", "--events", "--quiet", "--model", "--memory", "--seed"}
    found: dict[str, set[str]] = {}
    for names, command in commands():
        if names[:1] in (("cache",), ("download",)):
            continue  # ls filters by --model, gc and download have their own --dry-run
        for option in options(command):
            found.setdefault(option.opts[0], set()).add(option.help or "")
    assert {name: texts for name, texts in found.items() if name in shared and len(texts) > 1} == {}


if __name__ == "__main__":
    GOLDEN.write_text(helps(), "utf-8")
