"""Damaged files of every format that cos_ml reads: ``make fuzz FORMAT=... FILES=10000`` (tests/fuzz/__main__.py)."""
