"""What a run shows and leaves: progress, table, result."""

from matu.report.console import Display, print_result
from matu.report.result import build_result

__all__ = ["Display", "build_result", "print_result"]
