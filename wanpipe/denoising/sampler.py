"""Takes the steps of all trajectories and publishes each. Loads each expert once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from wanpipe.denoising.chain import PlannedStep
from wanpipe.denoising.request import Request
from wanpipe.denoising.states import NOISE, States, solver_state
from wanpipe.denoising.trajectory import Trajectory, Turn, in_order
from wanpipe.pipeline.budget import ExpertPlan
from wanpipe.sampling import RENOISING, SOLVERS, easy_cache
from wanpipe.sampling.noise import draw
from wanpipe.store import Draft, Publisher, Store

if TYPE_CHECKING:
    import mlx.core as mx

    from wanpipe.denoising.denoiser import Denoiser
    from wanpipe.denoising.orders import Begin
    from wanpipe.denoising.team import Team
    from wanpipe.weights.lora_match import LoraMatch

    State = dict[str, mx.array]


@dataclass
class Sampler:
    """Runs the steps of requests that differ in their texts only.

    `plans` and `loras` are by the name of the expert. The networks are those of all requests. One
    request at a time is in memory: that of the step at work.
    """

    plans: Mapping[str, ExpertPlan]
    loras: "Mapping[str, Sequence[tuple[LoraMatch, float]]]"
    store: Store
    devices: int | None = None
    ran: list[bool] = field(default_factory=list)  # for each step with a step cache
    networks: "Denoiser | None" = field(init=False, default=None)
    # that the networks are conditioned on
    request: Request | None = field(init=False, default=None)

    def denoiser(self, request: Request) -> "Denoiser":
        """Return the networks, which are loaded when a step needs them, conditioned on a request.

        Raises DeviceError if a device is lost.
        """
        from wanpipe.denoising.conditioning import read_conditioning
        from wanpipe.denoising.denoiser import Denoiser

        several = self.team.size > 1
        if self.networks is None:
            if several:
                self.team.begin(opening(request, self.plans, self.store))
            model, group = request.model, self.team.group
            self.networks = Denoiser(model, self.plans, self.loras, self.store, group)
        if self.request is not request:
            conditioning, self.request = read_conditioning(request), request
            if several:
                with self.explained():
                    self.team.condition(conditioning.of_network)
            self.networks.take(conditioning)
        return self.networks

    @cached_property
    def team(self) -> "Team":
        """The devices, which start when the first step needs them."""
        from wanpipe.denoising.team import team_of

        return team_of(self.devices)

    def run(self, trajectories: Sequence[Trajectory]) -> None:
        """Take every missing step: by expert, then by trajectory."""
        todo = in_order(trajectories)
        if not todo:
            return
        store = self.store
        self.team.busy = lambda: publisher.pending
        with (
            self.team.at_work(),
            States(store) as states,
            Publisher(store) as publisher,
            store.report.task("denoise", len(todo)) as task,
        ):
            states.prepare(*todo[0])
            for turn, after in zip(todo, [*todo[1:], None], strict=True):
                other = after if after is not None and after[1] is not turn[1] else None
                fill = self.filler(turn, other, states, publisher)
                publisher.get_or_create(turn[0].recipe, fill)
                if other is not None:
                    states.after = None
                task.advance()
        if self.ran:
            counts = f"{sum(self.ran)} of {len(self.ran)}"
            store.report.remark(f"step cache: the network ran in {counts} steps")

    def filler(
        self, turn: Turn, other: Turn | None, states: States, publisher: Publisher
    ) -> Callable[[Draft], dict[str, Any]]:
        """Return the function that takes one step and writes its entry.

        `other` is the step after it, if that is one of another trajectory.
        """
        step, trajectory = turn

        def fill(draft: Draft) -> dict[str, Any]:
            import mlx.core as mx
            import numpy as np

            from wanpipe.backend.device import provenance

            request = trajectory.request
            if step.recipe.parent is None:
                self.denoiser(request).expert(step.expert)  # while the start noise is drawn
            state = states.before(step, trajectory, publisher)
            if other is not None:
                states.prepare(*other)  # while this step is computed
            arrays, ran = self.advance(step, request, self.start(step, request, state))
            mx.eval(arrays)
            for name, array in arrays.items():
                draft.write(name, np.array(array))
            states.after = (step.recipe.key, solver_state(arrays))
            noted: dict[str, Any] = {"flops": self.plans[step.expert].flops} if ran else {}
            if step.cache_rule is not None:
                noted["network_ran"] = ran
                self.ran.append(ran)
                if not ran:
                    event = step.recipe.event()
                    self.store.report.event("skipped", component=step.expert, **event)
            return provenance(self.team.size) | noted

        return fill

    def start(self, step: PlannedStep, request: Request, state: "State") -> "State":
        """Return the state before a step; before the first one, make it of the start noise."""
        if step.recipe.parent is not None:
            return state
        noise, sigma = state[NOISE], request.schedule.sigmas[0]
        scaled = request.settings.scheduler in RENOISING
        conditioning = self.denoiser(request).conditioning
        return {"latent": conditioning.start(noise, sigma, scaled=scaled)}

    def advance(self, step: PlannedStep, request: Request, state: "State") -> "tuple[State, bool]":
        """Return the arrays of a step's entry, and whether the network ran."""
        import mlx.core as mx

        denoiser, schedule = self.denoiser(request), request.schedule
        conditioning = denoiser.conditioning
        latent = conditioning.in_latent(state["latent"])
        rule = None if step.ends else step.cache_rule
        velocity = easy_cache.reuse(latent, rule, state) if rule else None
        ran = velocity is None
        if velocity is None:
            velocity = self.velocity(denoiser, latent, step)
        sigma = schedule.sigmas[step.recipe.number]
        velocity = conditioning.in_velocity(velocity, latent, sigma)
        before = {name: array for name, array in state.items() if name != "latent"}
        if step.recipe.material.step_noise is not UNSET:
            noise = step.recipe.material.step_noise
            before["noise"] = mx.array(draw(noise.seed, latent.shape, noise.stream))
        solver, number = SOLVERS[request.settings.scheduler], step.recipe.number
        moved, x0, after = solver.advance(latent, velocity, schedule, number, before)
        moved = conditioning.in_latent(moved)
        if rule:
            computed = velocity if ran else None
            after = after | easy_cache.update_state(latent, computed, moved, rule, state)
        return {"latent": moved, "x0": x0} | {f"solver/{name}": a for name, a in after.items()}, ran

    def velocity(self, denoiser: "Denoiser", latent: "mx.array", step: PlannedStep) -> "mx.array":
        """Have all devices compute the velocity of a latent. Raises DeviceError if one is lost."""
        order = denoiser.order(latent, step)
        with self.explained():
            self.team.step(order)
            return denoiser.guided(latent, order)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raise DeviceError in place of an error that the loss of a device causes."""
        try:
            yield
        except RuntimeError as error:  # of MLX, which has no type for a lost connection
            self.team.explain(error)
            raise


def opening(request: Request, plans: Mapping[str, ExpertPlan], store: Store) -> "Begin":
    """Return what the other devices must know of the networks.

    Checks the files of the experts first: devices of this host then know their content hashes.
    """
    from wanpipe.denoising.orders import Begin

    for name in plans:
        request.model.checked(name, store)
    return Begin(
        model=str(request.model.directory.resolve()),
        cache=str(store.root.resolve()),
        experts={name: request.model.hash(name) for name in plans},
        settings=request.settings,
        lora_files=request.lora_files,
        plans=dict(plans),
    )
