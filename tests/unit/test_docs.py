"""What the docs name is there."""

import re

from cos_ml import errors
from tests.support.sessions import ROOT

ROW = re.compile(r"\| (?P<what>.+) \| (?P<error>.+) \| `(?P<file>[\w/]+\.py)::(?P<test>\w+)` \|")


def test_every_line_of_bad_input_has_an_error_and_a_test():
    lines = (ROOT / "docs/bad-input.md").read_text().splitlines()
    rows = [found for line in lines if (found := ROW.fullmatch(line))]
    tables = [line for line in lines if line.startswith("| ") and not line.startswith("| problem |")]
    assert len(rows) == len(tables) >= 60
    for row in rows:
        assert f"def {row['test']}(" in (ROOT / "tests" / row["file"]).read_text(), row["test"]
        if " " not in row["error"]:
            assert issubclass(getattr(errors, row["error"]), errors.CosMLError)


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
