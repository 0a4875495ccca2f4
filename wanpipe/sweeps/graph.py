"""The graph of a sweep: merges what its videos have in common, and cuts denoising into nodes.

A run is cut after the draft, where another expert takes over, and where runs part. Every node of it
has the command of the whole run with --stop-at: it continues at the last step that exists, so it
needs no record of the run and takes up what an interrupted one has left.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from wanpipe.store import Run
from wanpipe.sweeps.node import Graph, Node, Video

Has = Callable[[str, str], bool]  # whether the entry of a stage and a key exists
INPUTS, DRAFT, REST, DECODE = 0, 1, 3, 5  # ranks; the second expert comes after the first one


@dataclass(frozen=True, kw_only=True)
class Network:
    """The network of a node: its content hash, and what one unit of its work takes.

    `place` is 0 for the first expert of a run, and 1 for the second. `speed` is in operations per
    second, None if it is not known.
    """

    hash: str
    place: int = 0
    memory: int = 0
    flops: float = 0.0
    speed: float | None = None

    def seconds(self, units: int) -> float | None:
        """Return the expected time of some units; None if it is not known."""
        return units * self.flops / self.speed if self.speed else None


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

    has: Has
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
        for chain in self.chains.values():
            for node in self.segments(chain, forks):
                steps.setdefault(node.key, node)
        every = {**self.nodes, **steps}
        users: dict[str, list[str]] = {}
        for video in self.videos:
            for key in needed(every, video.keys["decode"]):
                users.setdefault(key, []).append(video.name)
        # inputs were added before what needs them; the sort keeps that order
        found = [replace(every[key], videos=tuple(users[key])) for key in every if key in users]
        networks = {node.network: index for index, node in reversed(list(enumerate(found)))}
        found.sort(key=lambda node: (node.rank, networks[node.network]))
        return Graph(nodes=tuple(found), videos=tuple(self.videos), varied=tuple(varied))

    def segments(self, chain: Chain, forks: set[str]) -> Iterator[Node]:
        """Yield the nodes of a chain, from the noise to the last step."""
        steps, start = chain.run.steps, 0
        before: tuple[str, ...] = ()
        for stop in range(1, len(steps) + 1):
            key, network = steps[stop - 1], chain.networks[stop - 1]
            last = stop == len(steps)
            if not (last or stop == self.draft or key in forks):
                if chain.networks[stop].hash == network.hash:
                    continue
            exists = self.has("denoise", key)
            todo = 0 if exists else self.todo(steps[start:stop])
            drafted = self.draft is not None and stop <= self.draft
            yield Node(
                key=key,
                stage="denoise",
                command=chain.command if last else (*chain.command, "--stop-at", str(stop)),
                needs=(*chain.needs, *before),
                exists=exists,
                network=network.hash,
                rank=(DRAFT if drafted else REST) + network.place,
                units=stop - start,
                memory=network.memory,
                seconds=0.0 if exists else network.seconds(todo),
                size=todo * chain.size,
            )
            start, before = stop, (key,)

    def todo(self, steps: Sequence[str]) -> int:
        """Return how many of consecutive steps follow the last one that exists."""
        for count, key in enumerate(reversed(steps)):
            if self.has("denoise", key):
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
