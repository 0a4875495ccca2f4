"""The processes that a process has started, as /proc has them. Needs no test library."""

from pathlib import Path


def children(number: int) -> list[int]:
    """The processes that a process has started and that have not ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = status(int(folder.name))
        except OSError:
            continue
        if int(fields[1]) == number and fields[0] != "Z":
            found.append(int(folder.name))
    return found


def alive(number: int) -> bool:
    """Whether a process has not ended."""
    try:
        return status(number)[0] != "Z"
    except OSError:
        return False


def status(number: int) -> list[str]:
    """State, parent and more of a process. Raises OSError if there is none."""
    return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
