"""A group of devices: MLX's own (`mx.distributed`), or this device alone.

Rank 0 leads. Every operation here is one that all ranks call, in the same order. Only all_gather is
used, because every backend has it.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx

from wanpipe.backend.device import is_cuda, is_gpu, is_metal
from wanpipe.runtime import interrupt, link
from wanpipe.runtime.link import DeviceError

# mlx.launch uses ports upward from its own; rank 0 listens for the other ranks this far above
PORTS_ABOVE = 512
INIT_SECONDS = 20.0  # in which MLX starts a group whose ranks are all there
Address = tuple[str, int]


class Group:
    """Devices that compute together. Without a group of MLX's, it is one device."""

    def __init__(self, mlx_group: "mx.distributed.Group | None" = None) -> None:
        self.mlx_group = mlx_group
        self.rank = 0 if mlx_group is None else mlx_group.rank()
        self.size = 1 if mlx_group is None else mlx_group.size()

    def gather(self, x: mx.array) -> mx.array:
        """Return the arrays x of all ranks, (size, *shape), as they are."""
        if self.mlx_group is None:
            return x[None]
        flat = mx.contiguous(x).reshape(1, -1)
        rows = mx.distributed.all_gather(flat, group=self.mlx_group)
        return rows.reshape(self.size, *x.shape)  # (size, *shape)

    def from_first(self, x: "mx.array | None", shape: Sequence[int]) -> mx.array:
        """Return rank 0's float32 array x; the others give None, and its shape."""
        if x is None:
            x = mx.zeros(shape)
        return self.gather(x)[0]

    def split(self, color: int) -> "Group":
        """Return the group of the ranks that give the same color. Ring cannot do that."""
        return self if self.mlx_group is None else Group(self.mlx_group.split(color))


ALONE = Group()


def backend_name() -> str:
    """Return MLX's backend for several processes on this host."""
    return "nccl" if is_cuda() else "ring"


def local_devices() -> int | None:
    """Return how many devices of this host a group may have; None: as many processes as wanted."""
    if not is_gpu():
        return None
    return 1 if is_metal() else len(visible_cards())


def visible_cards() -> list[str]:
    """Return the CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [card.strip() for card in given.split(",") if card.strip()]
    return [str(card) for card in range(mx.device_count(mx.gpu))]


def launched(environment: Mapping[str, str]) -> "tuple[int, int, Address] | None":
    """Return rank, size and the address of rank 0 that `mlx.launch` has put into the environment.

    None if this process was started alone. Raises DeviceError for variables that do not fit.
    """
    if "MLX_RANK" not in environment:
        return None
    try:
        rank = int(environment["MLX_RANK"])
        if "MLX_WORLD_SIZE" in environment:  # nccl
            size = int(environment["MLX_WORLD_SIZE"])
            host, port = environment["NCCL_HOST_IP"], int(environment["NCCL_PORT"])
        elif "MLX_JACCL_COORDINATOR" in environment:
            size = len(json.loads(Path(environment["MLX_IBV_DEVICES"]).read_bytes()))
            host, _, number = environment["MLX_JACCL_COORDINATOR"].rpartition(":")
            port = int(number)
        else:
            text = Path(environment["MLX_HOSTFILE"]).read_text(encoding="utf-8")
            hosts = json.loads(text) if text.strip() else [["127.0.0.1:0"]]
            size = len(hosts)
            host, _, number = hosts[0][0].rpartition(":")
            port = int(number)
    except (KeyError, IndexError, TypeError, ValueError, OSError) as error:
        raise DeviceError(
            f"MLX_RANK is set, but what mlx.launch sets with it is missing or damaged ({error!r}); "
            "start with mlx.launch, or unset MLX_RANK"
        ) from error
    return None if size == 1 else (rank, size, (host, port + PORTS_ABOVE))


def local_environments(size: int, folder: Path) -> list[dict[str, str]]:
    """Return what `mlx.launch` would set for each rank on this host, with free ports.

    Ring reads its addresses from a file, which is written into `folder`.
    """
    if backend_name() == "ring":
        hosts = folder / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(size)]))
        return [{"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)} for rank in range(size)]
    shared = {
        "MLX_WORLD_SIZE": str(size),
        "NCCL_HOST_IP": "127.0.0.1",
        "NCCL_PORT": str(free_ports(1)[0]),
    }
    return [
        {"MLX_RANK": str(rank), "CUDA_VISIBLE_DEVICES": card, **shared}
        for rank, card in enumerate(visible_cards()[:size])
    ]


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens at."""
    servers = [link.listen(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables, which MLX reads as it starts a group."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def join(*, quiet: bool = False) -> Group:
    """Join the group that the environment names. Every rank is there already.

    Ends the process if MLX waits too long for another rank, without a word if `quiet`. Raises
    DeviceError if MLX cannot start the group.
    """
    late = (
        f"MLX must start a group of devices within {INIT_SECONDS:g} s, and did not; a rank ended, "
        "or a firewall closes its ports; run the same command again"
    )
    with interrupt.time_limit(INIT_SECONDS, "" if quiet else late):
        try:
            return Group(mx.distributed.init(strict=True))
        except RuntimeError as error:
            raise DeviceError(
                f"MLX cannot start a group of devices ({error}); see its log"
            ) from error
