"""A TCP connection from rank 0 to another rank: carries orders, and notices when a rank is lost.

MLX's groups carry the arrays, but report no rank that ends: with NCCL the others wait for ever. So
each end of a link sends a sign of life every few seconds. Messages are lines of JSON.
"""

import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from wanpipe.errors import WanpipeError
from wanpipe.runtime import interrupt
from wanpipe.runtime.documents import decode
from wanpipe.runtime.text import printable

BEAT_SECONDS = 2.0  # between two signs of life
SILENCE_SECONDS = 20.0  # without a sign of life, the other process or the way to it is lost
START_SECONDS = 25.0  # from the start of the first process to that of the last
POLL_SECONDS = 0.1
MAX_LINE = 1 << 24  # bytes of a message
MAX_TEXT = 500  # characters of an error that another process sends
Message = dict[str, Any]


class DeviceError(WanpipeError):
    """A process of a group that is missing, differs or ended."""


class ReportedError(DeviceError):
    """An error that another process of the group had, in its own words."""


class Link:
    """One end of a connection. A thread reads it; `ended` is called once, on a thread of the
    connection, if the other process ends, sends an error, or is silent for too long.
    """

    def __init__(self, connection: socket.socket, ended: Callable[[DeviceError], None]) -> None:
        self.connection, self.ended = connection, ended
        self.messages: queue.Queue[Message] = queue.Queue()
        self.sending, self.ending = threading.Lock(), threading.Lock()
        self.closed = threading.Event()
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.heard = time.monotonic()
        for work in (self._read, self._beat):
            threading.Thread(target=work, name="link", daemon=True).start()

    def send(self, message: Message) -> None:
        """Send a message. Raises DeviceError if the connection is lost."""
        data = json.dumps(message).encode() + b"\n"
        try:
            with self.sending:
                self.connection.sendall(data)
        except OSError as error:
            raise DeviceError(f"the connection is lost ({error.strerror})") from error

    def receive(self, seconds: float | None = None) -> Message:
        """Wait for the next message, for so many seconds or without an end.

        Raises DeviceError if it does not come in time.
        """
        started = time.monotonic()
        while True:
            interrupt.check()
            try:
                return self.messages.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if seconds is not None and time.monotonic() - started > seconds:
                    raise DeviceError(f"it did not answer within {seconds:g} s") from None

    def close(self) -> None:
        """Close the connection. This end no longer hears of the other."""
        self.closed.set()
        for action in (lambda: self.connection.shutdown(socket.SHUT_RDWR), self.connection.close):
            try:
                action()
            except OSError:
                continue  # the other end was quicker

    def _read(self) -> None:
        reason = DeviceError("it ended")
        try:
            with self.connection.makefile("rb") as lines:
                while line := lines.readline(MAX_LINE):
                    self.heard = time.monotonic()
                    message = decode(line, Message)
                    if "error" in message:
                        reason = ReportedError(printable(str(message["error"])[:MAX_TEXT]))
                        break
                    if "beat" not in message:
                        self.messages.put(message)
        except ConnectionResetError:
            pass  # it ended before it read everything
        except OSError as error:
            reason = DeviceError(f"the connection is lost ({error.strerror})")
        except ValueError:
            reason = DeviceError("it sent what is no message")
        self._end(reason)

    def _beat(self) -> None:
        before = time.monotonic()
        while not self.closed.wait(BEAT_SECONDS):
            now = time.monotonic()
            if now - before > 2 * BEAT_SECONDS:
                self.heard = now  # this process itself stood still, as while MLX starts a group
            before, silent = now, now - self.heard
            if silent > SILENCE_SECONDS:
                self._end(DeviceError(f"it gave no sign of life for {silent:.0f} s"))
                return
            # without waiting: a large message is a sign of life itself
            if self.sending.acquire(blocking=False):
                try:
                    self.connection.sendall(b'{"beat":1}\n')
                except OSError:
                    return  # `_read` tells why
                finally:
                    self.sending.release()

    def _end(self, reason: DeviceError) -> None:
        with self.ending:
            if self.closed.is_set():
                return
            self.closed.set()
        self.ended(reason)


def connect(address: tuple[str, int], ended: Callable[[DeviceError], None]) -> Link:
    """Connect to rank 0, which may start later. Raises DeviceError if it does not."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        interrupt.check()
        try:
            return Link(socket.create_connection(address, timeout=POLL_SECONDS * 10), ended)
        except OSError as error:
            if time.monotonic() > deadline:
                raise DeviceError(
                    f"rank 0 did not answer at {address[0]}:{address[1]} within "
                    f"{START_SECONDS:g} s ({error.strerror or error}); start all ranks together"
                ) from error
        time.sleep(POLL_SECONDS)


def listen(address: tuple[str, int]) -> socket.socket:
    """Open the socket of rank 0 to which the others connect; port 0 means a free one."""
    try:
        return socket.create_server(address, backlog=64, reuse_port=False)
    except OSError as error:
        raise DeviceError(
            f"rank 0 cannot listen at {address[0]}:{address[1]} ({error.strerror}); give "
            "mlx.launch another port"
        ) from error


def accept(
    server: socket.socket,
    ranks: Sequence[int],
    token: str,
    lost: Callable[[int, DeviceError], None],
    check: Callable[[], None],
) -> dict[int, tuple[Link, Message]]:
    """Wait for every rank, and return its link and the first message it sent.

    `check` is called while waiting, and raises if a rank cannot come any more. Raises DeviceError
    if one does not come in time, and ignores a connection that does not know `token`.
    """
    found: dict[int, tuple[Link, Message]] = {}
    deadline = time.monotonic() + START_SECONDS
    server.settimeout(POLL_SECONDS)
    while missing := sorted(set(ranks) - set(found)):
        interrupt.check()
        check()
        if time.monotonic() > deadline:
            who = " and ".join(f"rank {rank}" for rank in missing)
            raise DeviceError(
                f"all ranks must start within {START_SECONDS:g} s, {who} did not; start them "
                "together"
            )
        try:
            connection, _ = server.accept()
        except TimeoutError:
            continue
        known = _Known(lost)
        link = Link(connection, known.ended)
        try:
            hello = link.receive(BEAT_SECONDS)
        except DeviceError:
            hello = {}
        rank = hello.get("rank")
        if hello.get("token") == token and isinstance(rank, int) and rank in missing:
            known.rank = rank
            found[rank] = (link, hello)
        else:
            link.close()
    return found


class _Known:
    """Tells which rank is lost, once it is known who connected."""

    def __init__(self, lost: Callable[[int, DeviceError], None]) -> None:
        self.lost = lost
        self.rank: int | None = None

    def ended(self, reason: DeviceError) -> None:
        """Report the end of a rank."""
        if self.rank is not None:
            self.lost(self.rank, reason)
