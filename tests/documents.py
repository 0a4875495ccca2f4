"""Mutations of JSON documents, and a guard that notices what a reader of one must not do.

`mutate(document, generator)` gives a document with one to three faults of the kinds that files
have: wrong types, numbers out of range, fields missing, unknown or twice as deep, odd text.
"""

import copy
import json
import math
import os
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# what `to_text` writes as 20,000 lists or objects in each other, which Python could not hold
DEEP = {"@deep list@": ("[", "]"), "@deep object@": ('{"a":', "}")}
DEPTH = 20_000
NUMBERS = [
    *(0, -1, 1, 2, 255, 2**31 - 1, 2**31, 2**53 + 1, -(2**63), 2**63, 2**64, 10**30, 10**400),
    *(0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, math.nan, math.inf, -math.inf),
]
TEXTS = [
    *("", " ", "x", "0" * 32, "f" * 32, "F" * 32, "null", "NaN", "-1", "a" * 100_000),
    *("../../victim", "/etc/passwd", "..", ".", "~", "a/b", "a\\b", "C:\\x", "x" * 300),
    *("\x1b[31m", "\x1b]0;title\x07", "\x00", "\x7f", "\x9b31m", "\u202e", "\u2028", "\n\r\t"),
    *("\ud800", "\U0001f3ac", "é" * 200, "%s%n{}", "$(id)", "`id`", "; rm -rf /"),
]


def odd_values(generator: random.Random) -> Any:
    """Return a value that few fields allow."""
    kind = generator.randrange(6)
    if kind == 0:
        return generator.choice(NUMBERS)
    if kind == 1:
        return generator.choice(TEXTS)
    if kind == 2:
        return generator.choice(
            [None, True, False, [], {}, [[]], [{}], {"": None}, {"a": {"b": 1}}]
        )
    if kind == 3:
        return generator.choice([*DEEP, nested(10, list), nested(200, list), nested(200, dict)])
    if kind == 4:
        return [generator.choice(NUMBERS + TEXTS) for _ in range(generator.choice([1, 3, 5000]))]
    return {str(number): number for number in range(generator.choice([1, 40, 5000]))}


def nested(depth: int, kind: type) -> Any:
    """Return lists in lists, or objects in objects."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


def random_path(document: Any, generator: random.Random) -> list[Any]:
    """Return the path of a value, with the same chance for every field of an object."""
    path: list[Any] = []
    while isinstance(document, dict | list) and document and generator.random() < 0.75:
        names = list(document) if isinstance(document, dict) else range(len(document))
        path.append(generator.choice(names))
        document = document[path[-1]]
    return path


def mutate(document: Any, generator: random.Random) -> Any:
    """Return a changed copy of a document of dicts, lists, texts and numbers."""
    document = copy.deepcopy(document)
    for _ in range(generator.choice([1, 1, 1, 2, 3])):
        document = changed(document, generator)
    return document


def changed(document: Any, generator: random.Random) -> Any:
    """Return a document with one fault; the document may be changed too."""
    path = random_path(document, generator)
    if not path:
        return odd_values(generator) if generator.random() < 0.3 else document
    node = document
    for name in path[:-1]:
        node = node[name]
    name, kind = path[-1], generator.randrange(8)
    if kind == 0:
        del node[name]
    elif kind == 1 and isinstance(node, dict):
        node[generator.choice([*TEXTS, "more", "schema"])] = odd_values(generator)
    elif kind == 2:
        node[name] = nearby(node[name], generator)
    elif kind == 3:
        other = document
        for step in random_path(document, generator):
            other = other[step]
        node[name] = copy.deepcopy(other)  # of another field
    else:
        node[name] = odd_values(generator)
    return document


def nearby(value: Any, generator: random.Random) -> Any:
    """Return a value of the same type, or the same value as another type."""
    if isinstance(value, bool) or value is None:
        return generator.choice([0, 1, "true"])
    if isinstance(value, int | float):
        return generator.choice([-value, value + 1, 0.5 + value % 1000, str(value), [value]])
    if isinstance(value, str):
        return generator.choice([value[:-1], value + "0", value.upper(), value + "\n", [value]])
    if isinstance(value, list):
        return generator.choice([value * 2, value[:-1], value[::-1], dict(enumerate(value))])
    return generator.choice([list(value), {**value, "more": 1}, str(value)])


def to_text(document: Any) -> bytes:
    """Write a document as JSON, with NaN, huge numbers and lone surrogates where it has them."""
    digits = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        text = json.dumps(document)
    finally:
        sys.set_int_max_str_digits(digits)
    for mark, (start, end) in DEEP.items():
        text = text.replace(f'"{mark}"', start * DEPTH + "1" + end * DEPTH)
    return text.encode()


class Guard:
    """Notes what the running code does that a reader must not: start a process, or write, remove or
    rename outside `folders`. Audit hooks cannot be removed, so there is one, which can be off.
    """

    def __init__(self) -> None:
        self.folders: list[str] | None = None
        self.wrong: list[str] = []
        self.installed = False

    @contextmanager
    def watching(self, *folders: Path) -> Iterator[list[str]]:
        """Give the list of what was done wrong in the block."""
        if not self.installed:
            sys.addaudithook(self.hook)
            self.installed = True
        self.wrong = []
        self.folders = [os.path.realpath(folder) for folder in folders]
        try:
            yield self.wrong
        finally:
            self.folders = None

    def hook(self, event: str, arguments: Sequence[Any]) -> None:
        if self.folders is None:
            return
        if event in PROCESSES:
            self.wrong.append(f"{event}{tuple(arguments)[:2]!r}"[:300])
        for path in changed_paths(event, arguments):
            if not self.allowed(path):
                self.wrong.append(f"{event} {path!r}"[:300])

    def allowed(self, path: Any) -> bool:
        """Return whether a path is in one of the folders, its links followed but for the last."""
        if isinstance(path, int) or path is None:
            return True
        given = Path(os.fsdecode(path))
        whole = Path(os.path.realpath(given.parent), given.name)
        return any(whole.is_relative_to(one) for one in (*(self.folders or ()), os.devnull))


PROCESSES = {
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty"),
    *("os.spawn", "pty.spawn", "socket.connect", "socket.bind"),
}
CHANGES = {
    **dict.fromkeys(("os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate"), (0,)),
    **dict.fromkeys(("os.utime", "os.chown", "shutil.rmtree", "os.setxattr"), (0,)),
    **dict.fromkeys(("os.rename", "os.link", "shutil.move"), (0, 1)),
    "os.symlink": (1,),
}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def changed_paths(event: str, arguments: Sequence[Any]) -> Iterator[Any]:
    """Yield the paths that an audited call changes."""
    if event == "open":
        path, mode, flags = arguments
        letters = isinstance(mode, str) and set(mode) & set("wax+")
        if letters or (isinstance(flags, int) and flags & WRITES):
            # an opened file is behind its link
            yield os.path.realpath(path) if isinstance(path, str | bytes) else path
    for place in CHANGES.get(event, ()):
        yield arguments[place]


guard = Guard()
