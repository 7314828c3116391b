"""Predictions and metrics in ordinary Spark tasks, without Horovod."""
