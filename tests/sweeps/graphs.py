"""Small graphs of sweeps, planned by the stages themselves: texts, steps and frames."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stages import decode, denoise, encode_text
from wanpipe.models.config import HIGH
from wanpipe.pipeline.inputs import Inputs
from wanpipe.store import Store
from wanpipe.sweeps.node import Graph, Node
from wanpipe.weights.model import open_model

SIZE = {"width": 32, "height": 32, "num_frames": 5}


def words(**options: object) -> tuple[str, ...]:
    """Options as words of a command line."""
    pairs = ((f"--{name.replace('_', '-')}", str(value)) for name, value in options.items())
    return tuple(word for pair in pairs for word in pair)


@dataclass
class Planner:
    """Plans videos of one model, each node once."""

    model: Path
    store: Store
    nodes: dict[str, Node] = field(default_factory=dict)

    def add(
        self, key: str, stage: str, options: Sequence[str], need: str = "", units: int = 1
    ) -> str:
        """Add a node unless it is there."""
        self.nodes[key] = Node(
            key=key,
            stage=stage,
            command=(stage, "--model", str(self.model), *options),
            needs=(need,) if need else (),
            exists=self.store.find(stage, key) is not None,
            units=units,
            videos=(self.name,),
        )
        return key

    def video(self, prompt: str, seed: int, steps: int) -> None:
        """Plan a video: a text, the steps of each network, and frames."""
        self.name = f"{prompt} {seed}"
        model, store = open_model(self.model), self.store
        text = encode_text.plan(model, encode_text.Params(prompts=(prompt,)), store).entries[0]
        need = self.add(text.key, "encode-text", words(prompt=prompt))
        params = denoise.Params(steps=steps, seeds=(seed,), **SIZE)
        planned = denoise.plan(model, Inputs(text=text), params, store)
        taken = [one.recipe for one in planned.targets] or [planned.entries[0]]
        expert = model.hash(HIGH) if HIGH in model.config.components else None
        high = [one for one in taken if one.material.expert == expert]
        options = ("--from", text.key, *words(**SIZE, steps=steps, seed=seed))
        if high:
            options = (*options, *words(stop_at=len(high)))
            need = self.add(high[-1].key, "denoise", options, need, len(high))
            options = ("--from", need)
        last = planned.entries[0]
        need = self.add(last.key, "denoise", options, need, steps - len(high))
        shown = decode.plan(model, Inputs(step=last, run=planned.runs[0]), decode.Params(), store)
        self.add(shown.entries[0].key, "decode", ("--from", need), need)


def graph(
    model: Path, cache: Path, prompts: Sequence[str], seeds: Sequence[int], steps: int = 4
) -> Graph:
    """The nodes of a video for each prompt and seed."""
    planner = Planner(model, Store(cache))
    for prompt in prompts:
        for seed in seeds:
            planner.video(prompt, seed, steps)
    return Graph(nodes=tuple(planner.nodes.values()))
