"""The entry point of `wanpipe` and `python -m wanpipe`.

Installs the signal handlers before any heavy import, so that Ctrl-C during an import prints one
line.
"""

import sys
import warnings

from wanpipe.runtime import interrupt, streams
from wanpipe.runtime.text import wants_json


def main() -> None:
    """Run the command line and exit with its code."""
    streams.settle()
    warnings.simplefilter("ignore")  # they are for developers; what a user must know is a remark
    interrupt.install(as_json=wants_json(sys.argv[1:]))
    from wanpipe import app

    app.main()


if __name__ == "__main__":
    main()
