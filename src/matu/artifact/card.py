"""Model cards: what an artifact is, for people and for the Hugging Face hub, written from its own facts."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from matu.models import PlainModel
from matu.models.plain import HEAD
from matu.tasks.images import DRAFT_MARGIN
from matu.words import counted, percent

_KINDS = ("artifact", "delivered", "server", "individual")
_LICENCE = "**No licence is stated**: those of the backbone and of the training data decide."
_FORMS = {
    "unified": "one unified vector for all tasks, and a mask, a rescaler and a head a task",
    "separate": "a vector of few bits a number, and a head, a task",
}


def model_card(note: Mapping[str, Any]) -> str:
    """The README.md of an artifact.

    Parameters
    ----------
    note
        The content of `artifact.json`.
    """
    tasks, made = note["tasks"], note["provenance"]
    title = f"{counted(len(tasks), 'image classification task')} on {note['backbone']['name']}"
    names = ", ".join(tasks)
    return f"""---
{metadata(note, tuple(tasks), library="matu")}
---
# {title}

{names}: LoRA adapters on the frozen backbone `{note["backbone"]["name"]}`, kept as {_FORMS[note["form"]]}. Made by
[matu](https://arxiv.org/abs/2502.06376) {made["matu"]} on {made["date"]}, method `{made["method"]}`.

## Tasks

{_task_table(tasks)}

Accuracy is on each task's test images, in %: *artifact* of what lies here, *delivered* of what the run's sites got,
*server* of the server's own model, *individual* of the task fine-tuned alone. An empty field was not measured.

## Use

```
matu inspect .
matu predict . photo.jpg --task {shlex.quote(next(iter(tasks)))}
matu export . --all --to adapters          # plain PEFT adapters
```

## Facts

{facts(note)}

## Limits

It puts every image into one of a task's classes, which `artifact.json` names, and knows them as its training images
show them. {_LICENCE}
"""


def export_card(note: Mapping[str, Any], task: str, plain: PlainModel, near: str, *, merged: bool) -> str:
    """The README.md of an exported task, with code that uses it without matu.

    Parameters
    ----------
    note
        The content of `artifact.json`.
    task
        Which task.
    plain
        What was written.
    near
        Where a copy of the backbone lies beside it; empty: nowhere.
    merged
        The adapter is merged into the model.
    """
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    return f"""---
{metadata(note, [task], library="transformers" if merged else "peft")}
---
# {task} on {note["backbone"]["name"]}

{"A model with its LoRA adapter merged in" if merged else "A LoRA adapter"}, for {len(note["tasks"][task]["classes"])} \
classes: one of {counted(len(note["tasks"]), "task")} of an artifact of
[matu](https://arxiv.org/abs/2502.06376) {note["provenance"]["matu"]}. Plain Transformers and PEFT use it; it was
written with {libraries}. Class names are in `config.json`.

```python
{_code(note, plain, near, merged=merged)}```

{facts(note)}

{_LICENCE}
"""


_CODE = """\
import numpy as np
{imports}

{loading}


def pixels(photo):
    image = Image.open(photo)
    image.draft(None, ({draft}, {draft}))  # a large JPEG is decoded smaller
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # of 16 bits the upper 8
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    image = image.convert("RGBA")  # what is transparent is white
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image = ImageOps.fit(image, ({size}, {size}), Image.Resampling.BICUBIC)  # the central square
    values = (np.asarray(image) / 255 - {mean}) / {std}
    return torch.tensor(values, dtype=torch.float32).permute(2, 0, 1)[None]


with torch.no_grad():
    output = model(pixel_values=pixels("photo.jpg"){called})
{logits}
print(model.config.id2label[int(logits.argmax())])
"""
_HEAD_CODE = """\
hidden, pooled = output.last_hidden_state, output.get("pooler_output")
features = ({tokens}) if pooled is None else pooled.flatten(1)
head = load_file("{head}")
logits = features @ head["weight"].T + head["bias"]"""


def _code(note: Mapping[str, Any], plain: PlainModel, near: str, *, merged: bool) -> str:
    """Python that classifies a photo, to be run in the folder of the export."""
    size = note["preprocessing"]["image_size"]
    imports = ["import torch", "import transformers", "from PIL import Image, ImageOps"]
    kind, given = plain.loaded
    if merged:
        own = _keywords({name: value for name, value in given.items() if name == "add_pooling_layer"})
        loading = [f'model = transformers.{kind}.from_pretrained(".", dtype=torch.float32{own}).eval()']
    else:
        imports.insert(0, "import peft")
        hint = "" if near or note["backbone"]["revision"] else "  # the path of its folder"
        loading = [
            f"backbone = {json.dumps(near or note['backbone']['name'])}{hint}",  # somebody's text, as a literal
            'config = transformers.AutoConfig.from_pretrained(".")',
            f"model = transformers.{kind}.from_pretrained(",
            f"    backbone, config=config, dtype=torch.float32{_keywords(given)}",
            ")",
            'model = peft.PeftModel.from_pretrained(model, ".").eval()',
        ]
    logits = "logits = output.logits"
    if plain.head is not None:
        imports.append("from safetensors.torch import load_file")
        tokens = "hidden[:, 0]" if plain.class_token else "hidden.mean(1) if hidden.ndim == 3 else hidden.mean((2, 3))"
        logits = _HEAD_CODE.format(tokens=tokens, head=HEAD)
    return _CODE.format(
        imports="\n".join(imports), loading="\n".join(loading), size=size, draft=DRAFT_MARGIN * size,
        mean=tuple(note["preprocessing"]["mean"]), std=tuple(note["preprocessing"]["std"]),
        called=_keywords(plain.called), logits=logits,
    )  # fmt: skip


def _keywords(arguments: Mapping[str, Any]) -> str:
    return "".join(f", {name}={value!r}" for name, value in arguments.items())


def metadata(note: Mapping[str, Any], tasks: Sequence[str], *, library: str) -> str:
    """The front matter of a card about some of the tasks, as YAML."""
    backbone, about = note["backbone"], {task: note["tasks"][task] for task in tasks}
    results = [
        EvalResult(
            task_type="image-classification", dataset_type=_hub_dataset(one["source"]) or task, dataset_name=task,
            metric_type="accuracy", metric_value=round(share, 4),
        )
        for task, one in about.items()
        if (share := measured(one)) is not None
    ]  # fmt: skip
    datasets = sorted({found for one in about.values() if (found := _hub_dataset(one["source"]))})
    data = ModelCardData(
        model_name="-".join(tasks[:3]), license="unknown", library_name=library, pipeline_tag="image-classification",
        tags=["matu", "lora", "federated-learning", "model-merging"], metrics=["accuracy"],
        base_model=backbone["name"] if backbone["revision"] else None, datasets=datasets or None,
        eval_results=results or None,
    )  # fmt: skip
    return str(data.to_yaml())


def facts(note: Mapping[str, Any]) -> str:
    """Where an artifact is from, as a table."""
    backbone, adapter, made = note["backbone"], note["adapter"], note["provenance"]
    lora, revision = adapter["lora"], f", revision `{backbone['revision']}`" if backbone["revision"] else ""
    rows = {
        "backbone": f"`{backbone['name']}`{revision}, weights `{backbone['sha256'][:16]}`",
        "adapter": f"LoRA of rank {lora['rank']}, alpha {lora['alpha']:g}, on {', '.join(lora['targets'])}: "
        f"{adapter['dim']:,} numbers",
        "images": f"central square at {note['preprocessing']['image_size']} px",
        "run": f"`{made['run'][:16]}`, {counted(made['rounds'], 'round')}, seed {made['seed']}"
        + "".join(f", {option}" for option in made["options"]),
        "since then": "; ".join(made["changes"]),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items() if value)])


def measured(about: Mapping[str, Any]) -> float | None:
    """Of a task's accuracies the one that is nearest to what the artifact gives; None if it has none."""
    return next((about["accuracy"][kind] for kind in _KINDS[:3] if kind in about["accuracy"]), None)


def _task_table(tasks: Mapping[str, Any]) -> str:
    kinds = [kind for kind in _KINDS if any(kind in about["accuracy"] for about in tasks.values())]
    rows = [
        [task, str(len(about["classes"])), *(percent(about["accuracy"].get(kind), "") for kind in kinds)]
        for task, about in tasks.items()
    ]
    lines = [["task", "classes", *kinds], ["---"] * (2 + len(kinds)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _hub_dataset(source: str) -> str | None:
    """The id of a dataset of the hub, None for other sources."""
    kind, _, rest = source.partition(":")
    return "/".join(rest.partition("@")[0].split("/")[:2]) if kind == "hub" else None
