"""Horovod's settings as environment variables: the Param horovodOptions, and where ranks are (driver and task side)."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from cos_ml.errors import InvalidInputError, ParamTypeError
from cos_ml.interfaces import INTERFACE, local_addresses
from cos_ml.job.placement import RankInfo

__all__ = ["JOIN_TIMEOUT", "converted", "rank_environment", "variables"]

JOIN_TIMEOUT = "120"  # seconds that a rank waits for the others to join
NAMES = {
    "fusionThreshold": "HOROVOD_FUSION_THRESHOLD", "cycleTime": "HOROVOD_CYCLE_TIME",
    "timeline": "HOROVOD_TIMELINE", "autotune": "HOROVOD_AUTOTUNE", "networkInterface": "HOROVOD_GLOO_IFACE",
}  # fmt: skip
VARIABLE = re.compile(r"(HOROVOD|NCCL)_[A-Z0-9_]+")
# Where the ranks are is not for users to set.
RESERVED = re.compile(r"HOROVOD_((LOCAL_|CROSS_)?(RANK|SIZE)|HOSTNAME|CONTROLLER|CPU_OPERATIONS|GLOO_\w+)")


def converted(value: Any) -> dict[str, Any]:
    """Converter of the Param; raises InvalidInputError for unknown settings and for settings of the wrong type."""
    if not isinstance(value, dict):
        raise ParamTypeError(f"Param horovodOptions: expected a dict, received {value!r}.")
    for name, setting in value.items():
        known = isinstance(name, str) and (name in NAMES or (VARIABLE.fullmatch(name) and not RESERVED.fullmatch(name)))
        if not known:
            raise InvalidInputError(
                f"Param horovodOptions: expected {', '.join(NAMES)}, or a variable HOROVOD_... or NCCL_... other than "
                f"those that say where the ranks are; received {name!r}."
            )
        number = isinstance(setting, (int, float)) and not isinstance(setting, bool)
        if name == "autotune":
            valid, expected = isinstance(setting, bool), "a bool"
        elif name in ("fusionThreshold", "cycleTime"):
            valid, expected = number and setting >= 0, "a number >= 0"
        else:
            text = isinstance(setting, str) and "\0" not in setting
            valid, expected = text or isinstance(setting, (bool, int, float)), "a string or a number"
        if not valid:
            of_type = number if expected == "a number >= 0" else isinstance(setting, str)
            kind = InvalidInputError if of_type and name != "autotune" else ParamTypeError
            raise kind(f"Param horovodOptions: {name}: expected {expected}, received {setting!r}.")
    return dict(value)


def variables(options: dict[str, Any]) -> dict[str, str]:
    """The environment variables that ``options`` set in every rank."""
    found = {NAMES.get(name, name): _text(setting) for name, setting in options.items()}
    if "networkInterface" in options:
        found.setdefault("NCCL_SOCKET_IFNAME", _text(options["networkInterface"]))
    return found


def _text(setting: Any) -> str:
    return str(int(setting)) if isinstance(setting, bool) else str(setting)


def rank_environment(rank_info: RankInfo, own: str, server: str, port: int, secret: str) -> dict[str, str]:
    """The variables with which ``hvd.init()`` finds the other ranks.

    The rank uses the network interface of its ``own`` address; server, port and secret are the rendezvous server's.
    """
    found = {f"HOROVOD_{name.upper()}": str(value) for name, value in asdict(rank_info).items()}
    found["HOROVOD_HOSTNAME"] = found.pop("HOROVOD_HOST")
    found["HOROVOD_CONTROLLER"] = found["HOROVOD_CPU_OPERATIONS"] = "gloo"
    found["HOROVOD_GLOO_RENDEZVOUS_ADDR"] = f"{server}:{port}/{secret}"
    found["HOROVOD_GLOO_RENDEZVOUS_PORT"] = str(port)
    found["HOROVOD_GLOO_TIMEOUT_SECONDS"] = JOIN_TIMEOUT
    interface = local_addresses().get(own)
    return found | ({INTERFACE: interface} if interface else {})
