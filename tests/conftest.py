"""Settings of all tests."""

import os

# The JVMs of tests live for minutes: their second compiler would use more processor time than it saves.
os.environ.setdefault("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
