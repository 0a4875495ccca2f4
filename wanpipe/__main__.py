"""The command line, for `wanpipe` and for `python -m wanpipe`.

Hears signals before anything heavy is imported, so that Ctrl-C ends any import with one line.
"""

import sys

from wanpipe.errors import wants_json
from wanpipe.runtime import interrupt


def main() -> None:
    """Run the command line and leave with its exit code."""
    interrupt.install(as_json=wants_json(sys.argv[1:]))
    from wanpipe import app

    app.main()


if __name__ == "__main__":
    main()
