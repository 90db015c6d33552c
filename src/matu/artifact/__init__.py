"""The artifact: what a run leaves to be used, on disk and opened again."""

from matu.artifact.packed import Packed
from matu.artifact.stored import Artifact, load_artifact, save_artifact

__all__ = ["Artifact", "Packed", "load_artifact", "save_artifact"]
