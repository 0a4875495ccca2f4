"""Formats and parses sizes, ages and texts of the command line."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache

from wanpipe.errors import UsageError
from wanpipe.runtime.text import printable

SIZES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
ROUNDS_UP = 999.5  # what three digits show as 1000
AGES = {"m": 60, "h": 3600, "d": 86400, "w": 604800}  # seconds
SIZE_PATTERN = re.compile(r"(\d{1,40}(?:\.\d{1,40})?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)
AGE_PATTERN = re.compile(r"(\d{1,40}(?:\.\d{1,40})?)\s*([mhdw])")


def format_si(count: int, unit: str) -> str:
    """Format a count with a decimal prefix: 1.42 B, 512 kB, 2.84 GB."""
    size = float(count)
    prefixes = ["", "k", "M", "G", "T"] if unit else ["", "k", "M", "B"]
    place = 0
    while size >= ROUNDS_UP and place < len(prefixes) - 1:
        size, place = size / 1000, place + 1
    number = f"{size:.3g}" if size < ROUNDS_UP else f"{size:.0f}"
    return f"{number} {prefixes[place]}{unit}".rstrip()


def parse_size(text: str) -> int:
    """Parse a size such as 50GB, 1.5T or 64GiB as bytes. Raises UsageError."""
    from fractions import Fraction

    form = SIZE_PATTERN.fullmatch(text.strip())
    if form is None or (form[3] and not form[2]):
        raise UsageError(f"a size must be like 50GB or 500M, got {text[:40]!r}")
    units = BINARY if form[3] else SIZES
    return int(Fraction(form[1]) * units[form[2].upper()])


def parse_age(text: str) -> float:
    """Parse an age such as 30d, 12h, 2w or 90m as seconds. Raises UsageError."""
    form = AGE_PATTERN.fullmatch(text.strip())
    if form is None:
        raise UsageError(f"an age must be like 30d, 12h, 2w or 90m (minutes), got {text[:40]!r}")
    return float(form[1]) * AGES[form[2]]


def parse_timestamp(moment: str) -> float:
    """Parse the time of a record (ISO text) as seconds since 1970; 0 if it is invalid."""
    try:
        time = datetime.fromisoformat(moment)
    except ValueError:
        return 0.0
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def format_age(seconds: float) -> str:
    """Format an age in its largest unit: 40 s, 5 min, 3 h, 12 d."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{max(0, int(seconds // unit))} {name}"
    return f"{int(seconds // 86400)} d"


def format_duration(seconds: float) -> str:
    """Format a duration as 0:05, 12:03 or 1:02:03."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@lru_cache(4096)
def quote(text: str, length: int = 40) -> str:
    """Return a prompt in quotation marks, cut to `length`, in printable characters."""
    clean = printable(text)
    return f"“{clean if len(clean) <= length else clean[: length - 1] + '…'}”"


def format_table(rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> str:
    """Format rows in columns; those in `right` are aligned right."""
    columns = []
    for index, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        flush = str.rjust if index in right else str.ljust
        columns.append([flush(cell, width) for cell in column])
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))
