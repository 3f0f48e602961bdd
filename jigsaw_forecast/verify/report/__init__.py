"""The report of a scoring: one self-contained HTML page and its pictures as PNG."""

from jigsaw_forecast.verify.report.write import write_report

__all__ = ["write_report"]
