"""Claims about the HTML pieces."""

from html.parser import HTMLParser

import numpy as np
import pytest

from jigsaw_forecast.verify.report.page import (
    definitions,
    details,
    escape,
    format_number,
    number,
    page,
    paragraph,
    scrolling,
)

NASTY = "<script>alert('x')</script>&\""


def test_every_piece_escapes_its_text() -> None:
    pieces = [
        page(NASTY, "", [("a", NASTY, "")], NASTY),
        paragraph(NASTY),
        paragraph(NASTY, "warning"),
        definitions([(NASTY, NASTY)]),
        details(NASTY, ""),
        scrolling(NASTY, ""),
    ]
    for piece in pieces:
        assert "<script" not in piece
        assert escape(NASTY) in piece


def test_page_is_well_formed() -> None:
    opened: list[str] = []

    class Walker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "link", "img", "br"):
                opened.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag

    text = page("a", paragraph("b"), [("c", "d", details("e", scrolling("f", "g")))], "h")
    Walker().feed(text)
    assert opened == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (1.0, "1.000"),
        (12.3456, "12.35"),
        (-123.456, "−123.5"),
        (123456.0, "123456"),
        (0.98765, "0.988"),
        (0.0123456, "0.0123"),
        (1.5e-5, "1.500e−05"),
        (2.5e7, "2.500e+07"),
    ],
)
def test_numbers_are_short_and_keep_their_digits(value: float, shown: str) -> None:
    assert format_number(value) == shown


def test_number_holds_the_full_value_of_the_scores() -> None:
    value = float(np.float64(1.0) / 3.0)
    assert number(value, 1000.0) == f'<data value="{value!r}">333.3</data>'


def test_absent_number_is_a_dash() -> None:
    assert "–" in number(float("nan"))
    assert "nan" not in number(float("nan"))
