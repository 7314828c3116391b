"""Layers that misbehave on purpose, in a module that ranks and executors can import."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import uuid
from pathlib import Path
from typing import Any

import keras
import psutil
import tensorflow as tf


def barrier_task() -> psutil.Process:
    """The Python worker of this rank's task: the process at the other end of its standard input."""
    own = os.readlink("/proc/self/fd/0")
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):  # it has just ended
            folder = f"/proc/{process.pid}/fd"
            if process.pid != os.getpid() and own in [os.readlink(f"{folder}/{name}") for name in os.listdir(folder)]:
                return process
    raise ProcessLookupError("no process holds the other end of standard input")


@keras.saving.register_keras_serializable("cos_ml_tests")
class Misbehaving(keras.layers.Layer):
    """Passes its input on; in training, on one rank, does ``what`` when it is called for real.

    ``marker`` is a file that is made then; where it exists already the layer behaves. It does so at the call of that
    number.
    """

    def __init__(self, what: str, rank: str = "1", marker: str = "", call: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.what, self.rank, self.marker, self.at = what, rank, marker, call
        self.calls = 0

    def call(self, inputs: Any, training: bool = False) -> Any:
        if not training:
            return inputs
        with tf.control_dependencies([tf.py_function(self._act, [], [])]):
            return tf.identity(inputs)

    def _act(self) -> None:
        if os.environ.get("HOROVOD_RANK", "0") != self.rank or (self.marker and Path(self.marker).exists()):
            return
        self.calls += 1
        if self.calls < self.at:
            return
        if self.marker:
            Path(self.marker).touch()
        print("about to misbehave", flush=True)
        if self.what == "raise":
            raise ValueError("this layer broke on purpose")
        if self.what == "kill executor":
            executor = next(parent for parent in barrier_task().parents() if parent.name() == "java")
            executor.kill()
            threading.Event().wait()  # this rank dies with it, and trains no further
        if self.what == "kill worker":  # the barrier task's Python process
            barrier_task().kill()
            threading.Event().wait()  # as above
        if self.what == "stop worker":
            barrier_task().suspend()
            return
        if self.what == "kill driver":  # the first Python process above the JVM
            parents = barrier_task().parents()
            java = next(index for index, parent in enumerate(parents) if parent.name() == "java")
            next(parent for parent in parents[java:] if "python" in parent.name()).kill()
            threading.Event().wait()  # as above
        if self.what == "hang up":  # the network between the hosts is gone
            for one in psutil.Process().net_connections("tcp"):
                if one.status == psutil.CONN_ESTABLISHED and one.raddr.ip == one.laddr.ip:
                    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(one.fd)) as connection:
                        connection.shutdown(socket.SHUT_RDWR)  # Horovod closes the others as soon as one is gone
            return
        if self.what == "wait":
            threading.Event().wait()
        if self.what == "loop":
            while True:
                pass
        if self.what == "nothing":
            return
        os.kill(os.getpid(), {"die": signal.SIGKILL, "hang": signal.SIGSTOP}[self.what])

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"what": self.what, "rank": self.rank, "marker": self.marker, "call": self.at}


@keras.saving.register_keras_serializable("cos_ml_tests")
class Counting(keras.layers.Layer):
    """Passes its input on; adds a line to ``file`` whenever a network with it is loaded."""

    def __init__(self, file: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.file = file

    def call(self, inputs: Any) -> Any:
        return inputs

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Counting:
        with open(config["file"], "a") as file:
            print(os.getpid(), file=file)
        return cls(**config)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"file": self.file}


class StopAfter(keras.callbacks.Callback):
    """Ends the training after so many epochs; on rank 1 alone, where there is one."""

    def __init__(self, epochs: int = 1) -> None:
        super().__init__()
        self.epochs = epochs

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.params["epochs"] and self.seen == self.epochs - 1 and os.environ.get("HOROVOD_RANK", "1") == "1":
            self.model.stop_training = True

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.seen = epoch


class FailOnce(keras.callbacks.Callback):
    """Fails at the beginning of an epoch, counted from 0, unless the file ``marker`` says that it has before."""

    def __init__(self, epoch: int, marker: str) -> None:
        super().__init__()
        self.epoch, self.marker = epoch, marker

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == self.epoch and not os.path.exists(self.marker):
            open(self.marker, "w").close()
            raise RuntimeError("this callback failed on purpose")


class CountCalls(keras.callbacks.Callback):
    """Adds a line to ``file`` after each call of TensorFlow."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        with open(self.file, "a") as file:
            print(batch, file=file)


@keras.saving.register_keras_serializable("cos_ml_tests")
class Forgetful(keras.layers.Layer):
    """Multiplies by ``factor``, which its configuration leaves out."""

    def __init__(self, factor: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs: Any) -> Any:
        return inputs * self.factor

    def get_config(self) -> dict[str, Any]:
        return {name: value for name, value in super().get_config().items() if name != "factor"}


@keras.saving.register_keras_serializable("cos_ml_tests")
class Sampling(keras.layers.Layer):
    """Adds noise, in every call."""

    def call(self, inputs: Any) -> Any:
        return inputs + tf.random.normal(tf.shape(inputs))


@keras.saving.register_keras_serializable("cos_ml_tests")
class CountRows(keras.layers.Layer):
    """Passes its input on; adds a file to ``folder`` for each pass, which holds the number of its rows."""

    def __init__(self, folder: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.folder = folder

    def call(self, inputs: Any) -> Any:
        def count(rows: Any) -> None:
            Path(self.folder, uuid.uuid4().hex).write_text(str(int(rows)))

        with tf.control_dependencies([tf.py_function(count, [tf.shape(inputs)[0]], [])]):
            return tf.identity(inputs)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"folder": self.folder}


@keras.saving.register_keras_serializable("cos_ml_tests")
class Noise(keras.layers.Layer):
    """Adds noise in inference as well, from Keras's global generator."""

    def call(self, inputs: Any) -> Any:
        return inputs + keras.random.normal(keras.ops.shape(inputs))


@keras.saving.register_keras_serializable("cos_ml_tests")
class MonteCarloDropout(keras.layers.Dropout):
    """Drops units in inference as well."""

    def call(self, inputs: Any) -> Any:
        return super().call(inputs, training=True)
