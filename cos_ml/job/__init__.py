"""The barrier job that trains, driver side and task side."""
