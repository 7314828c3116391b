"""Runs in a rank, the child process of a barrier task; never imports pyspark (rank side)."""
