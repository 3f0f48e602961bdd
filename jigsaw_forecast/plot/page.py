"""Where things are on the page of a figure."""

from dataclasses import dataclass

PANEL_INCHES = (6.4, 3.12)  # the map is 2.05 times as wide as high


@dataclass(frozen=True)
class Page:
    """The places of things, in inches turned into shares of the page.

    Attributes:
        num_columns: Panels beside each other.
        num_rows: Lead times below each other.
        num_notice_lines: Lines between title and headings.
    """

    num_columns: int
    num_rows: int
    num_notice_lines: int

    margin = 0.2
    row_gap = 0.34
    notice_line = 0.2
    footer = 0.75

    @property
    def header(self) -> float:
        """Above the first row of maps: title, notice, headings; inches."""
        return 0.85 + self.num_notice_lines * self.notice_line

    @property
    def width(self) -> float:
        """Of the page, inches."""
        return self.num_columns * (PANEL_INCHES[0] + self.margin) + self.margin

    @property
    def height(self) -> float:
        """Of the page, inches."""
        rows = self.num_rows * (PANEL_INCHES[1] + self.row_gap)
        return self.header + rows + self.footer

    def up(self, from_top: float) -> float:
        """Height of a place so many inches below the top, as a share of the page."""
        return 1.0 - from_top / self.height

    def left(self, column: int) -> float:
        """Left edge of a column, inches."""
        return self.margin + column * (PANEL_INCHES[0] + self.margin)

    def middle(self, column: int) -> float:
        """Middle of a column, as a share of the page."""
        return (self.left(column) + PANEL_INCHES[0] / 2) / self.width

    def panel(self, column: int, row: int) -> tuple[float, float, float, float]:
        """Left, bottom, width and height of a map, as shares of the page."""
        bottom = self.header + (row + 1) * (PANEL_INCHES[1] + self.row_gap)
        return (
            self.left(column) / self.width,
            self.up(bottom),
            PANEL_INCHES[0] / self.width,
            PANEL_INCHES[1] / self.height,
        )

    def bar(self, column: int) -> tuple[float, float, float, float]:
        """The same of the colour bar below a column."""
        length = 0.7 * PANEL_INCHES[0]
        left = self.left(column) + 0.15 * PANEL_INCHES[0]
        bottom, thickness = 0.5, 0.13
        return (
            left / self.width,
            bottom / self.height,
            length / self.width,
            thickness / self.height,
        )
