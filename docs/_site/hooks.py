"""What mkdocs does for this site beside its own: pages that are made, links that lead out of docs/, the navigation.

README and CHANGELOG become pages, `reference.py` makes the reference, and files of the project that a page links to are
copied below files/, so that every link of a page works on the site as it works in the repository.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
FRONT = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
"""Files of the project that are pages of the site."""

SEE = {
    "files.md": ["space-file", "fitness-file", "methods"],
    "merge.md": ["recipe", "methods"],
    "optimizers.md": ["optimizers"],
    "api.md": ["python"],
    "extend.md": ["testing"],
    "evaluate.md": ["metrics"],
    "search.md": ["commands"],
    "after.md": ["commands"],
}
"""Page -> the pages of the reference that its first lines name."""

_LINK = re.compile(r"""(\]\(|(?:src|srcset|href)=["'])(?![a-z]+:|//|#)([^)"'\s]+)""")
_CODE = re.compile(r"(^ *```.*?^ *```|`[^`\n]+`)", re.M | re.S)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lays out the navigation, and makes anchors as GitHub does."""
    made = {*FRONT.values(), *reference.pages()}
    config.nav = list(_entries(config.nav, Path(config.docs_dir), made))
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    return config


def slug(heading: str, separator: str = "-") -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", separator)


def _entries(nav: Any, docs: Path, made: set[str]) -> Iterator[Any]:
    """The navigation with the pages of each folder in its place, and without what is not there."""
    for entry in nav:
        title, value = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
        if isinstance(value, list):
            if inner := list(_entries(value, docs, made)):
                yield {title: inner}
        elif value.endswith("/"):
            yield from sorted(str(page.relative_to(docs)) for page in (docs / value).glob("*.md"))
        elif value in made or (docs / value).is_file():
            yield entry


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is made."""
    for source, page in FRONT.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for page, text in reference.pages().items():
        files.append(File.generated(config, page, content=text))
    waiting = list(files.documentation_pages())
    while waiting:
        for target in _outside(waiting.pop()):
            if files.get_file_from_path(f"files/{target}") is None:
                place = str(ROOT / target)
                file = File.generated(
                    config, f"files/{target}", abs_src_path=place, inclusion=InclusionLevel.NOT_IN_NAV
                )
                files.append(file)
                waiting += [file] if file.is_documentation_page() else []
    return files


def _outside(file: File) -> list[str]:
    """The files of the project outside of docs/ that a page links to."""
    targets: list[str] = []

    def note(link: str) -> str:
        place = _place(file.src_uri, link)
        if place not in FRONT and not place.startswith("docs/") and (ROOT / place).is_file():
            targets.append(place)
        return link

    _mapped(file.content_string, note)
    return targets


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links of the repository into links of the site, and names the reference behind a guide."""
    uri = page.file.src_uri
    text = _mapped(markdown, lambda link: _on_site(uri, link))
    if uri in SEE:
        text = _with_reference(text, SEE[uri])
    return text


def _on_site(uri: str, link: str) -> str:
    path, hash_, anchor = link.partition("#")
    place = _place(uri, path)
    if place in FRONT:
        target = FRONT[place]
    elif place.startswith("docs/"):
        target = place.removeprefix("docs/")
    elif (ROOT / place).is_file():
        target = f"files/{place}"
    else:
        return link  # mkdocs says what is wrong with it
    return posixpath.relpath(target, posixpath.dirname(uri)) + hash_ + anchor


def _place(uri: str, link: str) -> str:
    """Where in the project a link of a page leads."""
    source = {page: source for source, page in FRONT.items()}.get(uri)
    if source is None:
        source = uri.removeprefix("files/") if uri.startswith("files/") else f"docs/{uri}"
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link.partition("#")[0]))


def _mapped(markdown: str, change: Callable[[str], str]) -> str:
    """Markdown with every relative link changed, but for what stands in code."""
    parts = _CODE.split(markdown)
    parts[::2] = [_LINK.sub(lambda found: found[1] + change(found[2]), part) for part in parts[::2]]
    return "".join(parts)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Keeps options whole: a browser breaks a line behind each of their dashes."""
    return re.sub(r"<code>(-{1,2}[a-z][\w-]*)", r'<code><span class="option">\1</span>', html)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Names the search for readers of screens, which the theme does not."""
    return output.replace('role="dialog">', 'role="dialog" aria-label="Search">', 1)


def _with_reference(markdown: str, names: list[str]) -> str:
    made = reference.pages()
    titles = {name: made[f"reference/{name}.md"].splitlines()[0].removeprefix("# ") for name in names}
    links = ", ".join(f"[{title}](reference/{name}.md)" for name, title in titles.items())
    title, _, rest = markdown.lstrip().partition("\n")
    return f"{title}\n\n<small>Reference: {links}</small>\n{rest}"
