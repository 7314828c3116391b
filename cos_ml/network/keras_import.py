"""Import Keras and TensorFlow in half the time, without the lines that TensorFlow's C++ code prints (every side).

Those lines come before any setting for logs takes effect, and a user can't act on them. If the import fails, they are
shown.
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
        without: modules that Keras imports if they are installed, and to treat as missing.

    Raises:
        ImportError: Keras or TensorFlow is not installed, or Keras is configured for another backend.
    """
    # Otherwise TensorFlow in a driver or a scoring task would reserve all memory of a GPU, and leave ranks none.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    if "tensorflow" in sys.modules:
        import keras
    else:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        with _silent(), _hidden(without), _no_garbage_collection():
            import keras
            import tensorflow  # noqa: F401
    if keras.backend.backend() != "tensorflow":
        raise ImportError(
            f"cos_ml requires Keras's TensorFlow backend, but the backend is {keras.backend.backend()}. Set "
            "KERAS_BACKEND=tensorflow."
        )
    return keras


def import_tensorflow() -> Any:
    """The ``tensorflow`` module, imported as by ``import_keras``."""
    import_keras()
    return sys.modules["tensorflow"]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Hold back what is written to file descriptor 2, by C++ code too, and show it only if the block fails."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # there is none, nobody reads it, or it is closed
        sys.stderr.flush()
    with contextlib.ExitStack() as restore:
        try:
            terminal = os.dup(2)
            restore.callback(os.close, terminal)
            kept = restore.enter_context(tempfile.TemporaryFile())
        except OSError:  # descriptor 2 is closed, the process may have no more of them, or the disk is full
            yield
            return
        restore.callback(os.dup2, terminal, 2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            with contextlib.suppress(OSError):  # nobody reads it
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
def _no_garbage_collection() -> Iterator[None]:
    """Pause garbage collection: an import leaves no garbage, and the search for it takes a quarter of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
