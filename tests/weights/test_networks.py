"""The network that a process keeps, and the one that it reads ahead."""

import signal
import time
import weakref
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import mlx.core as mx
import pytest

from wanpipe.errors import CheckpointError
from wanpipe.runtime import interrupt
from wanpipe.runtime.interrupt import Interrupted
from wanpipe.weights import networks
from wanpipe.weights.networks import Upcoming
from wanpipe.weights.reader import Ended, Reading

Tensors = Iterable[tuple[str, mx.array]]


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
    read = more.pop("read", lambda ended: [("weight", mx.array(len(path)))])
    return Upcoming(path=Path(path), bytes=1000 if fits else 0, read=read)


def number(path: str) -> int:
    """Take the only number of a file that is read ahead."""
    reading = networks.take(Path(path))
    assert reading is not None
    return int(reading.pop("weight").item())


def wait_for_end(began: Event, stopped: Event, ended: Ended) -> Tensors:
    """Read until nobody wants it any more."""
    began.set()
    while not ended():
        time.sleep(0.01)
    stopped.set()
    return []


def note(began: Event, ended: Ended) -> Tensors:
    """Tell that reading began."""
    began.set()
    return [("weight", mx.array(2))]


def test_the_next_network_is_read_once_the_one_before_is_loaded() -> None:
    began = Event()
    after = upcoming("dit", read=partial(note, began))
    with networks.scheduled([upcoming("t5", fits=False), after]):
        assert networks.take(Path("t5")) is None
        assert not began.wait(0.1)
        networks.loaded(Path("t5"))
        assert began.wait(10)
        assert number("dit") == 2
        networks.loaded(Path("dit"))
        assert networks.take(Path("dit")) is None


def test_a_network_that_is_taken_is_read_on_and_the_next_one_only_after_it() -> None:
    go_on, began = Event(), Event()

    def read(ended: Ended) -> Tensors:
        yield "first", mx.array(1)
        assert go_on.wait(10)
        yield "last", mx.array(2)

    default = mx.get_memory_limit()
    high, low = upcoming("high", read=read), upcoming("low", read=partial(note, began))
    with networks.scheduled([high, low]):
        reading = networks.take(Path("high"))
        assert reading is not None
        assert mx.get_memory_limit() == default  # its own plan counts it
        assert reading.pop("first").item() == 1
        assert networks.take(Path("high")) is reading
        go_on.set()
        assert reading.pop("last").item() == 2
        assert not began.wait(0.1)
        networks.loaded(Path("high"))
        assert began.wait(10)
        assert mx.get_memory_limit() == default + 1000


def test_the_first_network_is_read_at_once_and_nothing_out_of_schedule() -> None:
    with networks.scheduled([upcoming("a"), upcoming("bb")]):
        assert networks.take(Path("lora")) is None
        networks.loaded(Path("lora"))
        assert number("a") == 1
        networks.loaded(Path("a"))
        assert number("bb") == 2
    assert networks.take(Path("bb")) is None


def test_nothing_is_read_beside_a_network_that_was_kept_before(keeping: None) -> None:
    networks.kept("a", Network)
    began = Event()
    with networks.scheduled([upcoming("a", read=partial(note, began))]):
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


def test_an_error_of_reading_ahead_comes_when_a_tensor_is_taken() -> None:
    def read(ended: Ended) -> Tensors:
        yield "first", mx.array(1)
        raise CheckpointError("damaged")

    with networks.scheduled([upcoming("high", read=read)]):
        reading = networks.take(Path("high"))
        assert reading is not None
        assert reading.pop("first").item() == 1
        with pytest.raises(CheckpointError, match="damaged"):
            reading.pop("last")
        assert networks.take(Path("high")) is None  # what failed is not taken again


def test_a_tensor_that_was_not_read_is_an_error() -> None:
    with pytest.raises(KeyError, match="other"):
        Reading(lambda ended: [("weight", mx.array(1))]).pop("other")


def test_a_signal_ends_the_wait_for_a_tensor_and_the_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, stopped = Event(), Event()
    reading = Reading(partial(wait_for_end, began, stopped))
    assert began.wait(10)

    def check() -> None:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(interrupt, "check", check)
    with pytest.raises(Interrupted):
        reading.pop("weight")
    assert stopped.wait(10)
