"""The order in which the nodes of a sweep become ready."""

from wanpipe.sweeps.node import Node
from wanpipe.sweeps.waiting import Waiting


def node(key: str, *needs: str, rank: int = 0) -> Node:
    return Node(key=key, stage="denoise", command=(), needs=needs, rank=rank)


NODES = [
    node("text"),
    node("other text"),
    node("steps", "text", rank=1),
    node("more steps", "text", rank=1),
    node("rest", "steps", rank=2),
    node("both", "more steps", "other text", "cached", rank=2),
]


def keys(nodes: list[Node]) -> list[str]:
    return [one.key for one in nodes]


def test_a_node_is_ready_when_all_that_it_needs_is_made() -> None:
    waiting = Waiting(NODES)
    assert keys(waiting.ready()) == ["text", "other text"]
    assert keys(waiting.made("other text")) == []
    assert keys(waiting.made("text")) == ["steps", "more steps"]
    assert keys(waiting.made("more steps")) == ["both"]  # what exists is not waited for
    assert keys(waiting.made("steps")) == ["rest"]
    assert keys(waiting.made("both")) == []


def test_nodes_of_a_lower_rank_come_first_then_those_with_less_before_them() -> None:
    priorities = Waiting(NODES).priorities
    order = sorted(priorities, key=lambda key: -priorities[key])
    assert order == ["text", "other text", "steps", "more steps", "rest", "both"]


def test_what_was_lost_is_told_once_and_never_ready() -> None:
    waiting = Waiting(NODES)
    assert sorted(waiting.lost("text")) == ["both", "more steps", "rest", "steps"]
    assert list(waiting.lost("other text")) == []
    assert keys(waiting.made("other text")) == []
