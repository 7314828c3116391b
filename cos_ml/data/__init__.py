"""Rows: Spark columns as arrays and back, spooled to local disk, or stored as Parquet (driver, task and rank side)."""
