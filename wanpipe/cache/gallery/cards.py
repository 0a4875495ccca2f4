"""Describes the runs of a cache for the pages of a gallery, as text and numbers.

Reads records of runs and summaries of entries, no array.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import UNSET

from wanpipe.cache.branches import StepFormatter, View
from wanpipe.cache.gallery.pictures import STRIP_FRAMES
from wanpipe.cache.gallery.remake import number, remake_command
from wanpipe.cache.tree import draw
from wanpipe.runtime.documents import to_builtins
from wanpipe.runtime.units import format_duration, format_si
from wanpipe.store import Run, Store
from wanpipe.store.index import Summary
from wanpipe.store.schema import ROLES

MARK = "\0"  # before the key in a drawn line; no line has it
OWN_LABELS = {"num_frames": "frames", "guide_scale": "guidance", "trim_first_frames": "trimmed"}


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a tree: its graph, the text of its step, and the run that the step belongs to."""

    graph: str
    text: str
    run: str | None = None
    own: bool = False


@dataclass(kw_only=True)
class Card:
    """A run as its pages show it.

    `strips` are the pictures of its steps by number from 1, `film` its video, `poster` the first
    frame of it and `still` a frame of the latest step: names in the folder. `notes` tell what is
    missing or damaged.
    """

    run: Run
    rows: Sequence[Summary]  # of its steps that exist, in order
    settings: Mapping[str, str]
    command: str | None
    bytes: int
    date: str
    neighbor: "Card | None" = None
    tree: Sequence[Line] = ()
    names: Sequence[str] = ()  # of its steps and frames, and whether one is pinned
    film: str | None = None
    poster: str | None = None
    still: str | None = None
    strips: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        """The key of the run."""
        return self.run.key

    @property
    def short(self) -> str:
        """The start of the key."""
        return self.key[:8]

    @property
    def title(self) -> str:
        """The prompt, or what stands for it."""
        return self.run.prompt or "No prompt is known"

    @property
    def seed(self) -> str:
        """The seed in words."""
        return "given noise" if self.run.seed is None else f"seed {self.run.seed}"

    @property
    def model(self) -> str:
        """The variant of the model, or the name of its folder."""
        return self.run.model.variant or self.run.model.directory.rpartition("/")[2] or "unknown"

    @property
    def done(self) -> int:
        """The number of the last step that exists."""
        return self.run.number(self.rows[-1].key) + 1 if self.rows else 0

    @property
    def finished(self) -> bool:
        """Whether the last step exists, or a video."""
        return self.done == self.run.step_count or self.film is not None

    @property
    def picture(self) -> str | None:
        """The picture of the card: the first frame, or else one of the latest step."""
        return self.poster or self.still

    @property
    def frames(self) -> int:
        """The frames in a strip."""
        return min((self.run.settings.num_frames - 1) // 4 + 1, STRIP_FRAMES)

    @property
    def size(self) -> str:
        """The size on disk of its steps and frames."""
        return format_si(self.bytes, "B")

    @property
    def branched(self) -> str | None:
        """The step that the run branches from."""
        return self.run.start if isinstance(self.run.start, str) else None

    def differences(self) -> list[tuple[str, str, str]]:
        """Return the settings that differ from those of the neighbor: label, there, here."""
        if self.neighbor is None:
            return []
        here, there = self.settings, self.neighbor.settings
        labels = list(dict.fromkeys([*there, *here]))
        pairs = [(label, there.get(label, "none"), here.get(label, "none")) for label in labels]
        return [pair for pair in pairs if pair[1] != pair[2]]


def describe(store: Store, runs: Sequence[Run], view: View) -> list[Card]:
    """Describe runs, the latest first. Their pictures and videos are still missing."""
    frames = view.trees.frames
    cards = []
    for run in runs:
        rows = [view.trees.steps[key] for key in run.steps if key in view.trees.steps]
        decoded = [row for key in run.steps for row in frames.get(key, ())]
        entries = [*rows, *decoded]
        dates = [row.time for row in entries]
        card = Card(
            run=run,
            rows=rows,
            settings=settings_of(run),
            command=remake_command(run, store),
            bytes=sum(row.bytes for row in entries),
            names=list(
                dict.fromkeys(name for row in entries for name in view.names.get(row.id, ()))
            ),
            date=max([run.created, *dates]) if dates else run.created,
        )
        damaged = [
            row
            for key in run.steps
            if (row := view.rows.get(f"denoise/{key}")) and not row.readable
        ]
        card.notes += [f"Step {run.number(row.key) + 1} is damaged" for row in damaged]
        if not rows:
            card.notes.append("None of its steps is in the cache any more")
        cards.append(card)
    cards.sort(key=lambda card: (card.date, card.key), reverse=True)
    add_neighbors(cards)
    add_trees(cards, view)
    return cards


def settings_of(run: Run) -> dict[str, str]:
    """Return prompts, seed, model and settings as text by label, without what is not set."""
    settings = run.settings
    found: dict[str, Any] = {
        "prompt": run.prompt,
        "negative prompt": run.negative_prompt,
        "seed": run.seed if run.seed is not None else "given noise",
        "model": run.model.variant or run.model.directory or None,
        "dtype": run.dtype,
        "size": f"{settings.width} × {settings.height}",
    }
    for name, value in to_builtins(settings).items():
        if name not in ("width", "height", "loras") and value not in (None, UNSET):
            found[OWN_LABELS.get(name, name.replace("_", " "))] = value
    low, high = settings.guide_scale
    found["guidance"] = (
        low if low == high else f"{number(low)} low noise, {number(high)} high noise"
    )
    if not settings.trim_first_frames:
        del found["trimmed"]
    for index, lora in enumerate(settings.loras):
        expert = "" if lora.expert is None else f", {lora.expert.replace('_', ' ')}"
        found[f"LoRA {index + 1}"] = f"{lora.name}, strength {number(lora.strength)}{expert}"
    found |= {role: f"{ROLES[role]}/{key}" for role, key in run.inputs.items() if role != "text"}
    if isinstance(run.start, str):
        found["branches from"] = f"step {run.first}, {run.start[:8]}"
    return {name: as_text(value) for name, value in found.items() if value is not None}


def as_text(value: Any) -> str:
    """Format a setting."""
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(as_text, value))
    return str(value)


def add_neighbors(cards: Sequence[Card]) -> None:
    """Give each card the one to compare it with: the run that it branches from, or else the run
    before it, of the same prompt if there is one.
    """
    owners = {step: card for card in cards for step in card.run.steps}
    before: dict[str | None, Card] = {}
    last: Card | None = None
    for card in reversed(cards):
        parent = owners.get(card.branched or "")
        card.neighbor = parent or before.get(card.run.prompt, last)
        before[card.run.prompt] = last = card


def add_trees(cards: Sequence[Card], view: View) -> None:
    """Give each card the tree of its run and of all that branch from the same first step."""
    pages = {step: card.key for card in reversed(cards) for step in card.run.steps}
    drawn: dict[str, list[tuple[str, str, str | None]]] = {}
    for card in cards:
        if not card.rows:
            continue
        root = view.trees.root(card.rows[-1].key)
        if root not in drawn:
            drawn[root] = draw_tree(view, root)
        own = set(card.run.steps)
        card.tree = [
            Line(
                graph=graph,
                text=text,
                run=pages.get(key or "") if key not in own else None,
                own=key in own,
            )
            for graph, text, key in drawn[root]
        ]


def draw_tree(view: View, root: str) -> list[tuple[str, str, str | None]]:
    """Draw a tree as `wanpipe log` does, in lines of graph, text and key of the step."""
    formatter = StepFormatter(view, root, "")
    lines: list[tuple[str, str, str | None]] = []
    for line in draw(view.trees, root, lambda key: f"{MARK}{key}", formatter.shown):
        graph, _, key = line.partition(MARK)
        if key:
            lines.append((graph, "  ".join(formatter.parts(key)), key))
        elif ":" in graph:
            head, _, text = graph.partition(": ")
            lines.append((f"{head}: ", text, None))
        else:
            lines.append((graph, "", None))
    return [*lines, ("o ", formatter.start(), None)]


def seconds_of(card: Card) -> str:
    """Return how long its existing steps took to compute, as text."""
    return format_duration(sum(row.seconds for row in card.rows))
