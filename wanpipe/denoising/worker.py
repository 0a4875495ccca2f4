"""Any rank but rank 0: computes its part of every velocity, as rank 0 orders, until rank 0 ends.

It publishes nothing and prints nothing. Its errors go to rank 0, which reports them. Only rank 0
listens to Ctrl-C.
"""

import os
import signal
import sys
import threading
from typing import Any

import mlx.core as mx

from wanpipe.backend import group as groups
from wanpipe.backend.group import Group
from wanpipe.denoising.conditioning import Conditioning
from wanpipe.denoising.denoiser import Denoiser
from wanpipe.denoising.loras import match_loras
from wanpipe.denoising.orders import Arrays, Begin, Step, identity
from wanpipe.errors import CheckpointError, WanpipeError
from wanpipe.runtime import link
from wanpipe.runtime.documents import convert, first_line
from wanpipe.runtime.link import Link
from wanpipe.store import Store
from wanpipe.weights.model import open_model


def serve(rank: int, address: tuple[str, int], token: str) -> None:
    """Connect to rank 0 at `address` and work for it, then end this process.

    Raises DeviceError if rank 0 does not answer. `token` shows that rank 0 started this process.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # not by an exception: this process may be in C code that waits for rank 0
    leader = link.connect(address, lambda error: os._exit(0))
    leader.send({"rank": rank, "token": token, **identity()})
    try:
        work(leader)
    except (WanpipeError, OSError, MemoryError, RuntimeError, ValueError) as error:
        leader.send({"error": first_line(error)})
        # rank 0 closes the connection once it has read this, and that ends this process
        threading.Event().wait(link.SILENCE_SECONDS)
        os._exit(1)
    os._exit(0)  # without waiting for a GPU that may wait for another


def work(leader: Link) -> None:
    """Join the group, and carry out orders until the order to quit."""
    if leader.receive()["do"] == "quit":  # the ranks differ
        return
    group = groups.join(quiet=True)
    denoiser: Denoiser | None = None
    while True:
        message = leader.receive()
        what = message.pop("do")
        if what == "quit":
            return
        if what == "rest":
            denoiser = None
            mx.clear_cache()
        elif what == "begin":
            denoiser = begin(convert(message, Begin), group, leader)
        elif what == "condition":
            assert denoiser is not None, message
            denoiser.take(receive(convert(message, Arrays), group))
        else:
            assert what == "step" and denoiser is not None, message
            denoiser.guided(None, convert(message, Step))


def begin(order: Begin, group: Group, leader: Link) -> Denoiser:
    """Check the model and the LoRAs. Raises CheckpointError for files that are missing, damaged, or
    not those of rank 0.
    """
    model, store = open_model(order.model), Store(order.cache, read_only=True)
    for name, digest in order.experts.items():
        if model.hash(name) != digest:
            raise CheckpointError(
                f"{order.model} must be the same model on every machine, {name} has another "
                "content hash; copy it there"
            )
        model.checked(name, store)
    loras = match_loras(model, order.settings, order.lora_files, order.plans, store)
    leader.send({"ready": True})
    return Denoiser(model, order.plans, loras, store, group)


def receive(order: Arrays, group: Group) -> Conditioning:
    """Receive the arrays that the next steps are conditioned on."""
    arrays: dict[str, Any] = {}
    for name, shape in order.arrays.items():
        arrays[name] = group.from_first(None, shape)
        mx.eval(arrays[name])
    return Conditioning(**arrays)


def main() -> None:
    """Serve the rank 0 that started this process on the same host."""
    rank, port = map(int, sys.argv[1:])
    serve(rank, ("127.0.0.1", port), os.environ["WANPIPE_TOKEN"])


if __name__ == "__main__":
    main()
