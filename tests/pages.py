"""Runs the code blocks of a page as a reader would: in order, in one folder, as written.

Blocks marked bash, sh or console go to one shell, python blocks share one namespace. What a page
may presume is laid out by `lay_out`; programs that download or install are replaced by `bin/`.
"""

import contextlib
import doctest
import io
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from tests.stand_ins import CHECKPOINTS, EXPERTS, FRAMES, SIDE, STEPS
from tests.tiny_vae import NARROW, draw_weights, write_tiny_vae
from wanpipe import demo
from wanpipe.demo import world
from wanpipe.media.video import write_video

ROOT = Path(__file__).parent.parent
SHELL, PYTHON = ("bash", "sh", "console"), "python"
SHOWN = ("text", "json", "toml", "yaml")  # output and files: never run
FENCE = re.compile(r"(?P<indent> *)(?P<ticks>`{3,})(?P<language>[\w+-]*)(?P<rest>.*)")
STYLE = "style.safetensors"  # a LoRA for Wan2.1-T2V-1.3B, the demo's
EXPERT_WIDTH = 96  # of the transformers that stand in for Wan2.2-T2V-A14B
SMALL = {"width": SIDE, "height": SIDE, "num_frames": FRAMES, "steps": STEPS}
# files of repositories of others: a LoRA, or None for the transformer of Wan2.1-T2V-1.3B
REPOSITORIES = {
    "Kijai/WanVideo_comfy/Wan2_1-T2V-1_3B_bf16.safetensors": None,
    "Kijai/WanVideo_comfy/Wan2_1-T2V-14B_bf16.safetensors": None,
    "lightx2v/Wan2.1-Distill-Loras/wan2.1_t2v_14b_lora_rank64_lightx2v_4step.safetensors": (
        demo.LORA
    ),
}
PATIENCE = 120  # seconds for one block
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text without the fence, its first line."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Where it stands, as an editor takes it."""
        return f"{self.page}:{self.line}"


class BlockError(AssertionError):
    """Raise for a block that fails, or that cannot be understood."""


def blocks(page: Path) -> Iterator[Block]:
    """Every fenced block of a page. Raises BlockError for a language that is neither run nor known
    as output, and for a fence that stays open.
    """
    lines = page.read_text(encoding="utf-8").splitlines()
    start, opening, held = 0, None, []
    for number, line in enumerate(lines, 1):
        found = FENCE.fullmatch(line)
        if opening is None:
            if found:
                start, opening, held = number + 1, found, []
        elif found and found["ticks"] == opening["ticks"] and not found["language"]:
            language = opening["language"]
            if language not in (*SHELL, PYTHON, *SHOWN):
                known = ", ".join((*SHELL, PYTHON, *SHOWN))
                raise BlockError(f"{page}:{start - 1}: language {language!r} is not one of {known}")
            yield Block(page, start, language, textwrap.dedent("\n".join(held)) + "\n")
            opening = None
        else:
            held.append(line)
    if opening is not None:
        raise BlockError(f"{page}:{start - 1}: this fence stays open")


def pages() -> list[Path]:
    """README.md and every page of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


class Reader:
    """A person who follows a page: a folder, a shell that stays open, a Python namespace."""

    def __init__(self, folder: Path, shelf: Path, hub: str) -> None:
        self.folder = folder / "work"
        self.folder.mkdir()
        self.programs = folder / "bin"
        lay_out(self.folder, shelf)
        install(self.programs)
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        left_out = {"WANPIPE_CACHE", "PYTHONDONTWRITEBYTECODE", "HF_HUB_CACHE", "HF_TOKEN"}
        self.environment = {
            **{name: text for name, text in os.environ.items() if name not in left_out},
            "PATH": path,
            "PYTHONPATH": str(ROOT),
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPYCACHEPREFIX": str(shelf / "bytecode"),  # compiled once for all commands
            "SHELF": str(shelf),  # where `hf download` finds checkpoints
            "HF_ENDPOINT": hub,
            "HF_HOME": str(folder / "huggingface"),
        }
        self.state = folder / "state"
        self.state.write_text("")
        self.namespace: dict[str, Any] = {"__name__": "__main__"}

    def run(self, block: Block) -> None:
        """Run one block. Raises BlockError where it fails."""
        if block.language == PYTHON:
            self.python(block)
        elif block.language == "console":
            self.console(block)
        elif block.language in SHELL:
            self.shell(block.text, block.place)

    def shell(self, text: str, place: str) -> str:
        """Run lines in the shell of the page; return what they print. Variables and the current
        folder are kept for the next block.
        """
        state = str(self.state)
        secret = "^declare -[a-zA-Z]*r|BASH|FUNCNAME|SHELLOPTS|^declare -[aA]? *(DIRSTACK|GROUPS)"
        keep = f"{{ declare -f; declare -p | grep -Ev '{secret}'; }} >{state!r}"
        script = f"source {state!r} 2>/dev/null\nset -euo pipefail\n{text}\n{keep}\n"
        script += f"printf 'cd %q\\n' \"$PWD\" >>{state!r}\n"
        try:
            done = subprocess.run(
                ["bash", "-c", script],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=PATIENCE,
            )
        except subprocess.TimeoutExpired as error:
            raise BlockError(f"{place}: it took more than {PATIENCE} s\n{text}") from error
        if done.returncode:
            raise BlockError(f"{place}: exit code {done.returncode}\n{text}\n{done.stdout}")
        return done.stdout

    def console(self, block: Block) -> None:
        """Run the lines after `$ `, and compare what they print with what stands below them; `...`
        stands for any text.
        """
        checker = doctest.OutputChecker()
        for part in re.split(r"^(?=\$ )", block.text, flags=re.MULTILINE):
            if not part.strip():
                continue
            if not part.startswith("$ "):
                raise BlockError(f"{block.place}: output without a command: {part}")
            command, output = part[2:], ""
            lines = command.splitlines(keepends=True)
            length = next(i for i, line in enumerate(lines, 1) if not line.endswith("\\\n"))
            command, output = "".join(lines[:length]), "".join(lines[length:])
            printed = self.shell(command, block.place)
            if output.strip() and not checker.check_output(output, printed, FLAGS):
                raise BlockError(f"{block.place}: {command}printed\n{printed}\nnot\n{output}")

    def python(self, block: Block) -> None:
        """Run a python block in the namespace of the page."""
        source = "\n" * (block.line - 1) + block.text  # so that a traceback names the right line
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(io.StringIO()):
            try:
                exec(compile(source, str(block.page), "exec"), self.namespace)
            except Exception as error:
                raise BlockError(f"{block.place}: {type(error).__name__}: {error}") from error


def stock(shelf: Path, checkpoints: Path) -> None:
    """Put every checkpoint that pages name on a shelf, each with a default video so small that a
    run takes a second. `checkpoints` are those of tests/data.
    """
    module, generator = "diffusion_model.blocks.0.self_attn.q", np.random.default_rng(7)
    shapes = {"lora_A": (4, EXPERT_WIDTH), "lora_B": (EXPERT_WIDTH, 4)}
    tensors = {
        f"{module}.{part}.weight": generator.normal(0, 0.02, shape).astype(np.float32)
        for part, shape in shapes.items()
    }
    save_file(tensors, shelf / "expert.safetensors")
    for name, kind in CHECKPOINTS.items():
        if kind in demo.NAMES:
            with demo.checkpoint(kind) as source:
                shutil.copytree(source, shelf / name)
        else:
            shutil.copytree(checkpoints / kind, shelf / name)
        configs = [shelf / name / "config.json", shelf / name / "high_noise_model" / "config.json"]
        for config in configs:
            if config.exists():
                settings = json.loads(config.read_text(encoding="utf-8"))
                settings["wanpipe"] = {**settings.get("wanpipe", {}), **SMALL}
                config.write_text(json.dumps(settings), encoding="utf-8")
        low = shelf / name / "low_noise_model" / "config.json"
        if low.exists():
            shutil.copyfile(configs[1], low)


def publish(shelf: Path) -> None:
    """Put the repositories of others that pages name beside the checkpoints of a Hub."""
    source = shelf / "Wan2.1-T2V-1.3B" / "diffusion_pytorch_model.safetensors"
    for name, content in REPOSITORIES.items():
        path = shelf / "uploads" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source if content is None else content, path)


def lay_out(folder: Path, shelf: Path) -> None:
    """Put there what pages may presume: checkpoints, images, videos, a mask, LoRA files."""
    for name in CHECKPOINTS:
        shutil.copytree(shelf / name, folder / name)
    scene = world.parse("a red circle moves right on a white background")
    film = world.render(scene)
    for name, frame in (("cat", 0), ("cat-end", -1), ("face", 0), ("hat", -1)):
        Image.fromarray(film[frame]).save(folder / f"{name}.png")
    for name in ("clip", "depth"):
        write_video(folder / f"{name}.mp4", [film[: 2 * FRAMES]], fps=16)
    mask = np.zeros(film.shape[1:3], dtype=np.uint8)
    mask[: len(mask) // 2] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    shutil.copyfile(demo.LORA, folder / STYLE)
    write_tiny_vae(folder / "taew2_1.safetensors", draw_weights("taew2_1", NARROW))
    for name in EXPERTS:
        shutil.copyfile(shelf / "expert.safetensors", folder / name)


def install(programs: Path) -> None:
    """Write the programs that pages call: wanpipe is this code, the others stand in."""
    programs.mkdir()
    for name, text in STAND_INS.items():
        path = programs / name
        path.write_text(text.replace("@PYTHON@", sys.executable).replace("@ROOT@", str(ROOT)))
        path.chmod(0o755)


NOTHING = "#!/bin/sh\nexit 0\n"
STAND_INS = {
    # the code of this tree, with small videos
    "wanpipe": """#!@PYTHON@
import sys
sys.path[0] = "@ROOT@"
from tests.stand_ins import wanpipe
wanpipe(sys.argv[1:])
""",
    "hf": """#!@PYTHON@
import sys
sys.path[0] = "@ROOT@"
from tests.stand_ins import hf
hf(sys.argv[1:])
""",
    # make's own graph is real, the other targets are tested elsewhere
    "make": """#!/bin/sh
case "$1" in
films) exec /usr/bin/env make -f "@ROOT@/Makefile" WANPIPE=wanpipe "$@" ;;
esac
""",
    "python": '#!/bin/sh\nexec "@PYTHON@" "$@"\n',
    "caffeinate": '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\nexec "$@"\n',
    # the real one, and a hostfile whose two Macs are this machine
    "mlx.launch": """#!@PYTHON@
from mlx._distributed_utils.launch import main
main()
""",
    "mlx.distributed_config": """#!/bin/sh
while [ "$1" != --output ]; do shift; done
here='{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}'
echo "[$here, $here]" >"$2"
""",
    "dask": """#!@PYTHON@
from dask.__main__ import main
main()
""",
    **dict.fromkeys(("pip", "pip3", "uv", "brew", "git", "open", "nvidia-smi", "scp"), NOTHING),
}
