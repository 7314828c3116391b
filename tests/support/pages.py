"""The blocks of Python in Markdown pages, and which of them run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

FENCE = re.compile(r"^(?:<!-- docs: (?P<mark>[^>]+) -->\n+)?^```python\n(?P<source>.*?)^```$", re.MULTILINE | re.DOTALL)
FIRST = "run first"
FRAGMENT = "fragment, "


@dataclass(frozen=True)
class Block:
    """A block of Python.

    Attributes:
        page: the page.
        line: the number of its first line in the page.
        source: the text.
        mark: what the comment before it says: that it is a "fragment" and why, or that it runs before the others.
    """

    page: Path
    line: int
    source: str
    mark: str

    @property
    def reason(self) -> str | None:
        """Why it is a fragment, which does not run; None for one that runs."""
        return self.mark.removeprefix(FRAGMENT) if self.mark.startswith(FRAGMENT) else None

    @property
    def code(self) -> CodeType:
        """What runs; errors name page and line."""
        return compile("\n" * (self.line - 1) + self.source, str(self.page), "exec")


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in the order in which they run."""
    text = page.read_text()
    found = [
        Block(page, text.count("\n", 0, match.start("source")) + 1, match["source"], match["mark"] or "")
        for match in FENCE.finditer(text)
    ]
    return sorted(found, key=lambda block: block.mark != FIRST)
