"""For mkdocs: links to files outside of docs/ lead to the repository, if mkdocs.yml names it, or become text."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>(?:\.\./)+[^)#]+)(?P<part>#[^)]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """The page with its links to files of the repository replaced; those to other pages stay."""
    folder = PurePosixPath(page.file.src_uri).parent
    pages = {file.src_uri for file in files}

    def replaced(link: re.Match[str]) -> str:
        parts: list[str] = []
        outside = False
        for part in (folder / link["target"]).parts:
            if part != "..":
                parts.append(part)
            elif parts:
                parts.pop()
            else:
                outside = True
        path = "/".join(parts)
        if not outside and path in pages:
            return link[0]
        if not config.repo_url:
            return f"{link['text']} (`{path}`)" if path not in link["text"] else link["text"]
        return f"[{link['text']}]({config.repo_url.rstrip('/')}/blob/main/{path}{link['part'] or ''})"

    return LINK.sub(replaced, markdown)
