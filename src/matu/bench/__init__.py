"""Several methods, settings and seeds side by side: planned, tuned, run, summarised, drawn."""

from matu.bench.comparison import compare
from matu.bench.plan import Comparison
from matu.bench.runner import Bench
from matu.bench.saved import read_comparison

__all__ = ["Bench", "Comparison", "compare", "read_comparison"]
