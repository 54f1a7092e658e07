"""For `make docs`: links of a page to files outside of docs/ become the names of these files, which the site does not have."""

import re


def on_page_markdown(markdown: str, **_: object) -> str:
    return re.sub(r"\[([^\]]*)\]\(\.\./([^)#]+)[^)]*\)", r"\1 (`\2`)", markdown)
