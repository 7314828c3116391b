"""Import Keras and TensorFlow without the lines that TensorFlow's C++ code prints then (every side).

They come before any setting for logs takes effect, and say nothing that a user could act on. A failing import says all.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from types import ModuleType

__all__ = ["import_keras"]


def import_keras() -> ModuleType:
    """The ``keras`` module, on TensorFlow.

    Raises:
        ImportError: one of them is not installed, or Keras is set to another backend.
    """
    if "tensorflow" in sys.modules:
        import keras
    else:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        with _silent():
            import keras
            import tensorflow  # noqa: F401
    if keras.backend.backend() != "tensorflow":
        raise ImportError(
            f"cos_ml needs Keras on TensorFlow, and it is on {keras.backend.backend()}: set KERAS_BACKEND=tensorflow."
        )
    return keras


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what is written to file descriptor 2, by C++ too, and show it only if the block fails."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept, contextlib.ExitStack() as restore:
        terminal = os.dup(2)
        restore.callback(os.close, terminal)
        restore.callback(os.dup2, terminal, 2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(terminal, kept.read())
            raise
