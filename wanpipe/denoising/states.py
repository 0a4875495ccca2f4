"""Has the state before each step: that of the step before, or one that is drawn or read from the
cache while another step is computed.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from wanpipe.denoising.chain import PlannedStep
from wanpipe.denoising.trajectory import Trajectory
from wanpipe.runtime.worker import wait_for
from wanpipe.store import Entry, Publisher, Store

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np

    State = dict[str, mx.array]
    Arrays = dict[str, np.ndarray]

NOISE = "noise"  # the only array before the first step of a seed


class States:
    """Holds the state after the last step, and the arrays of one that is prepared, as memory plans
    assume.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        self.after: tuple[str, State] | None = None  # the step of this key
        self.prepared: tuple[str, Future[Arrays | None]] | None = None  # for the step of this key

    def __enter__(self) -> "States":
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown(cancel_futures=True)

    def prepare(self, step: PlannedStep, trajectory: Trajectory) -> None:
        """Begin to draw or read what comes before a step."""
        self.prepared = (step.recipe.key, self.thread.submit(self.read, step, trajectory))

    def read(self, step: PlannedStep, trajectory: Trajectory) -> "Arrays | None":
        """Draw the start noise, or read the entry before a step; None if it is not on disk yet."""
        parent, last = step.recipe.parent, trajectory.last
        if parent is None:
            assert trajectory.draw is not None
            return {NOISE: trajectory.draw()}
        known = last is not None and last.key == parent
        entry = last if known else self.store.find("denoise", parent)
        return None if entry is None else arrays(entry)

    def before(self, step: PlannedStep, trajectory: Trajectory, publisher: Publisher) -> "State":
        """Return the state before a step under the names of a solver, or the start noise."""
        import mlx.core as mx

        parent, prepared = step.recipe.parent, self.prepared
        if parent is not None and self.after is not None and self.after[0] == parent:
            return self.after[1]
        self.prepared = None
        found = None
        if prepared is not None and prepared[0] == step.recipe.key:
            found = wait_for(prepared[1])
        if found is None:
            found = self.read(step, trajectory)
        if found is None:
            # taken under the other expert, or by another process meanwhile
            publisher.collect(keep=0)
            assert parent is not None
            found = arrays(self.store.resolve(parent))
        return {name: mx.array(array) for name, array in found.items()}


def arrays(entry: Entry) -> "Arrays":
    """Read all arrays of a step, under the names that a solver uses."""
    return solver_state({name: entry.read(name) for name in entry.names})


def solver_state(named: dict[str, Any]) -> dict[str, Any]:
    """Return the arrays of an entry under the names that a solver uses."""
    return {name.removeprefix("solver/"): array for name, array in named.items()}
