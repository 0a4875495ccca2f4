"""The command line application: loads a command by name, and turns errors into one line and an exit
code.

Loads neither MLX nor Zarr.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click

import stages
from wanpipe.cli import printing
from wanpipe.cli.failures import explain
from wanpipe.errors import UsageError, WanpipeError
from wanpipe.runtime import interrupt, streams
from wanpipe.runtime.interrupt import Interrupted
from wanpipe.runtime.text import error_line, wants_json

INTERRUPTED = 130  # exit code of an interruption whose signal is unknown
CLOSED_PIPE = 128 + 13  # exit code of a process that SIGPIPE ended
RESUME_HINT = "run the same command again to resume, finished steps are kept"


class CommandEnded(Exception):
    """Carries an interruption or a closed pipe past click, which would answer them in its way."""


@contextmanager
def past_click() -> Iterator[None]:
    """Raise CommandEnded for what click must not catch."""
    try:
        yield
    except (KeyboardInterrupt, BrokenPipeError) as error:
        raise CommandEnded from error


class LazyGroup(click.Group):
    """The commands in `stages.COMMANDS`, each imported when it is needed."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(stages.COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in stages.COMMANDS:
            return None
        command: click.Command = import_module(stages.COMMANDS[name]).command
        interrupt.check()
        return command

    def invoke(self, context: click.Context) -> Any:
        """Run a command. Raises CommandEnded."""
        with past_click():
            return super().invoke(context)

    def make_context(self, *arguments: Any, **more: Any) -> click.Context:
        """Parse the arguments, or print the help. Raises CommandEnded."""
        with past_click():
            return super().make_context(*arguments, **more)


@click.group(cls=LazyGroup)
@click.version_option(package_name="wanpipe")
@click.help_option("-h", "--help")
def cli() -> None:
    """Make videos with Wan2.1 and Wan2.2.

    `wanpipe run` makes a video from a prompt in up to six stages: convert, encode-text,
    encode-image or encode-video, denoise and decode. Each stage is also a command, which prints the
    path of its entry in the cache.

    Nothing is computed twice. After an interruption, run the same command again to resume.
    """


def fail(message: str, code: int, as_json: bool) -> NoReturn:
    """Print one line on stderr and exit."""
    print(error_line(message, as_json), file=sys.stderr)
    sys.exit(code)


def abandon() -> NoReturn:
    """End without a word because nobody reads the output any more, as other tools do."""
    streams.discard_output()
    sys.exit(CLOSED_PIPE)


def check_stages_package() -> None:
    """Raise WanpipeError if another package named `stages` shadows ours."""
    ours = Path(__file__).resolve().parent.parent / "stages" / "__init__.py"
    found = Path(stages.__file__ or "").resolve()
    if found != ours:
        raise WanpipeError(
            f"another package named stages, at {found.parent}, shadows wanpipe's; "
            "remove it from the Python path"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Exits with 2 for a usage error, 1 for another failure, and 128 plus the number of a signal.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    as_json = wants_json(given)
    try:
        interrupt.check()
        check_stages_package()
        cli.main(args=given, prog_name="wanpipe", standalone_mode=False)
        printing.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        sys.exit(UsageError.exit_code)
    except (KeyboardInterrupt, BrokenPipeError, CommandEnded, click.Abort) as error:
        cause = error.__cause__ or error
        if isinstance(cause, BrokenPipeError):
            abandon()
        code = cause.code if isinstance(cause, Interrupted) else INTERRUPTED
        if sys.stderr.isatty():
            print(file=sys.stderr)  # the terminal has echoed ^C on this line
        fail(f"interrupted; {RESUME_HINT}", code, as_json)
    except Exception as error:
        found = explain(error)
        if found is None:
            raise
        fail(*found, as_json)


if __name__ == "__main__":
    main()
