"""Print the packages that setup.cfg requires, with the given extras and without bounds on their versions."""

import configparser
import re
import sys
from pathlib import Path

config = configparser.ConfigParser()
config.read(Path(__file__).parents[1] / "setup.cfg")
lines = config["options"]["install_requires"].splitlines()
for extra in sys.argv[1].split(","):
    lines += config["options.extras_require"][extra].splitlines()
print(*(re.match(r"[\w-]+(\[[\w,-]+\])?", line)[0] for line in lines if line and not line.startswith("#")))
