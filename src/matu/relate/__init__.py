"""How alike tasks are: sign, cosine, FIM, E-Tran and WTE on adapters trained alone (paper Figures 2 and 3)."""

from matu.relate.study import Study, relate

__all__ = ["Study", "relate"]
