"""Sweeps in a folder with a tiny model: files, graphs, and the commands of their nodes."""

from pathlib import Path

import click

from stages.sweep_plan import known_options, plan
from tests.workshop import Place, inside
from wanpipe.store import Store
from wanpipe.sweeps.document import Sweep, read_sweep
from wanpipe.sweeps.node import Graph

SMALL = {"width": "32", "height": "32", "num-frames": "5", "steps": "4", "output": '"{n}.mp4"'}
SEEDS = '[axes]\nprompt = ["a cat"]\nseed = [1, 2]\n'


def write(place: Place, text: str) -> Path:
    """Write a sweep file for the model of a place, with small videos unless it says otherwise."""
    given = text.replace("timesteps =", "steps =")
    small = [f"{name} = {value}" for name, value in SMALL.items() if f"{name} =" not in given]
    path = place.root / "sweep.toml"
    path.write_text("\n".join([f'model = "{place.model}"', *small, text]))
    return path


def read(place: Place, text: str) -> Sweep:
    """Read a sweep file of this text."""
    return read_sweep(write(place, text), known_options())


def graph_of(place: Place, text: str, draft: int | None = None) -> Graph:
    """Plan a sweep file of this text."""
    return plan(read(place, text), Store(place.cache), draft)


def make(place: Place, graph: Graph) -> None:
    """Run the command of every node that does not exist, in order; each must make its entry."""
    for node in graph.nodes:
        if not node.exists:
            assert Path(place.do(*node.command).paths[-1]).name == node.key, node
            assert (place.cache / node.stage / node.key).is_dir()


def refused(place: Place, text: str) -> str:
    """Return the line with which a sweep file of exactly this text is refused; nothing is
    written.
    """
    path = place.root / "sweep.toml"
    path.write_text(text.replace("MODEL", str(place.model)))
    before = sorted(place.root.rglob("*"))
    result = inside("sweep", path.name, "--dry-run", cwd=place.root)
    assert result.code == 2, result.stderr
    assert not result.paths
    assert sorted(place.root.rglob("*")) == before
    [line] = result.stderr.splitlines()
    return line.removeprefix("wanpipe: error: sweep.toml: ")


def option(name: str) -> click.Option:
    """Return an option that a sweep file may set."""
    return known_options()[name]
