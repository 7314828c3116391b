"""Standard error, which a program may have lost: it is closed, or a pipe that nobody reads (driver side)."""

from __future__ import annotations

import contextlib
import sys

__all__ = ["tell"]


def tell(text: str) -> None:
    """Print a line to standard error, if that is there: nothing ends because nobody reads it."""
    with contextlib.suppress(Exception):
        if sys.stderr is not None:  # else print would write to standard output
            encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
            print(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr, flush=True)
