"""The lines of the table: medians with the least and the most, the ratio, and the bar."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["HEAD", "Line"]

HEAD = f"{'':<52}{'product':>25}  {'peer':<24}{'':>24}{'ratio':>7}  bar"


@dataclass(frozen=True)
class Line:
    """One line: figures of the product, those of a peer where there is one, and the bar.

    Attributes:
        what: what was measured, and in which unit.
        product, peer: the figures, in the order in which they were measured.
        name: the peer's name.
        most, least: the bar that the ratio of product to peer has to keep; without a peer, the product's median.
    """

    what: str
    product: Sequence[float]
    name: str = ""
    peer: Sequence[float] = ()
    most: float | None = None
    least: float | None = None

    @property
    def ratio(self) -> float:
        """The ratio of the medians; the product's median where there is no peer."""
        median = statistics.median(self.product)
        return median / statistics.median(self.peer) if self.peer else median

    def __str__(self) -> str:
        ratio = f"{self.ratio:.2f}" if self.peer else ""
        row = f"{self.what:<52}{_shown(self.product):>25}  {self.name:<24}{_shown(self.peer):>24}{ratio:>7}"
        if self.most is not None:
            return f"{row}  <= {self.most:g} {'met' if self.ratio <= self.most else 'missed'}"
        if self.least is not None:
            return f"{row}  >= {self.least:g} {'met' if self.ratio >= self.least else 'missed'}"
        return row.rstrip()


def _shown(figures: Sequence[float]) -> str:
    """The median, and in parentheses the least and the most."""
    if not figures:
        return ""
    places = 0 if min(figures) >= 100 else 1 if min(figures) >= 10 else 2
    median, least, most = (f"{one:,.{places}f}" for one in (statistics.median(figures), min(figures), max(figures)))
    return median if len(figures) == 1 else f"{median} ({least} - {most})"
