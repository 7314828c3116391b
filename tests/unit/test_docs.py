"""The docs name what exists."""

import re
from pathlib import Path

import pytest

from cos_ml import errors, spark_internals
from cos_ml.network import keras_internals

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
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


def test_architecture_has_a_line_for_every_module():
    listed, package = set(), ""
    for line in (ROOT / "docs/architecture.md").read_text().splitlines():
        if header := re.match(r"\| (root|\w+/|others) \| side \|", line):
            package = {"root": "", "others": ""}.get(header[1], header[1])
        elif line.startswith("| `"):
            listed |= {package + name for name in re.findall(r"`([\w/]+\.pyi?|[\w]+/)`", line.split(" | ")[0])}
        elif line.startswith("### Import rules"):
            break
    folders = tuple(name for name in listed if name.endswith("/"))
    modules = {str(path.relative_to(ROOT / "cos_ml")) for path in (ROOT / "cos_ml").rglob("*.py*")}
    modules = {name for name in modules if name.endswith((".py", ".pyi")) and not name.endswith("/__init__.py")}
    assert {name for name in modules if not name.startswith(folders)} == {
        name for name in listed if name not in folders
    }
    assert all((ROOT / "cos_ml" / folder).is_dir() for folder in folders)


def test_architecture_lists_every_private_use():
    page = (ROOT / "docs/architecture.md").read_text()
    section = page[page.index("## What is not public API") :]
    for name in (*spark_internals.__all__, *keras_internals.__all__):
        assert f"`{name}`" in section, name
    for file in re.findall(r"`(cos_ml/[\w/]+\.py)`", section):
        assert (ROOT / file).is_file(), file


def test_targets_of_make_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]:
        assert set(re.findall(r"`make ([\w-]+)`", page.read_text())) <= targets, page.name
