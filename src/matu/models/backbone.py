"""Frozen image backbones: from the Hugging Face hub, from a folder, or the bundled `vit-mini`."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file, extract_commit_hash

from matu.errors import ConfigError, DataError

BUNDLED = ("vit-mini",)
_CLASS_TOKENS = ("cls_token", "class_embedding")
"""How parameters of a class token end in the Transformers library."""
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """A frozen image encoder and what must be known to feed it.

    Attributes
    ----------
    module
        The Hugging Face model, in evaluation mode, no parameter trainable.
    name
        The hub id or the folder's last part; never a path.
    digest
        SHA-256 (hex) over the names, shapes and values of all its weights.
    image_size
        Side of the square input, in pixels.
    features
        Width of the image feature that a head reads.
    mean, std
        Per channel, of pixel values scaled to [0, 1].
    class_token
        The encoder has a class token.
    revision
        The hub's commit; None for what does not come from there.
    """

    module: nn.Module
    name: str
    digest: str
    image_size: int
    features: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_token: bool
    revision: str | None = None

    def encode(self, pixels: Tensor) -> Tensor:
        """Image features: float [n, 3, size, size], normalised -> [n, features]."""
        return pooled(self.module(pixel_values=pixels), self.class_token)


def pooled(output: Any, class_token: bool) -> Tensor:
    """Image features of a model's output: the pooled ones, else the class token, else the mean over all places."""
    found: Tensor | None = getattr(output, "pooler_output", None)
    if found is not None:
        return found.flatten(1)
    hidden: Tensor = output.last_hidden_state
    if class_token:
        return hidden[:, 0]
    return hidden.mean(1) if hidden.ndim == 3 else hidden.mean((2, 3))


def load_backbone(
    name: str, *, image_size: int, models_root: Path | None = None, revision: str | None = None
) -> Backbone:
    """Load a backbone by bundled name, folder (also under `models_root`), or hub id, the latter at any revision.

    Position embeddings are interpolated once where `image_size` differs from the checkpoint's
    (bicubic, as the Transformers library does it), so no step pays for it.

    Raises
    ------
    ConfigError
        If nothing answers to `name`, no patch divides `image_size`, or an image has other features every time.
    DataError
        If its files cannot be read as a model.
    """
    source = locate(name, models_root)
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
            _check_image_size(name, config, image_size)
            module = AutoModel.from_pretrained(
                source, revision=revision, attn_implementation="eager", use_safetensors=True, trust_remote_code=False,
                **without_pooler(config),
            )  # fmt: skip
            module = module.float().eval().requires_grad_(False)
            class_token = any(name.endswith(_CLASS_TOKENS) for name, _ in module.named_parameters())
            digest = _digest(module, class_token)
            _interpolate_positions(module, config, image_size, class_token)
            mean, std = _normalisation(source, revision)
            noise = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
            with torch.no_grad():
                output, again = (module(pixel_values=noise) for _ in range(2))
                features = pooled(output, class_token)
            if not torch.allclose(features, pooled(again, class_token), rtol=1e-4, atol=1e-5):
                raise ConfigError(
                    f"backbone '{name}': the same image has other features every time (encoders like ViT-MAE mask "
                    "patches at random); expected one whose features are the image's alone"
                )
    except ConfigError:
        raise
    except Exception as error:
        raise DataError(
            f"backbone '{name}': cannot be loaded ({_first_line(error)}); expected '{BUNDLED[0]}', a Hugging Face "
            "hub id, or a folder (also under MATU_MODELS) of an image model with config.json and model.safetensors"
        ) from error
    if Path(source).exists():
        shown, commit = name if name in BUNDLED else Path(source).resolve().name, None
    else:
        shown, commit = name, extract_commit_hash(cached_file(source, "config.json", revision=revision), None)
    return Backbone(module, shown, digest, image_size, features.shape[1], mean, std, class_token, commit)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bar, no report of the classifier that a backbone does not take, no retry of a hub that is away."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub = hub_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        hub_logging.set_verbosity(hub)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def locate(name: str, models_root: Path | None) -> str:
    """A folder if one answers to the name, else the name itself: a hub id."""
    if name in BUNDLED:
        return str(resources.files("matu.models").joinpath(name.replace("-", "_")))
    candidates = [Path(name).expanduser(), *([models_root / name] if models_root else [])]
    for folder in candidates:
        if (folder / "config.json").is_file():
            return str(folder)
    if any(folder.is_dir() for folder in candidates):
        raise ConfigError(f"backbone '{name}': the folder holds no config.json; expected a Hugging Face model folder")
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ConfigError(
            f"backbone '{name}': no such bundled model, folder or hub id; expected 'vit-mini', a folder with "
            "config.json (also under MATU_MODELS or --models-root), or a hub id such as 'google/vit-base-patch16-224'"
        )
    return name


def without_pooler(config: Any) -> dict[str, bool]:
    """ViT-like models carry a pooler that image checkpoints do not train: they are read without it."""
    architecture: Any = MODEL_MAPPING[type(config)]
    parameters = inspect.signature(architecture).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in parameters and hasattr(config, "patch_size") else {}


def _check_image_size(name: str, config: Any, image_size: int) -> None:
    patch = getattr(config, "patch_size", None)
    if image_size < 1 or (isinstance(patch, int) and image_size % patch):
        raise ConfigError(
            f"image_size {image_size} does not fit backbone '{name}': no whole number of its {patch} px patches; "
            f"right would be {max(1, round(image_size / (patch or 1))) * (patch or 1)}"
        )


def _interpolate_positions(module: nn.Module, config: Any, image_size: int, class_token: bool) -> None:
    embeddings: Any = getattr(module, "embeddings", None)
    positions = getattr(embeddings, "position_embeddings", None)
    if not isinstance(positions, nn.Parameter) or not hasattr(embeddings, "interpolate_pos_encoding"):
        return
    tokens = (image_size // config.patch_size) ** 2 + class_token
    like = positions.new_zeros(1, tokens, positions.shape[-1])
    fitted = embeddings.interpolate_pos_encoding(like, image_size, image_size)
    embeddings.position_embeddings = nn.Parameter(fitted.detach().clone(), requires_grad=False)
    embeddings.image_size = embeddings.patch_embeddings.image_size = (image_size, image_size)


def _normalisation(source: str, revision: str | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    path = cached_file(
        source, "preprocessor_config.json", revision=revision, _raise_exceptions_for_missing_entries=False
    )
    if path is None:
        return _IMAGENET_MEAN, _IMAGENET_STD
    stated = json.loads(Path(path).read_text())
    mean, std = (
        tuple(float(x) for x in stated.get(key, default))
        for key, default in (("image_mean", _IMAGENET_MEAN), ("image_std", _IMAGENET_STD))
    )
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"preprocessor_config.json: image_mean {mean}, image_std {std}; expected three numbers each")
    return mean, std


def _digest(module: nn.Module, class_token: bool) -> str:
    hasher = hashlib.sha256(b"" if class_token else b"mean over all places")
    for name, values in sorted(module.state_dict().items()):
        hasher.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
        hasher.update(values.contiguous().view(torch.uint8).numpy() if values.ndim else str(values).encode())
    return hasher.hexdigest()


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
