"""The first process of a pod's container: it mounts volumes, and does what the entry point of Spark's image does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pyspark

SPARK = Path("/opt/spark")
BACKEND = "org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend"


def main() -> None:
    facts = json.loads(Path(sys.argv[1]).read_text())
    socket.sethostname(facts["name"])
    for name in ("opt", "var"):
        copy_on_write(name, Path(sys.argv[1]).with_name(name))
    put_spark_into_opt()
    for target, source in facts["mounts"].items():
        if not Path(target).exists():
            Path(target).mkdir(parents=True)  # below /opt or /var, or in the tests' folder
        mount("--bind", source, target)
    os.chdir(SPARK / "work-dir")
    variables = facts["variables"]
    child = subprocess.Popen(command(facts["arguments"], variables), env=variables)
    ended = code = 0
    while ended != child.pid:  # as tini does
        ended, code = os.wait()
    code = os.waitstatus_to_exitcode(code)
    sys.exit(code if code >= 0 else 128 - code)


def copy_on_write(name: str, folder: Path) -> None:
    """Changes to a folder of the root are this container's, and gone with it."""
    folder.mkdir()
    mount("-t", "tmpfs", name, str(folder))
    for part in ("changes", "work"):
        (folder / part).mkdir()
    mount("-t", "overlay", "-o", f"lowerdir=/{name},upperdir={folder}/changes,workdir={folder}/work", name, f"/{name}")


def put_spark_into_opt() -> None:
    (SPARK / "work-dir").mkdir(parents=True)
    for path in Path(pyspark.__file__).parent.iterdir():
        (SPARK / path.name).symlink_to(path)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def command(arguments: list[str], variables: dict[str, str]) -> list[str]:
    if arguments[0] == "driver":
        address = variables["SPARK_DRIVER_BIND_ADDRESS"]
        settings = {"spark.driver.bindAddress": address, "spark.executorEnv.SPARK_DRIVER_POD_IP": address}
        confs = [f"--conf={name}={value}" for name, value in settings.items()]
        return [str(SPARK / "bin" / "spark-submit"), *confs, "--deploy-mode", "client", *arguments[1:]]
    options = [value for name, value in variables.items() if name.startswith("SPARK_JAVA_OPT_")]
    memory, classes = variables["SPARK_EXECUTOR_MEMORY"], f"{SPARK}/conf:{SPARK}/jars/*:{SPARK}/work-dir"
    names = {
        "--driver-url": "DRIVER_URL", "--executor-id": "EXECUTOR_ID", "--cores": "EXECUTOR_CORES",
        "--app-id": "APPLICATION_ID", "--hostname": "EXECUTOR_POD_IP", "--resourceProfileId": "RESOURCE_PROFILE_ID",
        "--podName": "EXECUTOR_POD_NAME",
    }  # fmt: skip
    flags = [text for flag, name in names.items() for text in (flag, variables[f"SPARK_{name}"])]
    return ["java", *options, f"-Xms{memory}", f"-Xmx{memory}", "-cp", classes, BACKEND, *flags]


if __name__ == "__main__":
    main()
