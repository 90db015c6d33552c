"""What a run shows and leaves: progress, table, result, page."""

from matu.report.console import Display, print_result

__all__ = ["Display", "print_result"]
