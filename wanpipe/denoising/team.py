"""Rank 0's side of a group of devices: starts the other ranks, sends them orders, and reports when
one is lost.

Rank 0 alone plans, publishes, prints and takes the step. The others only compute their part of each
velocity (see `wanpipe.denoising.worker`), so they need the model, but no cache.

The start, with --devices or under mlx.launch: every other rank connects to rank 0 and says what it
is. Once all are there and alike, rank 0 has them join MLX's group, which waits for all its ranks.
"""

import atexit
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from wanpipe.backend import group as groups
from wanpipe.backend.device import is_gpu, is_metal
from wanpipe.backend.group import ALONE, Group
from wanpipe.denoising.orders import Arrays, Begin, Identity, Step, differences, identity
from wanpipe.errors import UsageError
from wanpipe.runtime import interrupt, link
from wanpipe.runtime.documents import DocumentError, convert, to_builtins
from wanpipe.runtime.link import DeviceError, Link, ReportedError

GRACE_SECONDS = 4.0  # in which the main thread itself reports the loss of a rank
READY_SECONDS = 1800.0  # in which a rank reads the model to check it; it gives signs of life
WORKER = "wanpipe.denoising.worker"
NEWS_SECONDS = 1.0  # mlx.launch ends all ranks when one ends, which may come before the news of it
RESUME = "finished steps are kept, run the same command again"


@dataclass
class Team:
    """The ranks of a group, as rank 0 sees them. Alone, it is a team of one.

    `links` and `hosts` are by rank. `processes` are those that `start` has started; mlx.launch has
    its own.
    """

    size: int = 1
    group: Group = ALONE
    links: dict[int, Link] = field(default_factory=dict)
    hosts: dict[int, str] = field(default_factory=dict)
    processes: dict[int, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    memory: int | None = None  # bytes: the least that a rank recommends
    working: bool = False  # a loss now ends the command
    busy: Callable[[], bool] = lambda: False  # whether steps are being published, which must finish
    failure: DeviceError | None = None  # the first loss
    failed: threading.Event = field(default_factory=threading.Event)

    def lost(self, rank: int, error: DeviceError) -> None:
        """Note that a rank is lost. While the team works, that ends the command. Links call this on
        their threads.
        """
        if rank in self.processes:
            self.processes[rank].kill()  # it may stand still
        host = self.hosts.get(rank, "")
        place = f" on {host}" if host and rank not in self.processes else ""
        text = f"device {rank + 1} of {self.size}{place}"
        said = f": {error}" if isinstance(error, ReportedError) else f" is lost: {error}; {RESUME}"
        self.failure = self.failure or DeviceError(text + said)
        self.failed.set()
        if self.working:
            interrupt.abort(self.failure, GRACE_SECONDS, lambda: self.busy())

    def check(self) -> None:
        """Raise DeviceError if a rank is lost."""
        interrupt.check()
        if self.failure is not None:
            raise self.failure

    def tell(self, what: str, order: Any) -> None:
        """Send an order to all other ranks. Raises DeviceError if one of them is lost."""
        self.check()
        for one in self.links.values():
            try:
                one.send({"do": what, **(to_builtins(order) or {})})
            except DeviceError as error:
                self.explain(error)
                raise

    def begin(self, order: Begin) -> None:
        """Give the other ranks a model.

        Raises DeviceError if one of them cannot use the model.
        """
        self.tell("begin", order)
        for rank, one in self.links.items():
            try:
                one.receive(READY_SECONDS)
            except DeviceError as error:
                raise self.failure or DeviceError(f"device {rank + 1}: {error}") from error

    def condition(self, arrays: Mapping[str, mx.array]) -> None:
        """Give the other ranks the arrays that the next steps are conditioned on."""
        self.tell("condition", Arrays(arrays={name: arrays[name].shape for name in arrays}))
        for array in arrays.values():
            mx.eval(self.group.from_first(array, array.shape))

    def step(self, order: Step) -> None:
        """Have the other ranks take part in a step."""
        self.tell("step", order)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Watch over the other ranks while they compute, and let them drop their networks after."""
        if not self.links:
            yield
            return
        self.working = True
        try:
            yield
        except BaseException as error:
            self.working = False
            if is_terminated(error) and not self.processes and self.failed.wait(NEWS_SECONDS):
                assert self.failure is not None
                raise self.failure from error
            raise
        if self.failure is None:
            self.tell("rest", None)
        self.working = False

    def explain(self, error: Exception) -> None:
        """Raise the loss of a rank in place of an error that it caused, if one is lost.

        The error comes first, so wait for the news of the loss.
        """
        if self.links and self.failed.wait(2 * GRACE_SECONDS):
            interrupt.check()
            assert self.failure is not None
            raise self.failure from error

    def end(self) -> None:
        """End all other ranks."""
        self.working = False
        for one in self.links.values():
            with suppress(DeviceError):
                one.send({"do": "quit"})
            one.close()
        for process in self.processes.values():
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def is_terminated(error: BaseException) -> bool:
    """Return whether an error is that of SIGTERM."""
    return isinstance(error, interrupt.Interrupted) and error.code == 128 + signal.SIGTERM


class _Process:
    """The team of this process, which MLX can start once."""

    team = Team()


def joined_team() -> Team:
    """Return the team of this process, one device if it has joined none."""
    return _Process.team


def team_of(devices: int | None) -> Team:
    """Return the team of this process, which is started if it has fewer devices than asked for."""
    team = _Process.team
    if devices is None or devices == team.size:
        return team
    check_count(devices)
    assert team.size == 1, "checked"
    return start(devices)


def check_count(devices: int) -> None:
    """Raise UsageError for a number of devices that this host or this process cannot have."""
    here, team = groups.local_devices(), _Process.team
    if devices < 1:
        raise UsageError(f"devices must be at least 1, got {devices}; leave it out for one")
    if team.size > 1 and devices != team.size:
        raise UsageError(
            f"devices must be those of the group, {team.size}, got {devices}; leave --devices out"
        )
    if here is not None and devices > max(here, team.size):
        remedy = "use mlx.launch for several Macs" if is_metal() else f"use {here} or fewer"
        raise UsageError(f"devices must be GPUs of this host, {here}, got {devices}; {remedy}")


def start(size: int) -> Team:
    """Start the other ranks on this host, one device each, and wait for them.

    Raises DeviceError if one of them does not start.
    """
    with tempfile.TemporaryDirectory(prefix="wanpipe-") as name:
        folder, token = Path(name), secrets.token_hex(16)
        environments = groups.local_environments(size, folder)
        server = link.listen(("127.0.0.1", 0))
        port = server.getsockname()[1]
        team = Team(size)
        _Process.team = team
        atexit.register(team.end)
        try:
            for rank in range(1, size):
                with (folder / f"{rank}.log").open("wb") as log:
                    team.processes[rank] = subprocess.Popen(
                        [sys.executable, "-m", WORKER, str(rank), str(port)],
                        env={**os.environ, **environments[rank], "WANPIPE_TOKEN": token},
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=log,
                        start_new_session=True,  # Ctrl-C on the terminal is rank 0's
                    )
            own = {name: environments[0][name] for name in environments[0]}
            if is_gpu():
                own.pop("CUDA_VISIBLE_DEVICES", None)  # CUDA has started: its first card is this
            gather(team, server, token, lambda: check_processes(team, folder))
            with groups.environment(own):
                return joined(team)
        except BaseException:
            team.end()
            _Process.team = Team()
            raise
        finally:
            server.close()


def check_processes(team: Team, folder: Path) -> None:
    """Raise DeviceError if a rank ended while it started, with the last line that it printed."""
    for rank, process in team.processes.items():
        if process.poll() is not None:
            lines = (folder / f"{rank}.log").read_text("utf-8", "replace").split("\n")
            said = next((line.strip() for line in reversed(lines) if line.strip()), "no word")
            raise DeviceError(f"rank {rank} ended as it started: {said}; check its device")


def join_launched() -> "tuple[int, tuple[str, int]] | None":
    """Join the group of `mlx.launch`, if there is one, as rank 0.

    Another rank gets its number and the address of rank 0 instead.
    """
    found = groups.launched(os.environ)
    if found is None or _Process.team.size > 1:
        return None
    rank, size, address = found
    if rank:
        return rank, address
    server, team = link.listen(address), Team(size)
    _Process.team = team
    atexit.register(team.end)
    with server:
        gather(team, server, "", team.check)
    joined(team)
    return None


def gather(team: Team, server: socket.socket, token: str, check: Callable[[], None]) -> None:
    """Wait for all ranks, and compare what they are. Raises DeviceError if one differs."""
    found = link.accept(server, range(1, team.size), token, team.lost, check)
    mine = identity()
    team.memory = mine["memory"]
    team.links = {rank: one for rank, (one, _) in found.items()}
    for rank, (_, hello) in found.items():
        if text := differences(mine, hello):
            raise DeviceError(f"all ranks must be alike, rank {rank} has {text}; make them alike")
        other = {name: value for name, value in hello.items() if name in mine}
        try:
            theirs = convert(other, Identity)
        except DocumentError as error:
            raise DeviceError(f"rank {rank} is not wanpipe ({error}); start it again") from error
        team.hosts[rank], team.memory = theirs.host, min(team.memory, theirs.memory)
    team.check()
    for one in team.links.values():
        one.send({"do": "join"})


def joined(team: Team) -> Team:
    """Join MLX's group, whose ranks are all there."""
    team.group = groups.join()
    interrupt.leave_at_once()
    return team
