"""The network that a process keeps between commands."""

import weakref
from collections.abc import Iterator

import pytest

from wanpipe.weights import kept


class Network:
    """Stands for a network."""


@pytest.fixture
def keeping() -> Iterator[None]:
    """Keep networks during a test."""
    kept.keep()
    yield
    kept.clear()
    kept._Place.on = False


def test_nothing_is_kept_by_default() -> None:
    assert kept.kept("a", Network) is not kept.kept("a", Network)


def test_the_last_network_is_kept_by_all_that_it_depends_on(keeping: None) -> None:
    one = kept.kept(("a", []), Network)
    assert kept.kept(("a", []), Network) is one
    assert kept.kept(("a", [("lora", 0.5)]), Network) is not one


def test_networks_are_kept_within_a_context_and_free_after_it() -> None:
    with kept.keeping():
        one = weakref.ref(kept.kept("a", Network))
        assert kept.kept("a", Network) is one()
        with kept.keeping():
            pass
        assert kept.kept("a", Network) is one()
    assert one() is None
    assert kept.kept("a", Network) is not kept.kept("a", Network)


def test_the_network_is_free_before_another_one_is_loaded(keeping: None) -> None:
    gone = weakref.ref(kept.kept("a", Network))

    def load() -> Network:
        assert gone() is None
        return Network()

    kept.kept("b", load)
