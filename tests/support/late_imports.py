"""A callback that tells what its rank has imported itself; nothing else imports this module."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import keras


class TellImports(keras.callbacks.Callback):
    """Writes to ``file`` which modules were imported after this one, and whether garbage is collected.

    In a rank, that is what the process of which it is a fork had not imported.
    """

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file

    def on_train_begin(self, logs: Any = None) -> None:
        self.collected = [gc.isenabled()]

    def on_train_end(self, logs: Any = None) -> None:
        names = list(sys.modules)  # in the order of their imports
        late = names[names.index(__name__) + 1 :]
        Path(self.file).write_text(repr({"late": late, "collected": [*self.collected, gc.isenabled()]}))
