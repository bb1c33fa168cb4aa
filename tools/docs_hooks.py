"""What the site needs beside docs/: pages that lie elsewhere in the repository, links between the two, and colours.

mkdocs calls these functions, see mkdocs.yml. A link from a page to a file of the repository that is no page (source
code, a configuration) is for readers of the repository; the site shows its text alone. A link to what does not exist is
left as it is, for mkdocs to refuse.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pygments.formatters import HtmlFormatter

ROOT = Path(__file__).parents[1]
# place in the site -> place in the repository, of what does not lie in docs/
ELSEWHERE = {
    "operator.md": "ops/README.md",
    "operator.png": "ops/operator.png",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s:]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from elsewhere, and the style sheet of the code."""
    for place, source in ELSEWHERE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, "pygments.css", content=HtmlFormatter().get_style_defs(".highlight")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that are right in the repository to their place in the site."""
    here = ELSEWHERE.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return LINK.sub(lambda link: _in_site(link, here, page.file.src_uri), markdown)


def _in_site(link: re.Match[str], here: str, place: str) -> str:
    """One link of the page that lies at `here` in the repository and at `place` in the site."""
    target, _, anchor = link[2].partition("#")
    if not target:
        return link[0]
    target = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
    places = {source: site for site, source in ELSEWHERE.items()} | {"README.md": "index.md"}
    found = places.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else None)
    if found is not None:
        relative = posixpath.relpath(found, posixpath.dirname(place) or ".")
        return f"[{link[1]}]({relative}{'#' * bool(anchor)}{anchor})"
    return link[1] if (ROOT / target).exists() else link[0]
