"""A stand-in for TensorFlow that loads at once, for ranks that only meet (tests/benchmarks/scale.py)."""
