"""The unified adapter on disk."""

from matu.artifact.unified import load_artifact, save_artifact

__all__ = ["load_artifact", "save_artifact"]
