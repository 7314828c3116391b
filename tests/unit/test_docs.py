"""The docs name what exists."""

import ast
import configparser
import re
import runpy
from functools import cache
from pathlib import Path

import pytest

import cos_ml
from cos_ml import errors, spark_internals
from cos_ml.network import keras_internals
from tests.support.pages import blocks

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = ("AnalysisException", "java.")  # what the messages of other software begin with
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
    """In the repository; make docs finds those of the site that don't."""
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", page.read_text()):
            file = page.parent / target if target else page
            assert file.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(file), f"{page.name}: {target}#{anchor}"


@cache
def anchors(page):
    """The anchors of a page's headings, as hosts of repositories and the site make them."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)}


def test_every_page_is_in_the_navigation_of_the_site():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= set(re.findall(r"[\w-]+\.md", navigation))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_of_python_are_python(page):
    """tests/integrations runs them."""
    for block in blocks(page):
        assert block.reason or block.code
        assert block.reason != "", f"{page.name}:{block.line} is a fragment for no reason"


def test_messages_of_troubleshooting_exist():
    """Each part of a message, between names and numbers, stands in a text of the package."""
    texts = [
        node.value
        for file in (ROOT / "cos_ml").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    page = (ROOT / "docs/troubleshooting.md").read_text().partition("## Lines of other software")[0]
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) >= 50
    for row in rows:
        message = row.split("`")[1]
        if message.startswith(OTHERS):
            continue
        for part in message.split("…"):
            assert any(part.strip(" .") in text for text in texts), f"{message}: {part}"


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
    for page in [ROOT / "CHANGELOG.md", *PAGES]:
        assert set(re.findall(r"`make ([\w-]+)`", page.read_text())) <= targets, page.name


def test_an_index_shows_no_link_that_leads_nowhere(monkeypatch):
    setup = runpy.run_path(str(ROOT / "setup.py"))
    text = setup["description"]()
    assert "](" not in text
    assert "See docs/install.md" in text
    monkeypatch.setitem(setup["description"].__globals__, "FILES", "https://files.example/v1/")
    linked = setup["description"]()
    assert "[docs/install.md](https://files.example/v1/docs/install.md)" in linked
    assert "(https://files.example/v1/docs/assets/overview.svg)" in linked


def test_the_package_s_facts_are_the_same_everywhere():
    """In setup.cfg, the recipe of conda's package and CITATION.cff."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = [line for line in setup["options"]["install_requires"].splitlines() if line and line[0] != "#"]
    recipe = (ROOT / "recipe/recipe.yaml").read_text()
    run = recipe.partition("  run:\n")[2].partition("  #")[0]
    assert re.findall(r"- (.+)", run)[1:] == [re.sub(r"(?<=\w)(?=[<>])", " ", line, count=1) for line in required]
    for text in (recipe, (ROOT / "CITATION.cff").read_text()):
        assert f"\n  version: {cos_ml.__version__}\n" in text.replace("\nversion", "\n  version")
