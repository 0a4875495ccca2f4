"""Draws the pictures of the documentation from real runs of the demo model.

    make picture

Writes docs/images/: terminal sessions as SVG; contact sheets, a preview of drafts and pages of a
gallery as PNG.
Runs every command that a picture shows, in a new folder.
"""

import contextlib
import io
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from PIL import Image
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from wanpipe import demo
from wanpipe.app import main as wanpipe
from wanpipe.cli import session
from wanpipe.cli.progress import BarReport
from wanpipe.demo.examples import EXAMPLES
from wanpipe.runtime.report import Task
from wanpipe.store import Store

TARGET = Path(__file__).parent / "images"
MODEL = "Wan2.1-T2V-1.3B"  # the folder's name in the pictures
CIRCLE = "a red circle moves right on a white background"
STAR = "a yellow star spins quickly on a black background"
WIDTH = 88  # characters
BROWSER = "chromium"
COLORS = 128  # in the palette of a PNG
README = ("last-image", "continue", "reference", "control")  # examples in one picture
# rich's frame, without the font that it would load from outside
FRAME = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
    "Fira Code", "ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono"
)


class Recorder(BarReport):
    """Shows bars on a recorded console. Interrupts the run after step `stop` of denoise."""

    def __init__(self, console: Console, stop: int | None) -> None:
        super().__init__()
        self.console, self.stop = console, stop

    def line(self, text: str) -> None:
        """Print one line, wrapped to the width of the picture."""
        self.console.print(text, markup=False)

    def progress(self, task: Task, elapsed: float, left: float) -> None:
        """Show progress, or behave as if a person pressed Ctrl-C."""
        super().progress(task, elapsed, left)
        if task.label == "denoise" and task.done == self.stop:
            raise KeyboardInterrupt


class Screen:
    """A terminal that is drawn as SVG."""

    def __init__(self) -> None:
        # not a terminal, so rich prints only the final state of each bar
        self.console = Console(
            record=True, width=WIDTH, file=io.StringIO(), color_system="truecolor", highlight=False
        )

    def type(self, command: str, stop: int | None = None, quiet: bool = False) -> str:
        """Run a command, show it with its output, and return its stdout."""
        if not quiet:
            self.console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
        out, err = io.StringIO(), io.StringIO()
        report: Callable[..., BarReport] = lambda *_: Recorder(self.console, stop)  # noqa: E731
        if quiet:
            report = lambda *_: Recorder(Console(file=io.StringIO()), stop)  # noqa: E731
        words = shlex.split(command.replace("\\\n", " "))[1:]
        with (
            patch.object(session, "make_report", report),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            contextlib.suppress(SystemExit),
        ):
            wanpipe(words)
        if not quiet:
            for text in (err.getvalue(), out.getvalue()):
                self.console.print(Text(text.rstrip()), soft_wrap=False) if text else None
        return out.getvalue().strip()

    def save(self, name: str) -> None:
        """Write the picture."""
        svg = self.console.export_svg(
            title="wanpipe", theme=MONOKAI, code_format=FRAME, unique_id=name
        )
        (TARGET / f"{name}.svg").write_text(f"{svg.strip()}\n", encoding="utf-8")


def interrupted() -> None:
    """Draw a run that is interrupted and resumed."""
    screen = Screen()
    screen.type(f"wanpipe convert --checkpoint-dir {MODEL} --name model", quiet=True)
    command = f'wanpipe run --checkpoint-dir {MODEL} \\\n  --prompt "{CIRCLE}" --output circle.mp4'
    screen.type(command, stop=8)
    screen.console.print()
    screen.type(command)
    screen.save("run")


def branched() -> None:
    """Draw the plan of a branch, and the tree of runs that it leads to."""
    screen = Screen()
    first = f'wanpipe run --model model --prompt "{CIRCLE}" --seed 1 --name circle --output 1.mp4'
    screen.type(first, quiet=True)
    tenth = Path(last(screen, "--seed 1 --stop-at 10")).name[:8]
    screen.type(f"wanpipe denoise --from {tenth} --guide-scale 6 --dry-run")
    screen.save("plan")
    screen.type(f"wanpipe denoise --from {tenth} --guide-scale 6 --name strong", quiet=True)
    screen = Screen()
    screen.type("wanpipe log strong")
    screen.save("log")


def last(screen: Screen, options: str) -> str:
    """Denoise the first prompt quietly; the path of the last step."""
    text = screen.type(f'wanpipe encode-text --model model --prompt "{CIRCLE}"', quiet=True)
    return screen.type(f"wanpipe denoise --model model --from {text} {options}", quiet=True)


def drafts() -> None:
    """Draw a preview of drafts, and the contact sheet of a demo.

    The preview uses the VAE, because the linear map exists only for the official VAEs.
    """
    screen = Screen()
    text = screen.type(f'wanpipe encode-text --model model --prompt "{STAR}"', quiet=True)
    seeds = "--seed 1 --seed 2"
    screen.type(f"wanpipe denoise --model model --from {text} {seeds} --stop-at 8", quiet=True)
    screen.type("wanpipe preview --all-drafts --vae --columns 3 --output drafts.png", quiet=True)
    screen.type(f'wanpipe demo "{STAR}" --seed 1 --seed 2 --output-dir demo', quiet=True)
    shrink(Path("drafts.png"), "drafts")
    shrink(next(Path("demo").glob("*.png")), "contact-sheet")


def examples() -> None:
    """Draw the contact sheet of every example with inputs, and some of them as one picture."""
    screen, sheets = Screen(), {}
    for what in (name for name in EXAMPLES if name != "text"):
        screen.type(f"wanpipe demo --what {what} --output-dir {what}", quiet=True)
        [sheets[what]] = Path(what).glob("*.png")
        shrink(sheets[what], what)
    chosen = [Image.open(sheets[what]) for what in README]
    width, height = chosen[0].width, max(sheet.height for sheet in chosen)
    rows = -(-len(chosen) // 2)
    page = Image.new("RGB", (2 * width, rows * height), chosen[0].getpixel((0, 0)))
    for index, sheet in enumerate(chosen):
        page.paste(sheet, (index % 2 * width, index // 2 * height))
    page.save("examples.png")
    shrink(Path("examples.png"), "examples")


def gallery() -> None:
    """Draw the gallery of some runs in Chromium: finished ones, a draft and a branch."""
    screen = Screen()
    for prompt in (STAR, "a blue square grows on a grey background", CIRCLE):
        screen.type(f'wanpipe demo "{prompt}" --seed 1 --seed 2 --output-dir demo', quiet=True)
    text = screen.type(
        'wanpipe encode-text --model model --prompt "a green triangle spins on a white background"',
        quiet=True,
    )
    screen.type(f"wanpipe denoise --model model --from {text} --seed 5 --stop-at 8", quiet=True)
    tenth = Path(last(screen, "--seed 1 --stop-at 10")).name[:8]
    branch = screen.type(f"wanpipe denoise --from {tenth} --guide-scale 6", quiet=True)
    screen.type(f"wanpipe decode --from {branch} --output branch.mp4", quiet=True)
    page = Path(screen.type("wanpipe gallery --output gallery --limit 8", quiet=True)).absolute()
    [key] = {run.key for run in Store("cache").runs.of(Path(branch).name)}
    browse(page, "gallery", 1000)
    browse(page.with_name("runs") / f"{key}.html", "gallery-run", 1000)


def browse(page: Path, name: str, height: int) -> None:
    """Draw a page as wide as a desktop's window."""
    command = [BROWSER, "--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-gpu"]
    command += [f"--window-size=1280,{height}", "--timeout=3000"]
    command += [f"--screenshot={Path(name).absolute()}.png", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True)
    shrink(Path(f"{name}.png"), name, colors=256)


def shrink(source: Path, name: str, colors: int = COLORS) -> None:
    """Write a PNG with a palette."""
    with Image.open(source) as picture:
        small = picture.convert("RGB").quantize(colors, dither=Image.Dither.NONE)
        small.save(TARGET / f"{name}.png", optimize=True)


def main() -> None:
    """Draw all pictures."""
    TARGET.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        shutil.copytree(demo.T2V, MODEL)
        interrupted()
        branched()
        drafts()
        examples()
        if shutil.which(BROWSER):
            gallery()
        else:
            print(f"The pictures of the gallery stay as they are: there is no {BROWSER}.")
    for path in sorted(TARGET.iterdir()):
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
