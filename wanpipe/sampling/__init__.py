"""The solvers by their `--scheduler` name. Each is a module with the same three functions.

Loads no MLX: planning the keys of a run needs only schedules and orders.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from wanpipe.sampling import dpmpp, euler, lcm, unipc
from wanpipe.sampling.schedule import Schedule

if TYPE_CHECKING:
    import mlx.core as mx


class Solver(Protocol):
    """The functions that the module of a solver provides."""

    def schedule(
        self, steps: int, shift: float, grid: Sequence[float] | None = None
    ) -> Schedule: ...

    def order(self, schedule: Schedule, step: int) -> int: ...

    def advance(
        self,
        latent: "mx.array",
        velocity: "mx.array",
        schedule: Schedule,
        step: int,
        state: dict[str, "mx.array"],
    ) -> tuple["mx.array", "mx.array", dict[str, "mx.array"]]: ...


SOLVERS: dict[str, Solver] = {"unipc": unipc, "dpm++": dpmpp, "euler": euler, "lcm": lcm}
RENOISING = frozenset({"lcm"})  # solvers that need new noise for every step but the last
