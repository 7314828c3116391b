"""Predictions and metrics in ordinary Spark tasks, without Horovod (driver and scoring task side)."""
