"""Seeds as people give them: 7, 1-20, 1,5,9, or a number of random ones."""

import random
import re
from collections.abc import Sequence
from typing import Any

import click

from wanpipe.errors import UsageError
from wanpipe.runtime.report import Report

MOST = 1000  # seeds of one command
DIGITS = 4000  # of a seed; Python reads at most 4300
RANDOM = 1 << 32  # random seeds are below this, as in other tools
FORM = re.compile(rf"(-?\d{{1,{DIGITS}}})(?:-(\d{{1,{DIGITS}}}))?", re.ASCII)


def parse_seeds(text: str, most: int = MOST) -> tuple[int, ...]:
    """Parse seeds such as 7, 1-20 or 1,5,9 or 1-3,8: each one once, in order.

    Raises UsageError for another form, or for more than `most`.
    """
    found: dict[int, None] = {}
    for part in text.split(","):
        form = FORM.fullmatch(part.strip())
        if form is None:
            raise UsageError(f"seeds must be like 7, 1-20 or 1,5,9, got {text[:40]!r}")
        first = int(form[1])
        last = first if form[2] is None else int(form[2])
        if first < 0:
            raise UsageError(f"seed must not be negative, got {first}; use 0 or more")
        if last < first:
            raise UsageError(
                f"a range of seeds must go up, got {part.strip()[:40]}; use {last}-{first}"
            )
        check_count(last - first + 1, most)
        found |= dict.fromkeys(range(first, last + 1))
        check_count(len(found), most)
    return tuple(found)


def check_count(count: int, most: int = MOST) -> None:
    """Raise UsageError for more seeds than one command takes."""
    if count > most:
        shown = str(count) if count < RANDOM else "many more"
        raise UsageError(f"one command takes at most {most} seeds, got {shown}; use several")


def draw_seeds(count: int) -> tuple[int, ...]:
    """Draw different random seeds. Raises UsageError for an invalid count."""
    if count < 1:
        raise UsageError(f"auto-seeds must be 1 or more, got {count}")
    check_count(count)
    return tuple(random.SystemRandom().sample(range(RANDOM), count))


def choose_seeds(given: Sequence[int], auto: int | None, report: Report) -> tuple[int, ...]:
    """Return the given seeds, or random ones, which are reported.

    Raises UsageError if both are asked for.
    """
    if auto is None:
        return tuple(given)
    if given:
        raise UsageError("--seed and --auto-seeds exclude each other; give one")
    drawn = draw_seeds(auto)
    listed = ",".join(map(str, drawn))
    report.remark(f"random seeds; to resume or repeat, use --seed {listed}")
    return drawn


class Seeds(click.ParamType[tuple[int, ...]]):
    """Seeds such as 7, 1-20 or 1,5,9."""

    name = "seeds"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[int, ...]:
        """Parse the seeds, or fail with click's message."""
        if isinstance(value, tuple):
            return value
        try:
            return parse_seeds(str(value))
        except UsageError as error:
            self.fail(str(error), parameter, context)


def join_seeds(
    context: click.Context, parameter: click.Parameter, value: Sequence[tuple[int, ...]]
) -> tuple[int, ...]:
    """Join the seeds of an option that is given several times, each one once."""
    joined = join(value)
    try:
        check_count(len(joined))
    except UsageError as error:
        raise click.BadParameter(str(error), context, parameter) from error
    return joined


def join(parts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return all seeds, each one once."""
    return tuple(dict.fromkeys(seed for part in parts for seed in part))


option = click.option(
    "--seed",
    "seeds",
    type=Seeds(),
    multiple=True,
    callback=join_seeds,
    metavar="N|N-M|N,M,...",
    help="Set the random seed, or several, for one video per seed. Repeatable.  [default: 0]",
)
auto_option = click.option(
    "--auto-seeds",
    type=int,
    metavar="N",
    help="Draw N random seeds, and print them.",
)
