"""Plans a sweep: the graph of what its videos need, with the plans of the stages.

The keys of the graph are those of `wanpipe run`. Nothing is written, and no weights are loaded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stages import decode, denoise, encode_image, encode_text, encode_video
from stages import run as composed
from wanpipe.denoising.chain import expert_at
from wanpipe.denoising.settings import schedule_of
from wanpipe.errors import CheckpointError, UsageError
from wanpipe.media.video import check_keeps, check_rate, named_format
from wanpipe.models.config import LOW
from wanpipe.pipeline.inputs import Inputs
from wanpipe.pipeline.plan import Plan, Work
from wanpipe.runtime import interrupt
from wanpipe.store import Entry, Run, Store
from wanpipe.sweeps.arguments import arguments
from wanpipe.sweeps.costs import Network, Speeds, frame_bytes, input_bytes, step_bytes, text_bytes
from wanpipe.sweeps.document import Sweep
from wanpipe.sweeps.graph import DECODE, Builder, Chain
from wanpipe.sweeps.lookup import Lookup, are_current
from wanpipe.sweeps.names import name_videos, shown
from wanpipe.sweeps.node import Graph, Node, Video
from wanpipe.weights.model import Model, find_model

if TYPE_CHECKING:
    from wanpipe.pipeline.tokenizer import Tokenizer

TOGETHER = 32  # prompts that one command encodes
# options of `wanpipe run` that are those of a machine, or of a checkpoint that is not converted yet
NOT_OF_A_VIDEO = {"checkpoint_dir", *composed.QUANTIZATION, *composed.CONVERSION, "help"} | {
    *("like", "prompt_file", "auto_seeds", "output"),
    *("cache", "remote", "push", "dry_run", "force", "name", "events", "quiet"),
}


def known_options() -> dict[str, click.Option]:
    """Return the options of `wanpipe run` that a sweep file may set, by their names in it."""
    found = {
        option.opts[0].removeprefix("--"): option
        for option in composed.command.params
        if isinstance(option, click.Option) and option.name not in NOT_OF_A_VIDEO
    }
    return found | {"prompt": click.Option(["--prompt"])}  # one for each video


def plan(sweep: Sweep, store: Store, draft: int | None = None) -> Graph:
    """Plan all videos, without loading weights or writing anything.

    Raises UsageError for an invalid combination, and for two videos of one name.
    """
    return Planner(sweep, store, draft).graph()


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A video whose steps are planned: its number from 0, and what it is made with."""

    number: int
    model: Model
    params: composed.Params
    inputs: Inputs
    step: Entry
    run: Run
    chain: Chain

    @property
    def fps(self) -> float:
        """Frames per second."""
        asked = self.params.decode.fps
        return float(self.model.config.defaults.fps if asked is None else asked)


class Planner:
    """Plans the videos of a sweep, and keeps what they share: models, texts, images, frames."""

    def __init__(self, sweep: Sweep, store: Store, draft: int | None) -> None:
        if draft is not None and draft < 1:
            raise UsageError(f"draft must be at least 1 step, got {draft}; use 1 to 10")
        self.sweep, self.store, self.draft = sweep, store, draft
        self.known = known_options()
        self.lookup = Lookup(store.root, store.report)
        self.builder = Builder(store=store, draft=draft)
        self.models: dict[str, Model] = {}
        self.tokenizers: dict[str, Tokenizer] = {}
        self.inputs: dict[Any, Entry] = {}
        self.texts: dict[Any, list[tuple[Model, str, str]]] = {}  # those that differ in the prompt
        self.defaults = composed.command.make_context("run", []).params

    def graph(self) -> Graph:
        """Return the graph of all videos."""
        sweep, planned = self.sweep, list[Planned]()
        if "{key}" not in sweep.template:  # else it takes the plan to know the names
            name_videos(sweep.template, sweep.folder, sweep.videos, [""] * len(sweep.videos))
        with self.store.report.task("plan", len(sweep.videos)) as task:
            for numbers in sweep.groups():
                try:
                    planned += self.steps(numbers)
                except (UsageError, CheckpointError) as error:
                    raise type(error)(f"video {numbers[0] + 1}: {error}") from error
                task.advance(len(numbers))
        planned.sort(key=lambda one: one.number)
        keys = [one.run.last[:8] for one in planned]
        self.frames(planned, name_videos(sweep.template, sweep.folder, sweep.videos, keys))
        self.gather_texts()
        return self.builder.build(self.sweep.varied)

    @cached_property
    def speeds(self) -> Speeds:
        """The speeds of recent entries."""
        return Speeds(self.store)

    def model(self, reference: str) -> Model:
        """Open a model, once."""
        if reference not in self.models:
            self.models[reference] = find_model(reference, [], self.store)
        return self.models[reference]

    def name(self, model: Model) -> str:
        """Return what names a model for every machine: its key if it is an entry, or its path."""
        directory = model.directory.resolve()
        entry = directory.parent == (self.store.root / "convert").resolve()
        return directory.name if entry else str(directory)

    def steps(self, numbers: Sequence[int]) -> Iterator[Planned]:
        """Plan the inputs and the steps of videos that differ in their seeds only."""
        values = self.sweep.videos[numbers[0]]
        seeds = [self.sweep.videos[number].get("seed", ()) for number in numbers]
        asked = self.defaults | {str(self.known[one].name): values[one] for one in values}
        asked["prompts"] = (values["prompt"],)
        asked["seeds"] = tuple(seed for one in seeds for seed in one)
        model = self.model(values["model"])
        params = composed.complete(model, composed.read(asked))
        inputs = Inputs(text=self.text(model, params.text))
        if params.image is not None:
            inputs = replace(inputs, image=self.pixels(model, params.image, encode_image))
        elif params.video is not None:
            inputs = replace(inputs, video=self.pixels(model, params.video, encode_video))
        steps = denoise.plan(model, inputs, params.denoise, self.lookup)
        experts = self.experts(model, steps.work)
        timesteps = schedule_of(steps.runs[0].settings).timesteps
        networks = tuple(experts[expert_at(model.config, one)] for one in timesteps)
        for index, number in enumerate(numbers):
            at = index if asked["seeds"] else 0  # else there is one start for all
            chosen = replace(params.denoise, seeds=seeds[index])
            yield Planned(
                number=number,
                model=model,
                params=params,
                inputs=inputs,
                step=steps.entries[at],
                run=steps.runs[at],
                chain=self.chain(model, inputs, chosen, steps.runs[at], networks),
            )

    def text(self, model: Model, params: encode_text.Params) -> Entry:
        """Plan a text, once."""
        name = self.name(model)
        if (name, params) not in self.inputs:
            if name not in self.tokenizers:
                from wanpipe.pipeline.tokenizer import tokenizer_of

                self.tokenizers[name] = tokenizer_of(model, self.lookup)
            planned = encode_text.plan_with(self.tokenizers[name], model, params, self.lookup)
            [entry] = planned.entries
            if entry.key not in self.builder.nodes:  # else another spelling of the same text
                alike = self.texts.setdefault((name, replace(params, prompts=())), [])
                alike.append((model, params.prompts[0], entry.key))
            size = text_bytes(entry, model.config)
            self.add_input(model, planned, encode_text.command, text_options(params), size)
            self.inputs[name, params] = entry
        return self.inputs[name, params]

    def gather_texts(self) -> None:
        """Let one node encode many prompts, because each loads the whole text encoder. The nodes
        of the others come after it, and find their entries.
        """
        keys = [key for alike in self.texts.values() for _, _, key in alike]
        self.builder.expect("encode-text", keys)
        for (name, params), alike in self.texts.items():
            missing = [one for one in alike if not self.store.has("encode-text", one[2])]
            for start in range(0, len(missing), TOGETHER):
                self.gather(name, params, missing[start : start + TOGETHER])

    def gather(
        self, name: str, params: encode_text.Params, texts: Sequence[tuple[Model, str, str]]
    ) -> None:
        """Let the node of the first of some texts encode all of them."""
        (model, prompt, key), *others = texts
        if not others:
            return
        asked = replace(params, prompts=(*(one for _, one, _ in others), prompt))
        planned = encode_text.plan_with(self.tokenizers[name], model, asked, self.lookup)
        network = self.network(model.hash("t5_encoder"), planned.work)
        words = arguments(encode_text.command, {**text_options(asked), "model": name})
        nodes = self.builder.nodes
        nodes[key] = replace(
            nodes[key],
            command=("encode-text", *words),
            units=len(texts),
            memory=network.memory,
            seconds=network.seconds(1),
        )
        for _, _, other in others:
            nodes[other] = replace(nodes[other], needs=(key,), seconds=0.0, units=0)

    def pixels(self, model: Model, params: Any, stage: Any) -> Entry:
        """Plan the encoding of an image or a video, once."""
        name = self.name(model)
        if (name, params) not in self.inputs:
            planned: Plan[Entry] = stage.plan(model, params, self.lookup)
            size = input_bytes(planned.entries[0], model.config)
            self.add_input(model, planned, stage.command, vars(params), size)
            self.inputs[name, params] = planned.entries[0]
        return self.inputs[name, params]

    def add_input(
        self,
        model: Model,
        planned: Plan[Any],
        command: click.Command,
        asked: dict[str, Any],
        size: int,
    ) -> None:
        """Add the node of a text, an image or a video."""
        [entry] = planned.entries
        component = "t5_encoder" if entry.stage == "encode-text" else "vae_encoder"
        network = self.network(model.hash(component), planned.work)
        words = arguments(command, {**asked, "model": self.name(model)})
        self.builder.add(
            Node(
                key=entry.key,
                stage=entry.stage,
                command=(entry.stage, *words),
                network=network.hash,
                memory=network.memory,
                seconds=network.seconds(1),
                size=size,
            )
        )

    def network(self, component: str, works: Sequence[Work], place: int = 0) -> Network:
        """Return a network, by its hash, with what its work takes."""
        if not works:
            return Network(hash=component, place=place)
        [work] = works
        return Network(
            hash=component,
            place=place,
            memory=work.plan.peak,
            flops=work.plan.flops,
            speed=self.speeds.of(work),
        )

    def experts(self, model: Model, works: Sequence[Work]) -> dict[str, Network]:
        """Return the experts of a model by name; the high-noise one comes first."""
        return {
            name: self.network(
                model.hash(name),
                [work for work in works if work.component == name],
                place=int(name == LOW),
            )
            for name in model.config.experts
        }

    def chain(
        self,
        model: Model,
        inputs: Inputs,
        params: denoise.Params,
        run: Run,
        networks: tuple[Network, ...],
    ) -> Chain:
        """Return the steps of a run, with the command that takes them all."""
        needs = tuple(entry.key for entry in reversed(inputs.entries))
        asked = {**vars(params), "model": self.name(model), "references": needs}
        return Chain(
            run=run,
            networks=networks,
            command=("denoise", *arguments(denoise.command, asked)),
            needs=needs,
            size=step_bytes(run.settings, model.config),
        )

    def frames(self, planned: Sequence[Planned], paths: Sequence[Path]) -> None:
        """Plan the frames and the files of all videos. Of two videos that are the same, one is
        made.
        """
        plans = [self.decoding(one, path) for one, path in zip(planned, paths, strict=True)]
        keys = [one.entries[0].key for one in plans]
        self.builder.expect("decode", keys)
        self.builder.expect("denoise", [one.run.last for one in planned])
        there = {key for key in keys if self.store.has("decode", key)}
        asked = [
            (path, key, one.fps)
            for one, path, key in zip(planned, paths, keys, strict=True)
            if key in there and one.params.decode.after is None
        ]
        found = zip(asked, are_current(asked), strict=True)
        current = {path for (path, _, _), is_current in found if is_current}
        made: dict[str, tuple[Planned, Path]] = {}
        same = 0
        for one, path, plan in zip(planned, paths, plans, strict=True):
            interrupt.check()
            key = plan.entries[0].key
            first, file = made.setdefault(key, (one, path))
            if first is not one:
                check_same(first, file, one, path)
                same += 1
            node = self.decode_node(first, file, plan, there=key in there, current=file in current)
            self.builder.add_video(self.described(one, path, file, key), one.chain, node)
        if same:
            self.store.report.remark(
                f"{same} of {len(planned)} videos are the same as others, because what they "
                "differ in changes nothing; each is made once"
            )

    def decoding(self, one: Planned, path: Path) -> Plan[Entry]:
        """Plan the frames of a video. Raises UsageError for a file that it cannot be."""
        asked = replace(one.params.decode, output=path)
        if path.parent.is_dir():
            check_keeps(path, composed.input_files(one.params))
        else:  # the folder is made when the sweep begins
            check_rate(named_format(path), one.fps)
            asked = replace(asked, output=None, after=None)
        sources = Inputs(step=one.step, run=one.run, video=one.inputs.video)
        interrupt.check()
        try:
            return decode.plan(one.model, sources, asked, self.lookup)
        except UsageError as error:
            raise UsageError(f"video {one.number + 1}: {error}") from error

    def decode_node(
        self, one: Planned, path: Path, plan: Plan[Entry], *, there: bool, current: bool
    ) -> Node:
        """Return the node of a video: its frames are decoded from the last step, or exist."""
        [entry], [target] = plan.entries, plan.targets
        network = self.network(target.recipe.material.vae, plan.work)
        # without the step, nothing tells how its frames were made, and how fast they are
        alone = there and not self.store.has("denoise", one.run.last)
        asked = vars(one.params.decode) | {
            "model": self.name(one.model),
            "references": (entry.key if alone else one.run.last,),
            "fps": one.fps if alone else one.params.decode.fps,
            "output": path,
            "vae_tiny": None if alone else one.params.decode.vae_tiny,
            "tiling": "none" if target.recipe.material.tiling is None else "spatial",
        }
        return Node(
            key=entry.key,
            stage="decode",
            command=("decode", *arguments(decode.command, asked)),
            needs=() if there else (one.run.last,),
            exists=current,
            network=network.hash,
            rank=DECODE,
            memory=network.memory,
            seconds=0.0 if there else network.seconds(1),
            size=0 if there else frame_bytes(one.run.settings),
            output=str(path),
        )

    def described(self, one: Planned, path: Path, file: Path, frames: str) -> Video:
        """Return a video of the graph. `file` is where it is."""
        folder = self.sweep.folder
        name = path.relative_to(folder) if path.is_relative_to(folder) else path
        inputs = {entry.stage: entry.key for entry in one.inputs.entries}
        return Video(
            name=str(name),
            path=str(file),
            values=dict(shown(self.sweep.videos[one.number])),
            keys={**inputs, "denoise": one.run.last, "decode": frames},
        )


def text_options(params: encode_text.Params) -> dict[str, Any]:
    """Return the values of the options of encode-text."""
    none = params.negative_prompt == ""
    return {**vars(params), "prompt": params.prompts, "no_negative_prompt": none}


def check_same(first: Planned, file: Path, other: Planned, path: Path) -> None:
    """Raise UsageError for two videos of the same frames that are not the same file."""
    kinds = [
        (one.fps, one.params.decode.after, where.suffix.lower())
        for one, where in ((first, file), (other, path))
    ]
    if kinds[0] != kinds[1]:
        raise UsageError(
            f"videos {first.number + 1} and {other.number + 1} have the same frames, and differ "
            "only in how they are written; write the frames again with `wanpipe decode`"
        )
