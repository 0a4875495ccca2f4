"""The version of wanpipe."""

from functools import cache


@cache
def version() -> str:
    """Return the installed version, or "source" where wanpipe runs from its source tree."""
    from importlib import metadata  # takes a twelfth of `wanpipe --help`

    try:
        return metadata.version("wanpipe")
    except metadata.PackageNotFoundError:
        return "source"
