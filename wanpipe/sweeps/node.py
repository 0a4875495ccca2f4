"""A node of a sweep: one command of wanpipe, the entry that it makes, and what became of it."""

from dataclasses import dataclass
from typing import Literal

State = Literal["exists", "done", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Node:
    """A command to run, which makes the entry `key` of `stage` from the entries of other nodes.

    `command` has the arguments of `wanpipe` without --cache, --remote and --push, which belong to
    the machine. `needs` are keys of nodes. A denoising node takes all steps of one network up to
    the step of its key. `network` is the content hash of the component that the command loads, so
    that a worker can keep it. Nodes of a lower `rank` come first.
    """

    key: str
    stage: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    exists: bool = False
    network: str | None = None
    rank: int = 0
    units: int = 1  # steps, prompts, images or videos
    memory: int = 0  # peak, in bytes
    seconds: float | None = None  # expected time; None if no entry tells it
    size: int = 0  # bytes on disk, as far as they can be told
    videos: tuple[str, ...] = ()  # names of the sweep's videos that need this node
    output: str | None = None  # the path of the video that the command writes


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


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video of a sweep: its name, its path, the values that it is made with, by option, and the
    key of its entry by stage.
    """

    name: str
    path: str
    values: dict[str, object]
    keys: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The nodes of a sweep, each once, ordered so that a node follows all that it needs.

    `varied` are the options in which the videos differ.
    """

    nodes: tuple[Node, ...]
    videos: tuple[Video, ...] = ()
    varied: tuple[str, ...] = ()
