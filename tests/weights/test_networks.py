"""The network that a process keeps, and the one that it reads ahead."""

import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import mlx.core as mx
import pytest

from wanpipe.errors import CheckpointError
from wanpipe.weights import networks
from wanpipe.weights.networks import Upcoming


class Network:
    """Stands for a network."""


@pytest.fixture
def keeping() -> Iterator[None]:
    """Keep networks during a test."""
    networks.keep()
    yield
    networks.clear()
    networks._Place.on = False


def test_nothing_is_kept_by_default() -> None:
    assert networks.kept("a", Network) is not networks.kept("a", Network)


def test_the_last_network_is_kept_by_all_that_it_depends_on(keeping: None) -> None:
    one = networks.kept(("a", []), Network)
    assert networks.kept(("a", []), Network) is one
    assert networks.kept(("a", [("lora", 0.5)]), Network) is not one


def test_networks_are_kept_within_a_context_and_free_after_it() -> None:
    with networks.scheduled([]):
        one = weakref.ref(networks.kept("a", Network))
        assert networks.kept("a", Network) is one()
        with networks.scheduled([]):
            pass
        assert networks.kept("a", Network) is one()
    assert one() is None
    assert networks.kept("a", Network) is not networks.kept("a", Network)


def test_the_network_is_free_before_another_one_is_loaded(keeping: None) -> None:
    gone = weakref.ref(networks.kept("a", Network))

    def load() -> Network:
        assert gone() is None
        return Network()

    networks.kept("b", load)


def upcoming(path: str, fits: bool = True, **more: Any) -> Upcoming:
    """A network whose only number is the length of its path."""
    read = more.pop("read", lambda ended: {"weight": mx.array(len(path))})
    return Upcoming(path=Path(path), bytes=1000 if fits else 0, read=read)


def wait_for_end(began: Event, stopped: Event, ended: Callable[[], bool]) -> dict[str, mx.array]:
    """Read until nobody wants it any more."""
    began.set()
    while not ended():
        time.sleep(0.01)
    stopped.set()
    return {}


def test_the_next_network_is_read_once_the_one_before_is_loaded() -> None:
    began = Event()

    def read(ended: Callable[[], bool]) -> dict[str, mx.array]:
        began.set()
        return {"weight": mx.array(2)}

    with networks.scheduled([upcoming("t5", fits=False), upcoming("dit", read=read)]):
        assert networks.take(Path("t5")) is None
        assert not began.wait(0.1)
        networks.loaded(Path("t5"))
        assert began.wait(10)
        arrays = networks.take(Path("dit"))
        assert arrays is not None
        assert arrays["weight"].item() == 2
        assert networks.take(Path("dit")) is None


def test_the_first_network_is_read_at_once_and_nothing_out_of_schedule() -> None:
    with networks.scheduled([upcoming("a"), upcoming("bb")]):
        assert networks.take(Path("lora")) is None
        networks.loaded(Path("lora"))
        assert list(networks.take(Path("a")) or ()) == ["weight"]
        networks.loaded(Path("a"))
        assert list(networks.take(Path("bb")) or ()) == ["weight"]
    assert networks.take(Path("bb")) is None


def test_nothing_is_read_beside_a_network_that_was_kept_before(keeping: None) -> None:
    networks.kept("a", Network)
    began = Event()

    def read(ended: Callable[[], bool]) -> dict[str, mx.array]:
        began.set()
        return {}

    with networks.scheduled([upcoming("a", read=read)]):
        assert not began.wait(0.1)
        assert networks.take(Path("a")) is None


def test_what_is_read_ahead_is_given_up_if_a_later_network_is_loaded() -> None:
    began, stopped = Event(), Event()
    read = partial(wait_for_end, began, stopped)
    default = mx.get_memory_limit()
    with networks.scheduled([upcoming("high", read=read), upcoming("vae")]):
        assert began.wait(10)
        assert mx.get_memory_limit() == default + 1000
        assert networks.take(Path("vae")) is None
        assert stopped.is_set()
        assert mx.get_memory_limit() == default


def test_the_end_of_a_schedule_ends_the_reading() -> None:
    began, stopped = Event(), Event()
    read = partial(wait_for_end, began, stopped)
    with (
        pytest.raises(ZeroDivisionError),
        networks.scheduled([upcoming("high", read=read)]),
    ):
        assert began.wait(10)
        raise ZeroDivisionError
    assert stopped.is_set()


def test_an_error_of_reading_ahead_comes_when_the_network_is_loaded() -> None:
    def read(ended: Callable[[], bool]) -> dict[str, mx.array]:
        raise CheckpointError("damaged")

    with (
        pytest.raises(CheckpointError, match="damaged"),
        networks.scheduled([upcoming("high", read=read)]),
    ):
        networks.take(Path("high"))
