"""Several methods, settings and seeds side by side: planned, tuned, run, summarised, drawn."""

from matu.bench.comparison import compare
from matu.bench.plan import Comparison, read_comparison
from matu.bench.runner import Bench

__all__ = ["Bench", "Comparison", "compare", "read_comparison"]
