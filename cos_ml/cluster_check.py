"""The public path of ``report``, which checks a cluster from a notebook as ``cos-ml check`` does (driver side)."""

from cos_ml.job.cluster_check import report

__all__ = ["report"]
