"""The mathematics of matu: tensors in, tensors out; no model, file, network or setting."""

from matu.vectors.accumulate import RoundAccumulator, RoundMeans
from matu.vectors.exact_sum import ExactSum
from matu.vectors.layout import Layout
from matu.vectors.mean import MeanAccumulator
from matu.vectors.start import draw_start
from matu.vectors.transfer import RULES, Agreement, similarity, similarity_of_rows, transfer, transfer_rows
from matu.vectors.unify import Unified, unify

__all__ = [
    "RULES",
    "Agreement",
    "ExactSum",
    "Layout",
    "MeanAccumulator",
    "RoundAccumulator",
    "RoundMeans",
    "Unified",
    "draw_start",
    "similarity",
    "similarity_of_rows",
    "transfer",
    "transfer_rows",
    "unify",
]
