"""Carries out a small graph in a process of its own, as `wanpipe sweep` does.

Prints what became of each node as a line of JSON, and events on stderr. Without workers and a
scheduler, it carries out the commands one after the other.
"""

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from stages.worker import carry_out as call
from tests.sweeps.graphs import graph
from wanpipe.cli.progress import JsonReport
from wanpipe.errors import WanpipeError
from wanpipe.runtime import interrupt
from wanpipe.runtime.interrupt import Interrupted
from wanpipe.runtime.report import Report
from wanpipe.store import Store
from wanpipe.sweeps.connection import Tls
from wanpipe.sweeps.node import Graph
from wanpipe.sweeps.run import Options, at_work, carry_out


def main() -> None:
    """Read the options, and carry out the graph."""
    options = argparse.ArgumentParser()
    options.add_argument("model", type=Path)
    options.add_argument("--cache", type=Path, required=True)
    options.add_argument("--prompts", type=int, default=1)
    options.add_argument("--seeds", type=int, default=2)
    options.add_argument("--steps", type=int, default=4)
    options.add_argument("--break", dest="broken", help="Let the text of this prompt fail.")
    options.add_argument("--plain", action="store_true")
    options.add_argument("--scheduler")
    options.add_argument("--workers", type=int)
    options.add_argument("--retries", type=int, default=2)
    options.add_argument("--tls", type=Path, help="A folder with ca.pem, cert.pem and key.pem.")
    given = options.parse_args()
    interrupt.install(as_json=True)
    prompts = [f"a cat number {number}" for number in range(given.prompts)]
    planned = graph(given.model, given.cache, prompts, range(given.seeds), given.steps)
    if given.broken:
        planned = broken(planned, given.broken)
    if given.plain:
        for node in planned.nodes:
            call(node.stage, [*node.command[1:], "--cache", str(given.cache)], Report())
        return
    files = ("ca.pem", "cert.pem", "key.pem")
    paths = [given.tls / name for name in files] if given.tls else [None, None, None]
    tls = Tls(ca_file=paths[0], cert=paths[1], key=paths[2])
    asked = Options(
        scheduler=given.scheduler, workers=given.workers, retries=given.retries, tls=tls
    )
    try:
        store = Store(given.cache, JsonReport())
        with at_work(asked, store) as crew:
            found = carry_out(planned, asked, store, crew)
    except Interrupted as error:
        sys.exit(error.code)
    except WanpipeError as error:
        print(json.dumps({"event": "error", "text": str(error)}), file=sys.stderr)
        sys.exit(error.exit_code)
    for outcome in found.values():
        print(json.dumps(asdict(outcome)))


def broken(planned: Graph, prompt: str) -> Graph:
    """Let the text of a prompt need more memory than it gets."""
    nodes = [
        replace(node, command=(*node.command, "--memory", "1")) if prompt in node.command else node
        for node in planned.nodes
    ]
    return Graph(nodes=tuple(nodes))


if __name__ == "__main__":
    main()
