"""An adapted model as plain Transformers and PEFT classes, for those who use it without matu."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig

from matu.errors import ConfigError
from matu.models.adapter import AdaptedModel
from matu.models.backbone import locate, pooled, quiet_transformers, without_pooler

HEAD = "head.safetensors"


@dataclass(frozen=True)
class PlainModel:
    """A backbone with one task's adapter and head, of classes that know nothing of matu.

    Attributes
    ----------
    model
        The Transformers model, wrapped by PEFT.
    head
        float [classes, features + 1] where the library's classifier cannot hold it, and the model gives features.
    loaded
        Class of the Transformers library, and what its `from_pretrained` is given beside the backbone.
    called
        What the model is given beside pixels.
    class_token
        As of the backbone.
    """

    model: PeftModel
    head: Tensor | None
    loaded: tuple[str, dict[str, Any]]
    called: dict[str, Any]
    class_token: bool

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """float [n, 3, size, size], normalised -> [n, classes]."""
        output = self.model(pixel_values=pixels, **self.called)
        if self.head is None:
            logits: Tensor = output.logits
            return logits
        return pooled(output, self.class_token) @ self.head[:, :-1].T + self.head[:, -1]

    def save(self, folder: Path, *, merged: bool) -> None:
        """Write a PEFT adapter, or the whole model with the adapter merged in; and config.json with the class names."""
        with quiet_transformers():
            if merged:
                self.model.merge_and_unload().save_pretrained(folder)
            else:
                self.model.save_pretrained(str(folder), save_embedding_layers=False)
                self.model.config.save_pretrained(folder)
        if self.head is not None:
            head = {"weight": self.head[:, :-1].contiguous(), "bias": self.head[:, -1].contiguous()}
            save_file(head, folder / HEAD)


def plain_model(
    model: AdaptedModel, source: str, head: Tensor, classes: Sequence[str], *, models_root: Path | None
) -> PlainModel:
    """The model as it stands and a head, in plain classes that are shown to give the same logits.

    The image classifier of the library is tried first, then its plain encoder with the head beside it.

    Parameters
    ----------
    model
        Its parameters are those of the task.
    source
        How its backbone was found: a bundled name, a folder, or a hub id.
    head
        float [classes, features + 1].
    classes
        Their names.
    models_root
        Folder of backbone folders.

    Raises
    ------
    ConfigError
        If neither gives the logits that matu gives.
    """
    pixels = torch.randn(4, 3, model.backbone.image_size, model.backbone.image_size, generator=torch.manual_seed(0))
    with torch.no_grad():
        features = model.backbone.encode(pixels.to(model.device)).float().cpu()
    expected = features @ head[:, :-1].T + head[:, -1]
    found = []
    for build in (_classifier, _encoder):
        try:
            with quiet_transformers():
                plain = build(model, locate(source, models_root), head, classes)
            difference = float((plain.logits(pixels) - expected).abs().max() / expected.abs().max().clamp(min=1e-9))
        except (ValueError, TypeError, RuntimeError, AttributeError) as error:  # the library has no such class
            found.append(f"{type(error).__name__}: {error}".splitlines()[0][:120])
            continue
        if difference < 1e-3:
            return plain
        found.append(f"logits that differ by {100 * difference:.1g} %")
    raise ConfigError(f"backbone '{model.backbone.name}': plain Transformers and PEFT give {'; '.join(found)}")


def _classifier(model: AdaptedModel, source: str, head: Tensor, classes: Sequence[str]) -> PlainModel:
    """The library's image classifier; its linear layer may read more than our features, with zeros."""
    plain, loaded = _load("AutoModelForImageClassification", model, source, classes, ignore_mismatched_sizes=True)
    inside = f"{plain.base_model_prefix}."
    layers = [(n, m) for n, m in plain.named_modules() if isinstance(m, nn.Linear) and not n.startswith(inside)]
    if len(layers) != 1:
        raise ValueError(f"{type(plain).__name__} has {len(layers)} linear layers for a head")
    name, layer = layers[0]
    with torch.no_grad():
        layer.weight.zero_()[:, : head.shape[1] - 1] = head[:, :-1]
        layer.bias.copy_(head[:, -1])
    adapted = _adapted(plain, model, inside, [name.partition(".")[0]])
    return PlainModel(adapted, None, loaded, _resized(plain, model), model.backbone.class_token)


def _encoder(model: AdaptedModel, source: str, head: Tensor, classes: Sequence[str]) -> PlainModel:
    """The library's encoder; the head stands beside it."""
    config = AutoConfig.from_pretrained(source, revision=model.backbone.revision, trust_remote_code=False)
    plain, loaded = _load("AutoModel", model, source, classes, **without_pooler(config))
    adapted = _adapted(plain, model, "", None)
    return PlainModel(adapted, head, loaded, _resized(plain, model), model.backbone.class_token)


def _load(
    kind: str, model: AdaptedModel, source: str, classes: Sequence[str], **extra: Any
) -> tuple[Any, tuple[str, dict[str, Any]]]:
    """The backbone as a class of the library, and how it was loaded."""
    revision = model.backbone.revision
    config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: i for i, name in enumerate(classes)}
    extra |= {"revision": revision} if revision else {}
    plain = getattr(transformers, kind).from_pretrained(
        source, config=config, dtype=torch.float32, use_safetensors=True, **extra
    )
    return plain, (kind, extra)


def _resized(plain: Any, model: AdaptedModel) -> dict[str, Any]:
    """What the model must be told about images of another size than its checkpoint's."""
    resized = getattr(plain.config, "image_size", None) not in (None, model.backbone.image_size)
    can_be_told = "interpolate_pos_encoding" in inspect.signature(plain.forward).parameters
    return {"interpolate_pos_encoding": True} if resized and can_be_told else {}


def _adapted(plain: Any, model: AdaptedModel, inside: str, saved: list[str] | None) -> PeftModel:
    """With the adapter that stands in `model`; `inside`: where the backbone's layers are in the plain model."""
    targets = sorted({f"{inside}{name.partition('.lora_')[0]}" for name in model.layout.names})
    with warnings.catch_warnings():  # PEFT asks Transformers for a property of its older name
        warnings.simplefilter("ignore", FutureWarning)
        wrapped = get_peft_model(plain, replace(model.lora, target_modules=targets, modules_to_save=saved)).eval()
    stated = wrapped.peft_config["default"]  # which holds the path of this machine
    stated.base_model_name_or_path, stated.revision = model.backbone.name, model.backbone.revision
    values = model.layout.unflatten(model.parameters.detach().cpu())
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".lora_" in name:
                parameter.copy_(values[name.removeprefix(f"base_model.model.{inside}")])
    return wrapped
