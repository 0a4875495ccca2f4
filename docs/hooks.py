"""Fills the page of commands from click, when MkDocs builds the site.

A line `<!-- commands -->` becomes one section per command; `<!-- common options -->` the options
that several of them share.
"""

import html
from collections import Counter
from collections.abc import Iterator
from typing import Any

import click

from wanpipe.app import cli

COMMANDS, COMMON = "<!-- commands -->", "<!-- common options -->"
PIPE = "&#124;"
SHARED = 6  # commands that have an option, from which on it is described once for all


def on_page_markdown(markdown: str, **rest: Any) -> str:
    """Replace the markers of a page."""
    if COMMANDS not in markdown:
        return markdown
    found = list(commands(cli, click.Context(cli, info_name="wanpipe")))
    shared = common(found)
    described = "\n".join(line for context in found for line in section(context, shared))
    table = "\n".join(rows(shared.values()))
    return markdown.replace(COMMON, table).replace(COMMANDS, described)


def commands(group: click.Group, context: click.Context) -> Iterator[click.Context]:
    """Walk through the commands below a group, in the order that `--help` has."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        child = click.Context(command, info_name=name, parent=context)
        yield child
        if isinstance(command, click.Group):
            yield from commands(command, child)


def options(context: click.Context) -> list[click.Option]:
    """The visible options of a command, without --help."""
    found = [one for one in context.command.params if isinstance(one, click.Option)]
    return [one for one in found if not one.hidden and "--help" not in one.opts]


def common(found: list[click.Context]) -> dict[str, click.Option]:
    """Options that many commands have, with the same text in all of them."""
    rows = [row(option) for context in found for option in options(context)]
    count = Counter(rows)
    every = {row(option): option for context in found for option in options(context)}
    return {text: option for text, option in every.items() if count[text] >= SHARED}


def section(context: click.Context, shared: dict[str, click.Option]) -> Iterator[str]:
    """Describe one command: usage, help, its own options, and which shared ones it takes."""
    path, command = context.command_path, context.command
    yield f"{'#' * (1 + path.count(' '))} {path.removeprefix('wanpipe ')}\n"
    yield f"```text\n{path} {' '.join(command.collect_usage_pieces(context))}\n```\n"
    yield f"{text_of(command)}\n"
    mine = options(context)
    yield from rows(one for one in mine if row(one) not in shared)
    taken = [code(one.opts[0]) for one in mine if row(one) in shared]
    if taken:
        yield f"\nCommon options: {', '.join(taken)}.\n"


def text_of(command: click.Command) -> str:
    """The help of a command as Markdown."""
    paragraphs = (command.help or "").replace("\b\n", "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def rows(chosen: Any) -> Iterator[str]:
    """Draw a table of options, if there are any."""
    lines = [row(option) for option in chosen]
    if lines:
        yield "| Option | Description |\n|---|---|"
        yield from lines
        yield ""


def row(option: click.Option) -> str:
    """One option as a row: names, value, help, environment variable, default."""
    names = ", ".join(map(code, option.opts))
    value = "" if option.is_flag else option.make_metavar(click.Context(cli))
    text = (option.help or "").replace("|", PIPE)
    extra = option.get_help_extra(click.Context(cli))
    if "envvars" in extra:
        text += f" Environment: {', '.join(map(code, extra['envvars']))}."
    if "default" in extra:
        text += f" Default: {code(extra['default'])}."
    return f"| {names} {code(value)} | {text} |"


def code(text: str) -> str:
    """Set text in the font of code; in a table even `|` needs another spelling."""
    return f"<code>{html.escape(text).replace('|', PIPE)}</code>" if text else ""
