"""The graph of a sweep: merges what its videos have in common, and cuts denoising into nodes.

A run is cut after the draft, where another expert takes over, and where runs part. Every node of it
has the command of the whole run with --stop-at: it continues at the last step that exists, so it
needs no record of the run and takes up what an interrupted one has left.
"""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from wanpipe.store import Run, Store
from wanpipe.sweeps.costs import Network
from wanpipe.sweeps.node import Graph, Node, Video

INPUTS, DRAFT, REST, DECODE = 0, 1, 3, 5  # ranks; the second expert comes after the first one


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The steps of a run, in order: the network of each, the command that takes them all from the
    noise, the keys of the entries that it needs, and the size of a step in bytes.
    """

    run: Run
    networks: tuple[Network, ...]
    command: tuple[str, ...]
    needs: tuple[str, ...]
    size: int


@dataclass
class Builder:
    """Collects what the videos of a sweep need, and builds the graph. `draft` is the number of
    steps that all videos take before any takes more.
    """

    store: Store
    draft: int | None = None
    nodes: dict[str, Node] = field(default_factory=dict)
    chains: dict[str, Chain] = field(default_factory=dict)  # by the key of the last step
    videos: list[Video] = field(default_factory=list)

    def add(self, node: Node) -> None:
        """Add a node unless it is there."""
        self.nodes.setdefault(node.key, node)

    def add_video(self, video: Video, chain: Chain, frames: Node) -> None:
        """Add a video with its steps and its frames."""
        self.chains.setdefault(chain.run.last, chain)
        self.add(frames)
        self.videos.append(video)

    def build(self, varied: Sequence[str] = ()) -> Graph:
        """Return the graph of all that is needed. An entry that only existing ones were made from
        is not in it.
        """
        steps: dict[str, Node] = {}
        forks = forks_of(self.chains.values())
        cuts = {last: list(self.cuts(chain, forks)) for last, chain in self.chains.items()}
        ends = [self.chains[last].run.steps[stop - 1] for last in cuts for stop in cuts[last]]
        self.expect("denoise", ends)
        for last, chain in self.chains.items():
            for node in self.segments(chain, cuts[last]):
                steps.setdefault(node.key, node)
        every = {**self.looked_up(), **steps}
        users: dict[str, list[str]] = {}
        for video in self.videos:
            for key in needed(every, video.keys["decode"]):
                users.setdefault(key, []).append(video.name)
        # inputs were added before what needs them; the sort keeps that order
        found = [replace(every[key], videos=tuple(users[key])) for key in every if key in users]
        networks = {node.network: index for index, node in reversed(list(enumerate(found)))}
        found.sort(key=lambda node: (node.rank, networks[node.network]))
        return Graph(nodes=tuple(found), videos=tuple(self.videos), varied=tuple(varied))

    def looked_up(self) -> dict[str, Node]:
        """Return the nodes of inputs and frames. Of an input, whether it exists is found here."""
        inputs = [node for node in self.nodes.values() if node.stage != "decode"]
        for stage in {node.stage for node in inputs}:
            self.expect(stage, [node.key for node in inputs if node.stage == stage])
        there = {node.key for node in inputs if self.store.has(node.stage, node.key)}
        return {
            key: replace(one, exists=one.exists or key in there) for key, one in self.nodes.items()
        }

    def expect(self, stage: str, keys: Sequence[str]) -> None:
        """Look up entries in the remote together, if there is one."""
        if self.store.remote is not None:
            here = self.store.path
            self.store.remote.expect(stage, [key for key in keys if not here(stage, key).is_dir()])

    def cuts(self, chain: Chain, forks: set[str]) -> Iterator[int]:
        """Yield how many steps of a chain are taken at the end of each of its nodes."""
        steps, networks = chain.run.steps, chain.networks
        for stop in range(1, len(steps)):
            other = networks[stop].hash != networks[stop - 1].hash
            if other or stop == self.draft or steps[stop - 1] in forks:
                yield stop
        yield len(steps)

    def segments(self, chain: Chain, cuts: Sequence[int]) -> Iterator[Node]:
        """Yield the nodes of a chain, from the noise to the last step."""
        steps, start = chain.run.steps, 0
        before: tuple[str, ...] = ()
        for stop in cuts:
            key, network = steps[stop - 1], chain.networks[stop - 1]
            exists = self.store.has("denoise", key)
            todo = 0 if exists else self.todo(steps[start:stop])
            drafted = self.draft is not None and stop <= self.draft
            whole = stop == len(steps)
            yield Node(
                key=key,
                stage="denoise",
                command=chain.command if whole else (*chain.command, "--stop-at", str(stop)),
                needs=(*chain.needs, *before),
                exists=exists,
                network=network.hash,
                rank=(DRAFT if drafted else REST) + network.place,
                units=stop - start if exists else todo,
                memory=network.memory,
                seconds=network.seconds(todo),
                size=todo * chain.size,
            )
            start, before = stop, (key,)

    def todo(self, steps: Sequence[str]) -> int:
        """Return how many of consecutive steps follow the last one in the cache."""
        for count, key in enumerate(reversed(steps)):
            if self.store.path("denoise", key).is_dir():
                return count
        return len(steps)


def forks_of(chains: Iterable[Chain]) -> set[str]:
    """Return the keys of the steps that different steps follow."""
    after: dict[str, str] = {}
    forks: set[str] = set()
    for chain in chains:
        for step, following in zip(chain.run.steps, chain.run.steps[1:], strict=False):
            if after.setdefault(step, following) != following:
                forks.add(step)
    return forks


def needed(nodes: dict[str, Node], key: str) -> Iterator[str]:
    """Yield the key of a node, and those of all that must be there to make it."""
    waiting, seen = [key], {key}
    while waiting:
        node = nodes[waiting.pop()]
        yield node.key
        wanted = [] if node.exists else [one for one in node.needs if one not in seen]
        seen.update(wanted)
        waiting += wanted


def levels(graph: Graph) -> dict[str, int]:
    """Return the level of each node to make, by key: all nodes of a level can be made at once,
    after those of the levels before it.
    """
    found: dict[str, int] = {}
    for node in graph.nodes:
        if not node.exists:
            found[node.key] = 1 + max((found.get(key, -1) for key in node.needs), default=-1)
    return found


def plan_rows(graph: Graph, store: Store) -> Iterator[dict[str, Any]]:
    """Yield each node as JSON, for programs that carry it out. `shell` is its command for a shell.

    An existing node has no level.
    """
    level = levels(graph)
    for node in graph.nodes:
        words = ["wanpipe", *node.command]
        yield {
            **asdict(node),
            "command": words,
            "shell": shlex.join(words),
            "path": str(store.path(node.stage, node.key).absolute()),
            "level": level.get(node.key),
        }


def summary(graph: Graph) -> Iterator[dict[str, Any]]:
    """Yield the events that tell how much there is to do: for each stage, and for all."""
    todo = [node for node in graph.nodes if not node.exists]
    for stage in dict.fromkeys(node.stage for node in graph.nodes):
        own = [node for node in todo if node.stage == stage]
        cached = sum(node.stage == stage for node in graph.nodes) - len(own)
        units = sum(node.units for node in own)
        yield {"kind": "nodes", "stage": stage, "nodes": len(own), "units": units, "cached": cached}
    missing = {name for node in todo for name in node.videos}
    times = [node.seconds for node in todo]
    known = [time for time in times if time is not None]
    yield {
        "kind": "sweep",
        "videos": len(graph.videos),
        "missing": len(missing),
        "seconds": round(sum(known), 1) if len(known) == len(times) else None,
        "bytes": sum(node.size for node in todo),
        "peak_bytes": max((node.memory for node in todo), default=0),
    }
