"""A node of a sweep: one command of wanpipe, and the entry that it makes."""

from dataclasses import dataclass


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
