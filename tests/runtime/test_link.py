"""Connections between ranks: who is let in, and how an end is told."""

import socket
from collections.abc import Iterator
from queue import Queue

import pytest

from wanpipe.runtime import link
from wanpipe.runtime.link import DeviceError, Link, ReportedError

HERE = ("127.0.0.1", 0)
Losses = Queue[tuple[int, DeviceError]]


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with link.listen(HERE) as opened:
        yield opened


def accept(server: socket.socket, losses: Losses) -> Link:
    """Rank 0's end of the link to rank 1."""
    found = link.accept(
        server, [1], "secret", lambda rank, error: losses.put((rank, error)), lambda: None
    )
    return found[1][0]


def join(server: socket.socket) -> Link:
    """Rank 1's end."""
    other = link.connect(server.getsockname(), lambda error: None)
    other.send({"rank": 1, "token": "secret"})
    return other


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1\r\n",
        b"[1]\n",
        b"7\n",
        b"[" * 100_000 + b"\n",
        b'{"rank": 1, "token": "guess"}\n',
        b'{"rank": 1}\n',
        b'{"rank": 2, "token": "secret"}\n',
        b'{"rank": [1], "token": "secret"}\n',
        b"",
    ],
)
def test_a_stranger_is_not_taken_for_a_rank(
    line: bytes, server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "BEAT_SECONDS", 0.2)  # how long a stranger is listened to
    losses: Losses = Queue()
    with socket.create_connection(server.getsockname()) as stranger:
        stranger.sendall(line)
        stranger.shutdown(socket.SHUT_WR)
        other = join(server)
        mine = accept(server, losses)
        other.send({"ready": True})
        assert mine.receive(5) == {"ready": True}
    assert losses.empty()
    for end in (mine, other):
        end.close()


def test_an_error_that_a_rank_reports_is_told_in_its_words(server: socket.socket) -> None:
    losses: Losses = Queue()
    other = join(server)
    accept(server, losses)
    other.send({"error": "no such file\x1b[2J"})
    rank, error = losses.get(timeout=5)
    assert rank == 1
    assert isinstance(error, ReportedError)
    assert str(error) == "no such file\\x1b[2J"
    other.close()


def test_a_message_that_is_none_ends_a_link(server: socket.socket) -> None:
    losses: Losses = Queue()
    other = join(server)
    accept(server, losses)
    other.connection.sendall(b"[]\n")
    rank, error = losses.get(timeout=5)
    assert (rank, str(error)) == (1, "it sent what is no message")
    other.close()
