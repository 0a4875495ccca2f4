"""Fails if the built site loads anything from another host.

    python docs/offline.py site

Links that a reader may follow are fine; scripts, styles, fonts and pictures must be in the site.
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

OUTSIDE = re.compile(r"(?:https?:)?//", re.IGNORECASE)
LOADED = ("src", "srcset", "poster", "data")  # attributes that a browser loads from
LINKS = {"a": "href", "area": "href"}  # elements whose address is only followed
STYLE = re.compile(r"""(?:url\(\s*["']?|@import\s+["'])((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)


class Loads(HTMLParser):
    """Collects what a page loads from other hosts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note every address of another host that the element loads."""
        for name, value in attributes:
            loads = name in LOADED or (name == "href" and tag not in LINKS)
            if tag == "link" and ("rel", "canonical") in attributes:
                loads = False
            if loads and value and OUTSIDE.match(value.strip()):
                self.found.append(value)
            elif name == "style" and value:
                self.found += STYLE.findall(value)

    def handle_data(self, text: str) -> None:
        """Note addresses in a style sheet within the page."""
        self.found += STYLE.findall(text)


def loads(site: Path) -> Iterator[tuple[Path, str]]:
    """Every file of the site that loads from another host, with the address."""
    for path in sorted(site.rglob("*")):
        if path.suffix == ".html":
            page = Loads()
            page.feed(path.read_text(encoding="utf-8"))
            yield from ((path, address) for address in page.found)
        elif path.suffix in (".css", ".svg"):
            text = path.read_text(encoding="utf-8")
            yield from ((path, address) for address in STYLE.findall(text))


if __name__ == "__main__":
    outside = list(loads(Path(sys.argv[1])))
    for path, address in outside:
        print(f"{path} loads {address}", file=sys.stderr)
    sys.exit(bool(outside))
