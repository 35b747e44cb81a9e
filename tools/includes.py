"""What mkdocs asks of us: pages that are files of the repository, so that no text is written twice.

A page that holds `{{ FILE }}` on a line of its own shows that file, with links turned to where they lead on the site.
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ON_SITE = {"CONTRIBUTING.md": "contributing.md", "README.md": "index.md"}
INCLUDE = re.compile(r"^\{\{ (?P<file>[\w./-]+) \}\}$", re.MULTILINE)
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")


def for_site(text: str) -> str:
    """Markdown of a file in the root, as it has to read in docs/: links to files that are no page become plain text."""

    def moved(link: re.Match[str]) -> str:
        target = link["target"]
        if target.startswith("#") or "://" in target:
            return link[0]
        path = ON_SITE.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else None)
        return f"{link['image']}[{link['text']}]({path})" if path else link["text"]

    return LINK.sub(moved, text)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The hook: called by mkdocs with every page before it is rendered."""
    return INCLUDE.sub(lambda found: for_site((ROOT / found["file"]).read_text()), markdown)
