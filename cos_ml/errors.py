"""The exceptions of cos_ml.

CosMLError
├── InvalidInputError (ValueError)    a Param, a column, a row or a network that can't be used as it is
├── SavedModelError   (ValueError)    a saved model that can't be read, or a place where none can be written
├── ClusterError      (RuntimeError)  the cluster can't run the ranks that were asked for
├── RankError         (RuntimeError)  a rank failed while it trained; carries its traceback and last output
└── SetupError        (RuntimeError)  something has to be installed on this machine first
"""

from __future__ import annotations

__all__ = ["ClusterError", "CosMLError", "InvalidInputError", "RankError", "SavedModelError", "SetupError"]


class CosMLError(Exception):
    """Base class of everything that cos_ml raises by itself."""


class InvalidInputError(CosMLError, ValueError):
    """A Param, a column, a row or a network can't be used as it is; the message names it and says what to do."""


class SavedModelError(CosMLError, ValueError):
    """A saved model can't be read, or can't be written where it was asked to be."""


class ClusterError(CosMLError, RuntimeError):
    """The cluster can't run the ranks that were asked for; the message says which setting to change."""


class RankError(CosMLError, RuntimeError):
    """A rank failed while it trained; the message ends with its own traceback and the tail of its output."""


class SetupError(CosMLError, RuntimeError):
    """Something has to be installed on this machine first; the message gives the command."""
