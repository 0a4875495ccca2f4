"""The order of a sweep: which nodes can be made now, and which first."""

from collections.abc import Iterable, Iterator, Sequence

from wanpipe.sweeps.node import Node


class Waiting:
    """Nodes that wait until all that they need is made.

    `priorities` are those of all nodes, by key: by rank, then by how much of the graph lies before
    a node. So a worker goes through all videos with one network before it loads the next.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = {node.key: node for node in nodes}
        self.missing = {
            node.key: {key for key in node.needs if key in self.nodes} for node in nodes
        }
        self.users: dict[str, list[str]] = {key: [] for key in self.nodes}
        depth: dict[str, int] = {}
        for node in nodes:
            for key in self.missing[node.key]:
                self.users[key].append(node.key)
            depth[node.key] = 1 + max((depth[key] for key in self.missing[node.key]), default=0)
        most = max(depth.values(), default=0) + 1
        self.priorities = {
            key: -(node.rank * most + depth[key]) for key, node in self.nodes.items()
        }

    def ready(self) -> list[Node]:
        """Return the nodes that need no other, the first ones first."""
        return self.sorted(key for key, missing in self.missing.items() if not missing)

    def made(self, key: str) -> list[Node]:
        """Return the nodes that can be made now that one more is there, the first ones first."""
        users = [user for user in self.users[key] if user in self.missing]
        for user in users:
            self.missing[user].discard(key)
        return self.sorted(user for user in users if not self.missing[user])

    def lost(self, key: str) -> Iterator[str]:
        """Yield the keys of all nodes that cannot be made without one, each once."""
        found = list(self.users[key])
        while found:
            user = found.pop()
            if user in self.missing:
                del self.missing[user]
                yield user
                found += self.users[user]

    def sorted(self, keys: Iterable[str]) -> list[Node]:
        """Return nodes by their priority."""
        return [self.nodes[key] for key in sorted(keys, key=lambda key: -self.priorities[key])]
