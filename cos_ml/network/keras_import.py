"""Import Keras and TensorFlow in half the time, without the lines that TensorFlow's C++ code prints then (every side).

They come before any setting for logs takes effect, and say nothing that a user could act on. A failing import says all.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from types import ModuleType
from typing import Any

__all__ = ["import_keras", "import_tensorflow"]


def import_keras(without: tuple[str, ...] = ()) -> ModuleType:
    """The ``keras`` module, on TensorFlow.

    Args:
        without: modules that Keras imports where they are installed, and shall take for missing.

    Raises:
        ImportError: one of them is not installed, or Keras is set to another backend.
    """
    # TensorFlow would take all memory of a GPU at once, also in a driver or a scoring task, and leave ranks there none.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    if "tensorflow" in sys.modules:
        import keras
    else:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        with _silent(), _hidden(without), _uncollected():
            import keras
            import tensorflow  # noqa: F401
    if keras.backend.backend() != "tensorflow":
        raise ImportError(
            f"cos_ml needs Keras on TensorFlow, and it is on {keras.backend.backend()}: set KERAS_BACKEND=tensorflow."
        )
    return keras


def import_tensorflow() -> Any:
    """The ``tensorflow`` module, imported as ``import_keras`` does."""
    import_keras()
    import tensorflow

    return tensorflow


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


@contextlib.contextmanager
def _hidden(names: tuple[str, ...]) -> Iterator[None]:
    """Make imports of these modules fail, as if they were not installed."""
    missing = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(missing))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Look for no garbage: an import makes none, and the search through its objects takes a quarter of the time."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()
