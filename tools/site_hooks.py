"""Hooks of MkDocs: pages out of files outside ``docs``, and links that leave the site.

Pages are written with links that work in the repository. A link to a file that is no page of the site becomes a link to
the repository.
"""

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

#: Files of the repository that are pages of the site, and the names of their pages.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "CODE_OF_CONDUCT.md": "code-of-conduct.md",
    "tops_engine/mini/weights/README.md": "mini.md",
}

#: Where the page of the methods lists them.
METHODS_MARK = "<!-- methods -->"

LINK = re.compile(r"(\]\()(?!\w+:|#)([^)\s#]+)")  # up to the anchor, which stays
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", flags=re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made of files outside ``docs``."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        text = FRONT_MATTER.sub("", (ROOT / source).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=relinked(text, source, config["repo_url"])))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite the links of the pages in ``docs``."""
    if page.file.generated_by is not None:
        return markdown
    if METHODS_MARK in markdown:
        markdown = markdown.replace(METHODS_MARK, "\n".join(f"::: {name}" for name in method_classes()))
    return relinked(markdown, f"docs/{page.file.src_uri}", config["repo_url"])


def method_classes() -> list[str]:
    """Return the import paths of the pruning methods: classes with a ``name``, found without importing them."""
    found = []
    for path in sorted((ROOT / "tops_engine" / "methods").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and _assigns_text(node, "name"):
                found.append(f"tops_engine.methods.{path.stem}.{node.name}")
    return found


def _assigns_text(node: ast.ClassDef, name: str) -> bool:
    return any(
        isinstance(line, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == name for target in line.targets)
        and isinstance(line.value, ast.Constant)
        for line in node.body
    )


def relinked(text: str, source: str, repository: str) -> str:
    """Return the text of a file, with its links as the site needs them.

    Parameters
    ----------
    text : Markdown with links relative to ``source``.
    source : path of the file in the repository, ``docs/serving.md``.
    repository : address of the repository.

    Raises
    ------
    FileNotFoundError
        If a link leads to no file of the repository.
    """
    page = PAGES.get(source) or posixpath.relpath(source, "docs")

    def relink(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        if not (ROOT / target).exists():
            raise FileNotFoundError(f"{source} links to {match[2]}, which does not exist")
        if target in PAGES:
            target = posixpath.join("docs", PAGES[target])
        elif not target.startswith("docs/") or target.startswith("docs/examples"):
            kind = "tree" if (ROOT / target).is_dir() else "blob"
            return f"{match[1]}{repository}/{kind}/main/{target}"
        return match[1] + posixpath.relpath(target, posixpath.dirname(posixpath.join("docs", page)))

    return LINK.sub(relink, text)
