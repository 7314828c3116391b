"""``cos-ml`` as one file: ``spark-submit "$(cos-ml script)" train ...`` (driver side)."""

import sys

from cos_ml.cli import main

sys.exit(main())
