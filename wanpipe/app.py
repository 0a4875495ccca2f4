"""The command line: finds a stage by name, gives it a session, turns errors into one line and an
exit code.

The only place that reads the environment. Loads neither MLX nor Zarr.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click

import stages
from wanpipe.errors import UsageError, WanpipeError, error_line, wants_json
from wanpipe.runtime import interrupt
from wanpipe.runtime.interrupt import Interrupted

INTERRUPTED = 130  # the exit code where no handler of ours tells the signal
KEPT = "every finished step is kept, the same command goes on from there"
SMALLER = "make width, height or num-frames smaller, or use decode --tiling spatial"


class Stopped(Exception):
    """Take an interruption past click, which would print an empty line."""


class Stages(click.Group):
    """The commands of `stages.COMMANDS`, imported when they are needed."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(stages.COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in stages.COMMANDS:
            return None
        command: click.Command = import_module(stages.COMMANDS[name]).command
        interrupt.check()
        return command

    def invoke(self, context: click.Context) -> Any:
        """Run a command. Raises Stopped where it is interrupted."""
        try:
            return super().invoke(context)
        except KeyboardInterrupt as error:
            raise Stopped from error


@click.group(cls=Stages, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="wanpipe")
def cli() -> None:
    """Make videos with Wan2.1 and Wan2.2: five stages over a cache that computes nothing twice.

    \b
    convert, encode-text, encode-image, denoise and decode each print the path of the entry they
    made;
    run does all of them. Interrupted, the same command goes on where it stopped.
    """


def fail(message: str, code: int, as_json: bool) -> NoReturn:
    """Print one line on stderr and leave."""
    print(error_line(message, as_json), file=sys.stderr)
    sys.exit(code)


def check_stages() -> None:
    """Raise WanpipeError where another package called `stages` is imported in place of ours."""
    ours = Path(__file__).resolve().parent.parent / "stages" / "__init__.py"
    found = Path(stages.__file__ or "").resolve()
    if found != ours:
        raise WanpipeError(
            f"another package named stages, at {found.parent}, hides wanpipe's; remove it from the "
            "path"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Exit code 2 for usage, 1 for other failures, 128 and its number for a
    signal.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    as_json = wants_json(words)
    try:
        interrupt.check()
        check_stages()
        cli.main(args=words, prog_name="wanpipe", standalone_mode=False)
    except WanpipeError as error:
        fail(str(error), error.exit_code, as_json)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(UsageError.exit_code)
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f"; see `{context.command_path} --help`" if context else ""
        fail(error.format_message().rstrip(".") + hint, error.exit_code, as_json)
    except (KeyboardInterrupt, Stopped, click.Abort) as error:
        cause = error.__cause__ or error
        code = cause.code if isinstance(cause, Interrupted) else INTERRUPTED
        if sys.stderr.isatty():
            print(file=sys.stderr)  # the terminal has put ^C on this line
        fail(f"interrupted; {KEPT}", code, as_json)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except MemoryError:
        fail(f"out of memory; {SMALLER}", 1, as_json)
    except RuntimeError as error:  # MLX has no type of its own for an allocation that failed
        if "alloc" not in str(error).lower():
            raise
        fail(f"out of memory ({error}); {SMALLER}", 1, as_json)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        fail(f"{place}{error.strerror or error}", 1, as_json)


if __name__ == "__main__":
    main()
