"""A hook of mkdocs for links that leave docs/: the same Markdown reads well in a repository and as a site.

A picture outside docs/ is taken into the site. Any other file or folder that is not in it becomes its path, as text.
A link to what is not there stays as it is, and `mkdocs build --strict` refuses it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
PICTURES = (".png", ".svg")


def site_markdown(markdown: str, page: Path, docs: Path) -> tuple[str, set[Path]]:
    """The page as the site has it, and the pictures outside `docs` that it shows."""
    root, pictures = docs.parent, set()

    def rewritten(link: re.Match[str]) -> str:
        target = link["target"]
        found = (page.parent / target).resolve()
        if ":" in target or not found.exists() or not found.is_relative_to(root):
            return link[0]
        if found.is_relative_to(docs) and found.is_file():
            return link[0]
        path = found.relative_to(root)
        if link["picture"] and found.suffix in PICTURES:
            pictures.add(path)
            up = "../" * (len(page.relative_to(docs).parts) - 1)
            return f"![{link['text']}]({up}{path.as_posix()})"
        name = f"`{path.as_posix()}{'/' if found.is_dir() else ''}`"
        return name if link["text"].strip("`/") == path.as_posix().strip("/") else f"{link['text']} ({name})"

    return LINK.sub(rewritten, markdown), pictures


def on_files(files: Any, config: Any) -> Any:
    """Take in the pictures that lie outside docs/."""
    from mkdocs.structure.files import File

    docs = Path(config.docs_dir)
    for file in list(files.documentation_pages()):
        source = Path(file.abs_src_path)
        for picture in site_markdown(source.read_text(encoding="utf-8"), source, docs)[1]:
            if files.get_file_from_path(picture.as_posix()) is None:
                files.append(File.generated(config, picture.as_posix(), abs_src_path=str(docs.parent / picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite what leaves docs/."""
    return site_markdown(markdown, Path(page.file.abs_src_path), Path(config.docs_dir))[0]
