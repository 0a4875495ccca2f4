"""worker: carry out the commands of sweeps for a Dask scheduler.

Reads: the models and inputs that the commands name.
Writes: the entries that the commands make.
"""

import os
import socket
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from stages import COMMANDS
from wanpipe.cli import options
from wanpipe.cli.progress import JsonReport, PlainReport, QuietReport
from wanpipe.cli.session import cache_option, output_options, push_option, remote_option
from wanpipe.errors import UsageError
from wanpipe.runtime.report import Report
from wanpipe.sweeps import connection, worker
from wanpipe.sweeps.options import take_tls, tls
from wanpipe.sweeps.tasks import STAGES, Place


def carry_out(name: str, words: Sequence[str], report: Report) -> None:
    """Call a command by its name. It reports to `report`."""
    command: click.Command = import_module(COMMANDS[name]).command
    # not `main`, which would turn an interruption into an error of click's
    with command.make_context(f"wanpipe {name}", list(words), obj=report) as context:
        command.invoke(context)


def warm() -> None:
    """Start the device, and load what the commands need, before the first of them comes."""
    import mlx.core as mx

    mx.eval(mx.zeros(1) + 1)
    for name in STAGES:
        import_module(COMMANDS[name])
    for name in ("wanpipe.denoising.denoiser", "wanpipe.models.vae.vae", "zarr"):
        import_module(name)


def place_of(cache: Path, remote: str | None, push: str | None, **more: Any) -> Place:
    """Return the place where a worker with these options carries out commands."""
    words = ["--cache", str(cache.absolute())]
    words += ["--remote", remote] if remote else []
    words += ["--push", push] if push else []
    return Place(carry_out=carry_out, options=tuple(words), **more)


@click.command("worker")
@click.option(
    "--scheduler",
    metavar="URL",
    help="Work for the Dask scheduler at tcp://HOST:PORT or tls://HOST:PORT.",
)
@click.option("--interface", metavar="NAME", help="Listen on this network interface, e.g. eth0.")
@click.option(
    "--host",
    metavar="ADDRESS",
    help="Listen on this address.  [default: the one that reaches the scheduler]",
)
@tls
@click.option(
    "--device",
    metavar="CARD",
    help="Compute on this CUDA device, as CUDA_VISIBLE_DEVICES names it.  [default: the first]",
)
@options.memory
@click.option(
    "--name", metavar="NAME", help="Set the worker's name.  [default: its host and process]"
)
@click.option(
    "--death-timeout",
    type=click.FloatRange(min=1),
    metavar="SECONDS",
    default=300.0,
    show_default=True,
    help="End after this time without a scheduler.",
)
@click.option("--child", is_flag=True, hidden=True, help="Work for the sweep at the other end.")
@cache_option
@remote_option
@push_option
@output_options
def command(
    device: str | None,
    memory: int | None,
    name: str | None,
    events: str | None,
    quiet: bool,
    **asked: Any,
) -> None:
    """Carry out the commands of sweeps for a Dask scheduler.

    A worker carries out one command at a time, on one device, and keeps the transformer that it
    loaded last. Start one for each device. Entries go to the cache, which can be a folder that all
    machines share, or to --remote as well.
    """
    place = {one: asked.pop(one) for one in ("cache", "remote", "push")}
    scheduler, child = asked.pop("scheduler"), asked.pop("child")
    if scheduler is None and not child:
        raise UsageError("a worker needs a scheduler; give --scheduler URL")
    given = worker.Options(scheduler=scheduler or "", child=child, tls=take_tls(asked), **asked)
    if not child:
        connection.check_address(given.scheduler, given.tls)
    connection.load()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # before MLX starts
    report = JsonReport() if events else QuietReport() if quiet else PlainReport()
    name = name or f"{socket.gethostname()}-{os.getpid()}"
    worker.serve(place_of(**place, name=name, memory=memory, report=report), given, warm)
