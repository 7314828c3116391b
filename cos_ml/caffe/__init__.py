"""Caffe's networks, weights and solvers, read into Keras (driver side; its layers and losses on every side)."""
