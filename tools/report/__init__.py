"""The report: one HTML file that shows a model on its way through the passes."""

from .page import write_report
from .recorder import Moment, Report, Run

__all__ = ["Moment", "Report", "Run", "write_report"]
