"""A Keras callback that holds a training until a test has seen something, in a module that ranks can import."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import keras

LONGEST = 120.0  # seconds


class WaitForFile(keras.callbacks.Callback):
    """Begins no epoch but the first before the test has made the file "epoch-n" for the n epochs that are done."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        file, end = Path(self.folder, f"epoch-{epoch}"), time.monotonic() + LONGEST
        while epoch and not file.exists():
            if time.monotonic() > end:
                raise TimeoutError(f"{file} was not made in {LONGEST:.0f} s")
            time.sleep(0.02)
