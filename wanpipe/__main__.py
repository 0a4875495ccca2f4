"""The entry point of `wanpipe` and `python -m wanpipe`.

Installs the signal handlers before any heavy import, so that Ctrl-C during an import prints one
line.
"""

import sys

from wanpipe.errors import wants_json
from wanpipe.runtime import interrupt


def main() -> None:
    """Run the command line and exit with its code."""
    interrupt.install(as_json=wants_json(sys.argv[1:]))
    from wanpipe import app

    app.main()


if __name__ == "__main__":
    main()
