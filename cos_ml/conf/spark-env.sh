# Spark's scripts run this before they start Java, which then always says that Spark uses an incubator module of its own.
exec 2> >(grep --line-buffered -v '^WARNING: Using incubator modules' >&2)
