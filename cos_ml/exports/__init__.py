"""Networks in formats that are served without Spark (driver side)."""
