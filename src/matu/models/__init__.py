"""Backbones and the adapters on them."""

from matu.models.adapter import AdaptedModel
from matu.models.backbone import Backbone, load_backbone

__all__ = ["AdaptedModel", "Backbone", "load_backbone"]
