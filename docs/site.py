"""What the site says differently from the files: a link to a file of the repository leads to the code host."""

from __future__ import annotations

import re
from typing import Any

#: a relative link that leaves docs/ for the package or the studies
OUTSIDE = re.compile(r"\]\((?:\.\./)+((?:lightning_sft|studies|tests|configs)/[\w./-]+)\)")


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Return the page with links to files of the repository as addresses: mkdocs calls this for every page."""
    return OUTSIDE.sub(rf"]({config['repo_url']}/blob/main/\1)", markdown)
