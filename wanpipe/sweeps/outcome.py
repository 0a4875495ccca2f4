"""What became of a node of a sweep."""

from dataclasses import dataclass
from typing import Literal

State = Literal["exists", "done", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a node: made by a `worker` in so many `seconds`, failed with one line, or
    skipped because something that it needs failed.

    `computed` counts the entries that were computed, and `loaded` names the networks.
    """

    key: str
    state: State
    error: str | None = None
    seconds: float = 0.0
    worker: str | None = None
    computed: int = 0
    loaded: tuple[str, ...] = ()
