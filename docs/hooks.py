"""Changes to every page of the site; mkdocs.yml lists this file as a hook."""

from __future__ import annotations

from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Keep a number with its interval or percent sign on one line, which narrow columns would break."""
    return markdown.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}").replace(
        " % ", "\N{NO-BREAK SPACE}% "
    )


def on_post_page(output: str, **_: Any) -> str:
    """Leave the link to the repository, but let no page ask its host for stars and releases."""
    return output.replace(' data-md-component="source"', "")


def on_post_template(output_content: str, **_: Any) -> str:
    """The same for pages that are not written in Markdown, such as 404.html."""
    return on_post_page(output_content)
