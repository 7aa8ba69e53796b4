"""A hook of mkdocs: pages of the site that are no files of docs, which are README and its neighbours, and the API."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
COPIED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""A file beside docs -> its page."""
PACKAGES = ("unimodal", "data_pipelines", "tokenizers_vq")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    pages = {place: _linked(ROOT / name) for name, place in COPIED.items()}
    pages |= {f"api/{name}.md": text for name, text in api_pages().items()}
    for place, text in pages.items():
        files.append(File.generated(config, place, content=text))
    names = sorted(place for place in pages if place.startswith("api/"))
    config.nav = [*config.nav, {"API": [{Path(name).stem: name} for name in names]}]
    return files


def api_pages() -> dict[str, str]:
    """A page for each package of `PACKAGES` and of `unimodal`, which names every module in it."""
    folders = [path for package in PACKAGES for path in (ROOT / package, *(ROOT / package).iterdir())]
    pages = {}
    for folder in sorted(path for path in folders if (path / "__init__.py").is_file()):
        modules = sorted(folder.glob("*.py") if folder.name in PACKAGES else folder.rglob("*.py"))
        modules = [path for path in modules if path.name != "__init__.py"]
        name = ".".join(folder.relative_to(ROOT).parts)
        parts = [f"# {name}", *(f"::: {'.'.join(path.relative_to(ROOT).with_suffix('').parts)}" for path in modules)]
        pages[name] = "\n\n".join(parts) + "\n"
    return pages


def on_page_markdown(markdown: str, page: Any, files: Files, **rest: Any) -> str:
    """A link to what is no page of the site, a folder or a script, becomes its own text."""
    del rest
    folder = posixpath.dirname(page.file.src_uri)

    def replaced(match: re.Match[str]) -> str:
        text, target = match.groups()
        place = posixpath.normpath(posixpath.join(folder, target.split("#")[0]))
        beside = COPIED.get(posixpath.relpath(place, ".."), "") if place.startswith("..") else ""
        if beside:
            return f"[{text}]({posixpath.relpath(beside, folder or '.')})"
        return match[0] if target.startswith("#") or files.get_file_from_path(place) else text

    return re.sub(r"(?<!!)\[([^]\[]*)\]\((?!https?:)([^)\s]+)\)", replaced, markdown)


def _linked(path: Path) -> str:
    """The text of a file beside docs, with its links as they lead from a page in docs."""
    text = re.sub(r"(\]\(|src=\")docs/", r"\1", path.read_text(encoding="utf-8"))
    for name, place in COPIED.items():
        text = text.replace(f"]({name}", f"]({place}")
    return text
