"""The entry point of `wanpipe` and `python -m wanpipe`.

Installs the signal handlers before any heavy import, so that Ctrl-C during an import prints one
line. Before that, Ctrl-C ends the process without a word.
"""

import _signal  # type: ignore[import-not-found,unused-ignore] # takes no time, as `signal` does
import sys
import warnings

if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)


def main() -> None:
    """Run the command line and exit with its code."""
    from wanpipe.runtime import interrupt, streams
    from wanpipe.runtime.text import wants_json

    streams.open_missing()
    warnings.simplefilter("ignore")  # they are for developers; what a user must know is a remark
    interrupt.install(as_json=wants_json(sys.argv[1:]))
    from wanpipe import app

    try:
        app.main()
    except SystemExit as end:
        interrupt.finish(end.code)
        raise


if __name__ == "__main__":
    main()
