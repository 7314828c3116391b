"""The barrier job that trains (driver side and barrier task side)."""
