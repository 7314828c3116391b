"""The commands of ``cos-ml`` that use a Spark session (driver side)."""
