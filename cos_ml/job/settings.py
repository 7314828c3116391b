"""Settings of Spark that are cos_ml's own (driver side)."""

from __future__ import annotations

import re
from typing import Any

from cos_ml.errors import InvalidInputError

__all__ = ["PORT_RANGE", "duration", "port_range"]

PORT_RANGE = "spark.cosml.portRange"

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}  # Spark's


def duration(settings: Any, name: str, default: str) -> float:
    """A setting as seconds; it is written as Spark's own durations are.

    Raises:
        InvalidInputError: the setting is no duration.
    """
    text = settings.get(name, None) or default
    if not (found := re.fullmatch(r"(\d+)\s*([a-z]*)", text.strip().lower())) or found[2] not in UNITS:
        raise InvalidInputError(f'{name} is {text!r}; must be a duration such as "600s" or "10min", or 0.')
    return int(found[1]) * UNITS[found[2]]


def port_range(settings: Any) -> range | None:
    """The ports that a fit may listen on, those of ranks, tasks and the driver; None for any.

    Raises:
        InvalidInputError: the setting is no range of ports.
    """
    text = settings.get(PORT_RANGE, None)
    if not text:
        return None
    found = re.fullmatch(r"(\d+)\s*-\s*(\d+)", text.strip())
    ports = range(int(found[1]), int(found[2]) + 1) if found else range(0)
    if not ports or ports[0] < 1024 or ports[-1] > 65535:
        raise InvalidInputError(f'{PORT_RANGE} is {text!r}; must be ports from 1024 to 65535 such as "40000-40099".')
    return ports
