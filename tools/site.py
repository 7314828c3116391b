"""Hooks of MkDocs: what the repository has outside of docs/ becomes pages, and the links to it lead there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
LANGUAGES = {".py": "python", ".yaml": "yaml", ".prototxt": "protobuf"}
LINK = re.compile(r"(?<=\]\()(?P<target>[^)#:\s]+)(?=[)#])")
NAMED = re.compile(r"\[(?:docs/)?[\w-]+\.md\](?=\((?P<target>[^)#:\s]+\.md)[)#])")  # named by its file
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changes.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add a page for README, CHANGELOG and each example."""
    pages = {page: (ROOT / file).read_text() for file, page in PAGES.items()}
    folders = sorted({file.parent for pattern in ("*/*.py", "*/*.ipynb") for file in EXAMPLES.glob(pattern)})
    pages |= {_page_of_example(folder): _example(folder) for folder in folders}
    items = [f"- [{_title(pages[_page_of_example(folder)])}]({_page_of_example(folder)})" for folder in folders]
    pages["examples.md"] = "# Examples\n\nWhole programs, in the repository's folder `examples`.\n\n" + "\n".join(items)
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn the links of a page that lead out of docs/ into links to the pages that ``on_files`` has added."""
    source = page.file.src_uri
    sources = {page: ROOT / file for file, page in PAGES.items()}
    folder = sources.get(source, ROOT / "docs" / source).parent
    if source.startswith("examples/"):
        folder = EXAMPLES / Path(source).stem
    up = "../" * source.count("/")
    markdown = NAMED.sub(lambda link: f"[{_title_of(folder / link['target'])}]", markdown)
    return LINK.sub(lambda link: _rewritten(link["target"], folder, up), markdown)


def _rewritten(target: str, folder: Path, up: str) -> str:
    """A link's target, relative to the root of the site, where it is a file of the repository."""
    path = (folder / target).resolve()
    if not path.exists():
        return target
    inside = path.relative_to(ROOT)
    if str(inside) in PAGES:
        return up + PAGES[str(inside)]
    if inside.parts[0] == "docs":
        return up + str(inside.relative_to("docs"))
    if inside.parts[0] == "examples":
        return up + ("examples.md" if len(inside.parts) == 1 else _page_of_example(EXAMPLES / inside.parts[1]))
    return target


def _page_of_example(folder: Path) -> str:
    return f"examples/{folder.name}.md"


def _title_of(file: Path) -> str:
    return next(line for line in file.read_text().splitlines() if line.startswith("# ")).removeprefix("# ")


def _title(text: str) -> str:
    return text.partition("\n")[0].removeprefix("# ")


def _example(folder: Path) -> str:
    """The page of an example: its README, its programs and its notebooks."""
    readme = folder / "README.md"
    text = readme.read_text() if readme.exists() else f"# {folder.name.replace('_', ' ').capitalize()}\n"
    for notebook in sorted(folder.glob("*.ipynb")):
        text += _notebook(nbformat.read(notebook, as_version=4))
    for file in sorted(folder.iterdir()):
        if file.suffix in LANGUAGES:
            text += f"\n## {file.name}\n\n````{LANGUAGES[file.suffix]}\n{file.read_text()}````\n"
    return text


def _notebook(notebook: Any) -> str:
    """A notebook as Markdown, with the text, the HTML and the pictures of its outputs."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(re.sub(r"^#", "##", cell.source, flags=re.MULTILINE))
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "text/html" in data:
                parts.append(f'<div class="output">{data["text/html"]}</div>')
            elif "image/png" in data:
                parts.append(f'<img alt="output" src="data:image/png;base64,{data["image/png"].strip()}">')
            elif data.get("text/plain"):
                parts.append(f"```text\n{data['text/plain'].rstrip()}\n```")
    return "\n\n".join(["", *parts, ""])
