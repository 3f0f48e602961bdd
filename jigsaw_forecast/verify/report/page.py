"""The HTML around the report: plain strings, every name escaped, nothing fetched."""

import base64
import html
import math
from collections.abc import Iterable, Sequence
from importlib import resources
from string import Template

from jigsaw_forecast.verify.report.pictures import Picture

_PAGE = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<header>
<h1>$title</h1>
$head
</header>
<nav aria-label="Sections"><ul>
$links
</ul></nav>
<main>
$body
</main>
<footer><p>$foot</p></footer>
</body>
</html>
"""
)


def escape(text: object) -> str:
    """Text that is safe between tags and inside quotes."""
    return html.escape(str(text), quote=True)


def page(
    title: str, head: str, sections: Sequence[tuple[str, str, str]], foot: str, style: str = ""
) -> str:
    """The whole page.

    Args:
        title: Plain text.
        head: HTML under the title.
        sections: Identifier, heading (plain text) and HTML of each.
        foot: Plain text.
        style: Style rules beyond those of `report.css`.
    """
    links = "\n".join(
        f'<li><a href="#{name}">{escape(heading)}</a></li>' for name, heading, _ in sections
    )
    body = "\n".join(
        f'<section id="{name}" aria-labelledby="{name}-h">\n'
        f'<h2 id="{name}-h">{escape(heading)}</h2>\n{content}\n</section>'
        for name, heading, content in sections
    )
    return _PAGE.substitute(
        title=escape(title),
        style=_style() + style,
        head=head,
        links=links,
        body=body,
        foot=escape(foot),
    )


def _style() -> str:
    source = resources.files("jigsaw_forecast.verify.report").joinpath("report.css")
    return source.read_text(encoding="utf-8")


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text; kinds are `note` and `warning`."""
    if not kind:
        return f"<p>{escape(text)}</p>"
    role = ' role="note"'
    return f'<p class="{kind}"{role}>{escape(text)}</p>'


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of terms and what they are, plain text."""
    rows = "\n".join(
        f"<div><dt>{escape(term)}</dt><dd>{escape(value)}</dd></div>" for term, value in pairs
    )
    return f'<dl class="facts">\n{rows}\n</dl>'


def details(summary: str, content: str, is_open: bool = False) -> str:
    """HTML that opens when its summary (plain text) is pressed."""
    state = " open" if is_open else ""
    return f"<details{state}><summary>{escape(summary)}</summary>\n{content}\n</details>"


def scrolling(label: str, content: str) -> str:
    """HTML that scrolls sideways by itself where the screen is too narrow, by keys as well."""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">\n'
        f"{content}\n</div>"
    )


def pictures(drawn: Iterable[Picture], kind: str = "panels") -> str:
    """Pictures side by side as the screen allows, each with its alternative text."""
    return f'<div class="{kind}">\n' + "\n".join(_figure(one) for one in drawn) + "\n</div>"


def _figure(picture: Picture) -> str:
    encoded = base64.b64encode(picture.png).decode("ascii")
    return (
        f'<figure><img src="data:image/png;base64,{encoded}" width="{picture.width}" '
        f'height="{picture.height}" alt="{escape(picture.alt)}"></figure>'
    )


def number(value: float, scale: float = 1.0) -> str:
    """A number of the scores as shown, with the full value for machines; a dash for NaN.

    Args:
        value: As it is in the scores.
        scale: Factor from the units of the scores to those shown.
    """
    if not math.isfinite(value):
        return '<abbr title="no value">–</abbr>'
    return f'<data value="{value!r}">{format_number(value * scale)}</data>'


def format_number(value: float) -> str:
    """Four significant digits, three below 1; a proper minus sign; few exponents."""
    if value == 0.0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size < -3 or size >= 6:
        text = f"{value:.3e}"
    else:
        decimals = max(0, min(3, 3 - size)) if size >= -1 else 2 - size
        text = f"{value:.{decimals}f}"
    return text.replace("-", "−")
