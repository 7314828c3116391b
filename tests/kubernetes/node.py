"""A node of Kubernetes: runs the pods that the API server has, each in namespaces of its own, without images."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.kubernetes.server import Server
from tests.standalone.hosts import die_with_parent

CONTAINER = Path(__file__).with_name("container.py")
POLL = 0.2  # seconds
GROUPS = Path("/sys/fs/cgroup/memory")  # control groups of version 1
UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


@dataclass
class Pod:
    """A pod that was started.

    Attributes:
        object: the API server's, as it was then.
        address: the pod's.
        folder: has its files, and its container's output.
        process: ends with the container, and the container with it.
        group: the folder of the control group that limits the container's memory; None for no limit.
    """

    object: dict[str, Any]
    address: str
    folder: Path
    process: subprocess.Popen[bytes]
    group: Path | None

    def log(self) -> str:
        """What the container has printed."""
        return (self.folder / "log").read_text()

    def end(self) -> None:
        """Kill the container's first process, and wait until all the others are gone with it."""
        if self.process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                for first in psutil.Process(self.process.pid).children() or [self.process]:
                    first.kill()
        self.process.wait()

    def out_of_memory(self) -> bool:
        return self.group is not None and "oom_kill 0" not in (self.group / "memory.oom_control").read_text()

    def status(self) -> dict[str, Any]:
        if (code := self.process.poll()) is None:
            return {"phase": "Running", "podIP": self.address}
        reason = "OOMKilled" if self.out_of_memory() else "Error" if code else "Completed"
        state = {"terminated": {"exitCode": code if code >= 0 else 128 - code, "reason": reason}}
        (spec,) = self.object["spec"]["containers"]
        container = {"name": spec["name"], "ready": False, "restartCount": 0, "state": state}
        return {"phase": "Failed" if code else "Succeeded", "podIP": self.address, "containerStatuses": [container]}


class Node(threading.Thread):
    """Runs pods until ``over``; a host has one at a time.

    Attributes:
        pods: all that were started, by name.
    """

    def __init__(self, server: Server, folder: Path, hosts: list[tuple[str, list[str]]], image: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self.server, self.folder, self.hosts, self.image = server, folder, dict(hosts), image
        self.over = threading.Event()
        self.pods: dict[str, Pod] = {}
        self.running: dict[str, Pod] = {}

    def run(self) -> None:
        try:
            while not self.over.wait(POLL):
                self.turn()
        finally:
            for name in list(self.running):
                self._end(name)

    def turn(self) -> None:
        """End pods that were deleted or have too little memory, start new ones, and tell the API server."""
        objects = self.server.objects("pods")
        for name, pod in list(self.running.items()):
            # Of a container without memory, all is killed, as by control groups of version 2.
            if name not in objects or pod.process.poll() is not None or pod.out_of_memory():
                self._end(name)
        new = objects.keys() - self.pods.keys()
        maps = self.server.objects("configmaps") if new else {}
        for name in sorted(new):
            found = objects[name]
            used = {one.get("configMap", {}).get("name") for one in found["spec"].get("volumes", [])} - {None}
            if len(self.running) < len(self.hosts) and used <= maps.keys():
                self.pods[name] = self.running[name] = self._start(name, found, maps)
                self.server.tell(name, self.running[name].status())
        if self.running:
            self._write_hosts()

    def _start(self, name: str, found: dict[str, Any], maps: dict[str, Any]) -> Pod:
        address = next(one for one in self.hosts if one not in {pod.address for pod in self.running.values()})
        folder = self.folder / name
        folder.mkdir(parents=True)
        (folder / "hosts").touch()
        (spec,) = found["spec"]["containers"]
        fields = {"status.podIP": address, "metadata.name": name}
        variables = {
            one["name"]: fields[source["fieldRef"]["fieldPath"]] if (source := one.get("valueFrom")) else one["value"]
            for one in spec["env"]
        }
        volumes = {one["name"]: _volume(one, folder / "volumes", maps) for one in found["spec"].get("volumes", [])}
        mounts = {one["mountPath"]: volumes[one["name"]] for one in spec.get("volumeMounts", [])}
        facts = {
            "name": name, "arguments": spec["args"], "variables": self.image | variables,
            "mounts": mounts | {"/etc/hosts": str(folder / "hosts")},
        }  # fmt: skip
        (folder / "facts.json").write_text(json.dumps(facts))
        group = _limit(name, spec)
        join = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group)] if group else []
        apart = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command = [*join, *self.hosts[address], *apart, sys.executable, str(CONTAINER), str(folder / "facts.json")]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent
            )
        return Pod(found, address, folder, process, group)

    def _end(self, name: str) -> None:
        pod = self.running.pop(name)
        pod.end()
        self.server.tell(name, pod.status())
        if pod.group:
            pod.group.rmdir()

    def _write_hosts(self) -> None:
        """The names that containers can resolve: their own, and those of services."""
        lines = ["127.0.0.1 localhost"]
        for name, service in self.server.objects("services").items():
            wanted = service["spec"]["selector"].items()
            for pod in self.running.values():
                if wanted <= pod.object["metadata"]["labels"].items():
                    lines.append(f"{pod.address} {name}.default.svc")
        for name, pod in self.running.items():
            text = "\n".join([*lines, f"{pod.address} {name}", ""])
            if (file := pod.folder / "hosts").read_text() != text:
                file.write_text(text)


def _volume(volume: dict[str, Any], folder: Path, maps: dict[str, Any]) -> str:
    """The folder on this machine that is a pod's volume."""
    if "hostPath" in volume:
        return str(volume["hostPath"]["path"])
    made = folder / volume["name"]
    made.mkdir(parents=True)
    if config := volume.get("configMap"):
        data = maps[config["name"]].get("data", {})
        for one in config.get("items", [{"key": name, "path": name} for name in data]):
            (made / one["path"]).write_text(data[one["key"]])
    return str(made)


def bytes_of(text: str) -> int:
    """A size as Kubernetes writes it, such as "3072Mi"."""
    return int(text[:-2]) * UNITS[text[-2:]]


def can_limit_memory() -> bool:
    """Whether this process can make control groups, of version 1."""
    return os.access(GROUPS, os.W_OK) and (GROUPS / "memory.limit_in_bytes").exists()


def _limit(name: str, spec: dict[str, Any]) -> Path | None:
    """A control group with the memory that a container may use."""
    if not can_limit_memory():
        return None
    group = GROUPS / f"cosml-{name}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(bytes_of(spec["resources"]["limits"]["memory"])))
    return group
