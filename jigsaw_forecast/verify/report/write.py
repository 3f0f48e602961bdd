"""Puts the report together and writes it."""

import os
from collections.abc import Iterable
from pathlib import Path

from jigsaw_forecast.errors import OutputError
from jigsaw_forecast.verify.report.comparison import compare
from jigsaw_forecast.verify.report.draw_scorecard import Card, draw_scorecard
from jigsaw_forecast.verify.report.gallery import (
    bias_pictures,
    file_name,
    metric_pictures,
    rank_pictures,
    spectrum_pictures,
    spread_pictures,
)
from jigsaw_forecast.verify.report.page import (
    details,
    escape,
    page,
    paragraph,
    pictures,
    scrolling,
)
from jigsaw_forecast.verify.report.pictures import Picture, Style, styles_of
from jigsaw_forecast.verify.report.protocol import notices, protocol_section, sample_words
from jigsaw_forecast.verify.report.quantities import Quantity, headline_of, lead_label
from jigsaw_forecast.verify.report.read import Model, Scoring, read_scoring
from jigsaw_forecast.verify.report.significance import MIN_PAIRS
from jigsaw_forecast.verify.report.summary import summary
from jigsaw_forecast.verify.report.tables import (
    card_style,
    card_tables,
    headline_hours,
    metric_tables,
    region_label,
    region_table,
)

REPORT_NAME = "report.html"
FIGURES = "figures"
MOST_BYTES = 3_500_000  # of pictures in the page; base64 makes them a third larger
CARD_REGIONS = ("northern-hemisphere", "southern-hemisphere", "tropics")
NUM_MAP_HOURS = 3


def write_report(output: Path) -> None:
    """Writes `report.html` and `figures/*.png` into a folder of scores.

    The page holds all that it shows; parts whose files are absent are left out and named at its
    end. Pictures beyond 3.5 MB are in the folder only.

    Args:
        output: Folder that `score` has written: `scores.nc`, and as far as there are any
            `scores_NAME.nc`, `statistics/NAME.nc`, `maps_NAME.nc`, `spectra.nc`,
            `rank_histogram.nc` and `protocol.json`.

    Raises:
        DataError: There are no scores.
        OutputError: The report cannot be written.
    """
    scoring = read_scoring(output)
    report = _Report(scoring)
    text = report.html()
    try:
        report.album.write(output / FIGURES)
        _replace(output / REPORT_NAME, text.encode("utf-8"))
    except OSError as error:
        raise OutputError(
            f"cannot write the report in {output}: {error.strerror or error}"
        ) from error


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


class _Album:
    """Pictures so far: all go into the folder, and as many as there is room for into the page."""

    def __init__(self) -> None:
        self._pictures: dict[str, Picture] = {}
        self._room = MOST_BYTES

    def add(self, drawn: Iterable[Picture], kind: str = "panels") -> str:
        """Keeps pictures; HTML that shows them, or says where they are."""
        shown: list[Picture] = []
        left: list[Picture] = []
        for picture in drawn:
            assert picture.name not in self._pictures, picture.name
            self._pictures[picture.name] = picture
            self._room -= len(picture.png)
            (shown if self._room >= 0 else left).append(picture)
        parts = [pictures(shown, kind)] if shown else []
        if left:
            names = ", ".join(f"{FIGURES}/{one.name}.png" for one in left)
            parts.append(paragraph(f"Not in this page, which would be too large: {names}"))
        return "\n".join(parts)

    def write(self, folder: Path) -> None:
        """Writes all pictures; those of an earlier report go."""
        folder.mkdir(exist_ok=True)
        for name, picture in self._pictures.items():
            _replace(folder / f"{name}.png", picture.png)
        for path in folder.glob("*.png"):
            if path.stem not in self._pictures:
                path.unlink()


class _Report:
    """The parts of the page, in order."""

    def __init__(self, scoring: Scoring) -> None:
        self.scoring = scoring
        self.album = _Album()
        self._headline: list[Quantity] = headline_of(scoring.quantities)
        self._styles: dict[str, Style] = styles_of(
            scoring.main.name,
            [model.name for model in scoring.others if not model.is_baseline],
            [model.name for model in scoring.others if model.is_baseline],
        )
        self._cards: list[tuple[Model, Card]] = [
            (model, compare(scoring, model, scoring.region)) for model in scoring.others
        ]

    def html(self) -> str:
        """The whole page."""
        scoring = self.scoring
        cards = [card for _, card in self._cards]
        head = "\n".join(
            part for part in (notices(scoring), summary(scoring, self._headline, cards)) if part
        )
        sections = [
            ("protocol", "Protocol", protocol_section(scoring)),
            ("headline", "Headline scores", self._headline_tables()),
            ("scorecard", "Scorecard", self._scorecards()),
            ("curves", "Scores by lead time", self._curves()),
            ("ensemble", "Ensemble", self._ensemble()),
            ("bias", "Mean error", self._maps()),
            ("spectra", "Spectra", self._spectra()),
            ("regions", "Regions", self._regions()),
        ]
        if scoring.left_out:
            said = "\n".join(paragraph(one) for one in dict.fromkeys(scoring.left_out))
            sections.append(("left-out", "Not in this report", said))
        foot = "Written by jigsaw-forecast score; every number is in scores.nc and scores.csv."
        shown = [section for section in sections if section[2]]
        return page(f"Scores of {scoring.main.title}", head, shown, foot, card_style())

    def _leave_out(self, why: str) -> str:
        self.scoring.left_out.append(why)
        return ""

    def _headline_tables(self) -> str:
        parts = []
        for metric, words in (
            ("rmse", "RMSE"),
            ("acc", "ACC"),
            ("crps", "CRPS (fair)"),
            ("unbiased_spread_skill_ratio", "spread over error"),
        ):
            table = metric_tables(self.scoring, self._headline, metric, words)
            if table:
                parts.append(f"<h3>{words[:1].upper()}{words[1:]}</h3>\n{table}")
            elif metric == "acc":
                self._leave_out("ACC: no values; it needs a climatology.")
        if not parts:
            return self._leave_out("Headline scores: the scores hold no number.")
        sample = sample_words(self.scoring)
        region = paragraph(f"Region: {region_label(self.scoring.region)}.")
        return "\n".join([region, *([paragraph(sample, "note")] if sample else []), *parts])

    def _scorecards(self) -> str:
        if not self.scoring.others:
            return self._leave_out("The scorecard: nothing to compare with.")
        parts = [paragraph(_SCORECARD_WORDS)]
        for model, card in self._cards:
            if not card.quantities:
                self._leave_out(f"The scorecard against {model.title}: nothing in common.")
                continue
            parts.append(self._one_card(model, card))
        return "\n".join(parts) if len(parts) > 1 else ""

    def _one_card(self, model: Model, card: Card) -> str:
        title = f"Against {model.title}"
        parts = [f"<h3>{escape(title)}</h3>"]
        if model.warning:
            parts.append(paragraph(f"Forced comparison: {model.warning}", "warning"))
        parts.append(paragraph(_tested_words(card)))
        parts.append(self._card_picture(model, card))
        parts.append(details(f"{title}: the numbers", card_tables(card)))
        if not model.is_baseline:
            for region in CARD_REGIONS:
                if region in self.scoring.regions and region != card.region:
                    other = compare(self.scoring, model, region)
                    if other.quantities:
                        words = f"{title}: {region_label(region)}"
                        parts.append(details(words, self._card_picture(model, other)))
        return "\n".join(parts)

    def _card_picture(self, model: Model, card: Card) -> str:
        name = file_name("scorecard", model.name, card.region)
        picture = draw_scorecard(card, self.scoring.main.title, name)
        label = f"Scorecard against {model.title}, {region_label(card.region)}"
        return scrolling(label, self.album.add([picture], "wide"))

    def _curves(self) -> str:
        parts = [paragraph(f"Region: {region_label(self.scoring.region)}.")]
        for metric, words, is_open in (
            ("rmse", "RMSE", True),
            ("acc", "ACC", True),
            ("bias", "bias", False),
            ("seeps_24hr", "SEEPS", True),
        ):
            quantities = self._headline if metric != "seeps_24hr" else self.scoring.quantities
            drawn = self.album.add(
                metric_pictures(self.scoring, quantities, metric, words, self._styles)
            )
            if drawn:
                parts.append(
                    details(f"{words[:1].upper()}{words[1:]} by lead time", drawn, is_open)
                )
        return "\n".join(parts) if len(parts) > 1 else ""

    def _ensemble(self) -> str:
        parts = []
        crps = metric_pictures(self.scoring, self._headline, "crps", "CRPS", self._styles)
        spread = spread_pictures(self.scoring, self._headline, self._styles)
        for heading, words, drawn in (
            ("CRPS", "Fair CRPS: lower is better.", crps),
            ("Spread and error", _SPREAD_WORDS, spread),
            (
                "Rank histograms",
                _RANK_WORDS,
                rank_pictures(self.scoring, self.scoring.main),
            ),
        ):
            shown = self.album.add(drawn)
            if shown:
                parts.append(f"<h3>{heading}</h3>\n{paragraph(words)}\n{shown}")
        for model in self.scoring.others:
            shown = self.album.add(rank_pictures(self.scoring, model))
            if shown:
                parts.append(details(f"Rank histograms of {model.title}", shown))
        return "\n".join(parts) or self._leave_out(
            "Ensemble scores and rank histograms: the forecast has no members."
        )

    def _maps(self) -> str:
        parts = []
        for model in self.scoring.models:
            if model.is_baseline:
                continue
            is_main = model.name == self.scoring.main.name
            number = NUM_MAP_HOURS if is_main else 1
            shown = self.album.add(bias_pictures(self.scoring, model, number))
            if shown and is_main:
                parts.append(shown)
            elif shown:
                parts.append(details(f"Mean error of {model.title}", shown))
        if not parts:
            return self._leave_out("Maps of the mean error: missing maps_forecast.nc.")
        return "\n".join([paragraph("Forecast minus truth, mean over initial times."), *parts])

    def _spectra(self) -> str:
        shown = self.album.add(spectrum_pictures(self.scoring, self._styles))
        if not shown:
            return self._leave_out("Spectra: missing spectra.nc, or nothing in it.")
        return f"{paragraph(_SPECTRA_WORDS)}\n{shown}"

    def _regions(self) -> str:
        if len(self.scoring.regions) < 2:
            return self._leave_out("Regions: only one was scored.")
        hours = headline_hours(self.scoring.hours)
        middle = hours[len(hours) // 2]
        tables = [
            details(
                f"Lead time {lead_label(one)}",
                region_table(self.scoring, self._headline, one),
                is_open=one == middle,
            )
            for one in hours
        ]
        return "\n".join(tables)


_SCORECARD_WORDS = (
    "Difference of RMSE in per cent of the other forecast's: blue is lower and better, red is "
    "higher and worse. A dot marks differences that are significant at 95 %: paired differences "
    "of the mean square error of each initial time, Student's t with the standard error inflated "
    "for autocorrelation of first and second order (Geer 2016, doi:10.3402/tellusa.v68.30229). "
    "Of cells without a true difference one in twenty is marked by chance."
)
_SPREAD_WORDS = (
    "Spread is the root of the mean variance of the members, error the root of the debiased mean "
    "square error of their mean: equal where the spread is right."
)
_RANK_WORDS = (
    "How often the truth falls into each gap between the sorted members: flat is right, a hollow "
    "means too little spread, a slope means a bias."
)
_SPECTRA_WORDS = (
    "Energy by zonal wavenumber, mean over latitudes from 30 to 60 degrees of both hemispheres "
    "and over initial times. A forecast that falls below the truth is too smooth."
)


def _tested_words(card: Card) -> str:
    tested = int(card.is_tested.sum())
    if not tested:
        return (
            f"No cell was tested for significance: that needs statistics of at least {MIN_PAIRS} "
            "common initial times at even steps."
        )
    return f"{tested} cells tested, {int(card.is_significant.sum())} significant."
