"""The Param horovodOptions: Horovod's and NCCL's settings as environment variables of every rank (driver side)."""

from __future__ import annotations

import re
from typing import Any

from cos_ml.errors import InvalidInputError
from cos_ml.interfaces import INTERFACE, local_addresses
from cos_ml.job.placement import RankInfo

__all__ = ["JOIN_TIMEOUT", "converted", "rank_environment", "secret_path", "variables"]

JOIN_TIMEOUT = "120"  # seconds after which a rank whose peers do not come gives up
NAMES = {
    "fusionThreshold": "HOROVOD_FUSION_THRESHOLD", "cycleTime": "HOROVOD_CYCLE_TIME",
    "timeline": "HOROVOD_TIMELINE", "autotune": "HOROVOD_AUTOTUNE", "networkInterface": "HOROVOD_GLOO_IFACE",
}  # fmt: skip
VARIABLE = re.compile(r"(HOROVOD|NCCL)_[A-Z0-9_]+")
# What the ranks find each other by is not for users to set.
OWN = re.compile(r"HOROVOD_((LOCAL_|CROSS_)?(RANK|SIZE)|HOSTNAME|CONTROLLER|CPU_OPERATIONS|GLOO_\w+)")


def converted(value: Any) -> dict[str, Any]:
    """Converter of the Param: a dict of settings that there are, and of plain values.

    Raises:
        InvalidInputError: it is something else.
    """
    if not isinstance(value, dict):
        raise InvalidInputError(f"Param horovodOptions: expected a dict, received {value!r}.")
    for name, setting in value.items():
        known = isinstance(name, str) and (name in NAMES or (VARIABLE.fullmatch(name) and not OWN.fullmatch(name)))
        if not known:
            raise InvalidInputError(
                f"Param horovodOptions: expected {', '.join(NAMES)}, or variables HOROVOD_... and NCCL_... that do not "
                f"say where the ranks are; received {name!r}."
            )
        number = name in ("fusionThreshold", "cycleTime")
        if name == "autotune" and not isinstance(setting, bool):
            raise InvalidInputError(f"Param horovodOptions: autotune is True or False, received {setting!r}.")
        if number and (isinstance(setting, bool) or not isinstance(setting, (int, float)) or not setting >= 0):
            raise InvalidInputError(f"Param horovodOptions: {name} is a number of 0 or more, received {setting!r}.")
        if not isinstance(setting, (bool, int, float, str)) or (isinstance(setting, str) and "\0" in setting):
            raise InvalidInputError(f"Param horovodOptions: {name} is a text or a number, received {setting!r}.")
    return dict(value)


def variables(options: dict[str, Any]) -> dict[str, str]:
    """The environment variables of a rank that ``options`` come down to."""
    found = {NAMES.get(name, name): _text(setting) for name, setting in options.items()}
    if "networkInterface" in options:
        found.setdefault("NCCL_SOCKET_IFNAME", _text(options["networkInterface"]))
    return found


def _text(setting: Any) -> str:
    return str(int(setting)) if isinstance(setting, bool) else str(setting)


def secret_path(secret: str, port: int) -> str:
    """The first part of every path of the rendezvous server."""
    return f"{secret}:{port}"  # Horovod writes http://ADDR:PORT/scope/key


def rank_environment(rank_info: RankInfo, own: str, server: str, port: int, secret: str) -> dict[str, str]:
    """The environment in which ``hvd.init()`` finds its peers, to be added to its own.

    Args:
        rank_info: the rank.
        own: its address, whose network interface it uses.
        server: the address of the rendezvous server, which task 0 runs.
        port: of the rendezvous server.
        secret: that it wants to see.
    """
    interface = local_addresses().get(own)
    return {
        "HOROVOD_RANK": str(rank_info.rank),
        "HOROVOD_SIZE": str(rank_info.size),
        "HOROVOD_LOCAL_RANK": str(rank_info.local_rank),
        "HOROVOD_LOCAL_SIZE": str(rank_info.local_size),
        "HOROVOD_CROSS_RANK": str(rank_info.cross_rank),
        "HOROVOD_CROSS_SIZE": str(rank_info.cross_size),
        "HOROVOD_HOSTNAME": rank_info.host,
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": f"{server}:{port}/{secret}",
        "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
        "HOROVOD_GLOO_TIMEOUT_SECONDS": JOIN_TIMEOUT,
    } | ({INTERFACE: interface} if interface else {})
