"""Builds the package. Metadata is in setup.cfg, but for what an index shows: README without links that lead nowhere."""

import re
from pathlib import Path

from setuptools import setup

# Where the repository's files can be read, such as "https://example.com/cos_ml/blob/v0.1.0/". "": nowhere yet, so an
# index shows the texts of links to them, and no picture.
FILES = ""


def description():
    """README with absolute links."""
    text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    if not FILES:
        text = re.sub(r"^!\[[^\]]*\]\([^)]*\)\n\n", "", text, flags=re.MULTILINE)
    return re.sub(r"\[([^\]]*)\]\((?!https?:)([^)]*)\)", rf"[\1]({FILES}\2)" if FILES else r"\1", text)


if __name__ == "__main__":
    setup(long_description=description(), long_description_content_type="text/markdown")
