"""Backbones and the adapters on them."""

from matu.models.adapter import AdaptedModel
from matu.models.backbone import BUNDLED, Backbone, load_backbone, locate
from matu.models.plain import PlainModel, plain_model

__all__ = ["BUNDLED", "AdaptedModel", "Backbone", "PlainModel", "load_backbone", "locate", "plain_model"]
