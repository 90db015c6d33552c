"""Train the bundled backbone `vit-mini` from scratch on a folder of labelled images.

The folder holds `train.parquet` and `test.parquet` with a Hugging Face `image` column and an integer
`label` column. Every epoch ends with a checkpoint in the work folder; `--resume` goes on from it and gives
the same weights as an uninterrupted run. The finished model is written as a Hugging Face folder.

    python scripts/pretrain.py --data DATA --work WORK --out src/matu/models/vit_mini
"""

import ctypes
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow.parquet as pq
import torch
import torch._inductor.config as inductor
import tyro
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification

IMAGE_PX = 32
PATCH_PX = 4
TOKENS = (IMAGE_PX // PATCH_PX) ** 2

Tensor = torch.Tensor
Share = tuple[Tensor, Tensor, Tensor | None]
Forward = Callable[..., Tensor]
Arrays = dict[str, tuple[np.ndarray, np.ndarray]]


class State(TypedDict):
    """Where the training stands at the end of an epoch."""

    epochs_done: int
    seconds: float
    history: list[dict[str, float]]


@dataclass(frozen=True)
class Options:
    """What the training is given; learning rates are peaks, fractions are of the whole run."""

    data: Path
    """Folder with train.parquet and test.parquet."""
    work: Path
    """Folder for decoded images, checkpoint and log."""
    out: Path
    """Folder for the finished model."""
    epochs: int = 14
    batch: int = 256
    dim: int = 192
    layers: int = 5
    heads: int = 3
    mlp: int = 576
    muon_lr: float = 0.015
    muon_decay: float = 0.1
    adam_lr: float = 1.5e-3
    label_smoothing: float = 0.1
    warmup: float = 0.03
    """Fraction of the run in which the learning rate rises."""
    cooldown: float = 0.95
    """Fraction of the run in which the learning rate falls to zero."""
    keep_tokens: float = 0.5
    """Fraction of patch tokens kept while patches are dropped (PatchDropout)."""
    drop_until: float = 0.85
    """Fraction of the epochs in which patches are dropped; the rest sees whole images."""
    shift_px: int = 4
    """Largest random shift of a training image."""
    seed: int = 0
    device: str = "cpu"
    workers: int = 2
    """Threads that each train on a share of every batch (CPU cores; 1 on a GPU)."""
    compile: bool = False
    """Compile the training step (needs a C++ compiler on a CPU)."""
    resume: bool = False
    """Go on from the checkpoint in the work folder."""
    export_only: bool = False
    """Write the model of the checkpoint in the work folder to `out` and stop."""


def decode_parquet(parquet: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the images (uint8 [n, 3, 32, 32]) and labels (int64 [n]) of one parquet file.

    Raises
    ------
    ValueError
        If an image has another size than 32 x 32.
    """
    table = pq.read_table(parquet)
    images = np.empty((len(table), 3, IMAGE_PX, IMAGE_PX), np.uint8)
    for row, cell in enumerate(table["image"].to_pylist()):
        image = Image.open(io.BytesIO(cell["bytes"])).convert("RGB")
        if image.size != (IMAGE_PX, IMAGE_PX):
            raise ValueError(f"{parquet}, row {row}: image of {image.width} x {image.height}, wanted 32 x 32")
        images[row] = np.asarray(image).transpose(2, 0, 1)
    return images, table["label"].to_numpy().astype(np.int64)


def load_split(parquet: Path, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return what `decode_parquet` does, decoded once and then memory-mapped from the cache."""
    images_file, labels_file = cache.with_suffix(".images.npy"), cache.with_suffix(".labels.npy")
    if not labels_file.exists():
        images, labels = decode_parquet(parquet)
        np.save(images_file, images)
        np.save(labels_file, labels)
    return np.load(images_file, mmap_mode="r", allow_pickle=False), np.load(labels_file, allow_pickle=False)


def normalise(pixels: Tensor) -> Tensor:
    """Map uint8 pixels to float32 in [-1, 1] (mean 0.5, standard deviation 0.5)."""
    return pixels.float().div_(127.5).sub_(1.0)


def augment(images: np.ndarray, shift_px: int, rng: np.random.Generator) -> np.ndarray:
    """Shift (reflecting at the border) and mirror each image of uint8 [n, 3, s, s] at random."""
    count, side = len(images), images.shape[-1]
    offsets = rng.integers(-shift_px, shift_px + 1, size=(2, count, 1))
    rows, columns = (side - 1 - np.abs(side - 1 - np.abs(np.arange(side) + offset)) for offset in offsets)
    mirrored = rng.random(count) < 0.5
    columns[mirrored] = columns[mirrored, ::-1]
    pick, channels = np.arange(count)[:, None, None, None], np.arange(3)[None, :, None, None]
    moved: np.ndarray = images[pick, channels, rows[:, None, :, None], columns[:, None, None, :]]
    return moved


def batches(images: np.ndarray, labels: np.ndarray, options: Options, epoch: int) -> Iterator[Share]:
    """Yield pixels, labels and kept patch indices (int64 [n, kept], None for all) of one epoch's batches."""
    rng = np.random.default_rng(np.random.SeedSequence([options.seed, epoch]))
    order = rng.permutation(len(images))
    dropping = options.keep_tokens < 1 and epoch < options.drop_until * options.epochs
    kept = round(options.keep_tokens * TOKENS)
    for step in range(len(images) // options.batch):
        rows = np.sort(order[step * options.batch : (step + 1) * options.batch])
        pixels = torch.from_numpy(augment(images[rows], options.shift_px, rng)).to(options.device)
        tokens = None
        if dropping:
            shuffled = rng.random((len(rows), TOKENS), dtype=np.float32).argsort(axis=1)
            tokens = torch.from_numpy(shuffled[:, :kept]).to(options.device)
        yield normalise(pixels), torch.from_numpy(labels[rows]).to(options.device), tokens


def sincos_positions(dim: int, side: int) -> Tensor:
    """Return fixed 2-D sine-cosine position embeddings, float [side * side, dim]."""
    frequencies = 1.0 / 100.0 ** (torch.arange(dim // 4) / (dim // 4))
    angles = torch.arange(side)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = axis[:, None].expand(side, side, dim // 2)
    columns = axis[None, :].expand(side, side, dim // 2)
    return torch.cat([rows, columns], dim=2).reshape(side * side, dim)


def build_model(options: Options, num_classes: int) -> ViTForImageClassification:
    """Return an untrained ViT for 32 px images."""
    torch.manual_seed(options.seed)
    sizes: dict[str, Any] = {
        "image_size": IMAGE_PX,
        "patch_size": PATCH_PX,
        "hidden_size": options.dim,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "intermediate_size": options.mlp,
        "num_labels": num_classes,
        # Fused attention's bfloat16 backward is slow on CPUs; so short a sequence does not need it.
        "attn_implementation": "eager",
    }
    config = ViTConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes)
    model = ViTForImageClassification(config)
    with torch.no_grad():
        positions = sincos_positions(options.dim, IMAGE_PX // PATCH_PX)
        model.vit.embeddings.position_embeddings[0, 1:] = 0.1 * positions
    model.to(torch.device(options.device))  # type: ignore[arg-type]
    return model


def logits_of(model: ViTForImageClassification, pixels: Tensor, kept: Tensor | None) -> Tensor:
    """Return class logits (float [n, classes]) seen through the class token and the kept patches only."""
    hidden = model.vit.embeddings(pixels)
    if kept is not None:
        index = kept[:, :, None].expand(-1, -1, hidden.shape[-1])
        hidden = torch.cat([hidden[:, :1], hidden[:, 1:].gather(1, index)], dim=1)
    for layer in model.vit.layers:
        hidden = layer(hidden, None)
    logits: Tensor = model.classifier(model.vit.layernorm(hidden)[:, 0])
    return logits


def build_optimizers(model: ViTForImageClassification, options: Options) -> dict[str, torch.optim.Optimizer]:
    """Return Muon for the blocks' matrices and AdamW for everything else."""
    matrices = [p for p in model.vit.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return {
        "muon": torch.optim.Muon(matrices, lr=options.muon_lr, weight_decay=options.muon_decay),
        "adam": torch.optim.AdamW(rest, lr=options.adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    }


def rate_at(progress: float, options: Options) -> float:
    """Return the fraction of the peak learning rate at a fraction of the run: rise, plateau, fall to zero."""
    return min(1.0, progress / options.warmup, (1.0 - progress) / options.cooldown)


def save_checkpoint(
    path: Path, model: torch.nn.Module, optimizers: dict[str, torch.optim.Optimizer], state: State
) -> None:
    """Write weights, optimiser state and `state` to one safetensors file, atomically."""
    tensors = {f"model/{name}": value.contiguous() for name, value in model.state_dict().items()}
    for kind, optimizer in optimizers.items():
        for index, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"{kind}/{index}/{slot}": value.contiguous() for slot, value in slots.items()}
    unfinished = path.with_suffix(".partial")
    save_file(tensors, unfinished, metadata={"state": json.dumps(state)})
    os.replace(unfinished, path)


def load_checkpoint(path: Path, model: torch.nn.Module, optimizers: dict[str, torch.optim.Optimizer]) -> State:
    """Restore what `save_checkpoint` wrote and return its `state`."""
    weights: dict[str, Tensor] = {}
    slots: dict[str, dict[int, dict[str, Tensor]]] = {kind: {} for kind in optimizers}
    with safe_open(path, framework="pt") as file:
        state: State = json.loads(file.metadata()["state"])
        for key in file.keys():  # noqa: SIM118
            kind, rest = key.split("/", 1)
            if kind == "model":
                weights[rest] = file.get_tensor(key)
            elif kind in slots:
                index, slot = rest.split("/")
                slots[kind].setdefault(int(index), {})[slot] = file.get_tensor(key)
    model.load_state_dict(weights)
    for kind, optimizer in optimizers.items():
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": slots[kind], "param_groups": groups})
    return state


@torch.inference_mode()
def evaluate(model: ViTForImageClassification, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return top-1 and top-5 accuracy of whole, unaltered images."""
    model.train(False)
    hits = np.zeros(2)
    for start in range(0, len(images), 500):
        pixels = normalise(torch.from_numpy(np.array(images[start : start + 500])).to(model.device))
        with torch.autocast(model.device.type, torch.bfloat16):
            ranked = model(pixel_values=pixels).logits.topk(5).indices.cpu()
        right = ranked == torch.from_numpy(labels[start : start + 500])[:, None]
        hits += [float(right[:, 0].sum()), float(right.sum())]
    model.train()
    return {"top1": hits[0] / len(images), "top5": hits[1] / len(images)}


def export(model: ViTForImageClassification, out: Path) -> None:
    """Write the model as a Hugging Face folder: weights stored in float16, loaded in float32."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().cpu().contiguous() for name, value in model.state_dict().items()}
    unfinished = out / "model.safetensors.partial"
    save_file(weights, unfinished, metadata={"format": "pt"})
    unfinished.chmod(0o644)
    os.replace(unfinished, out / "model.safetensors")
    model.config.architectures = ["ViTForImageClassification"]
    model.config.dtype = "float32"
    model.config.save_pretrained(out)
    preprocessor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": IMAGE_PX, "width": IMAGE_PX},
        "resample": int(Image.Resampling.BICUBIC),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (out / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")


def prepare_cpu(workers: int) -> None:
    """Set threads and keep glibc from giving large temporaries back to the system at every step."""
    torch.set_num_threads(workers)
    torch.set_flush_denormal(True)
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-8, 1)  # M_ARENA_MAX: other arenas' heaps are too small for the thresholds above


def gradients(forward: Forward, model: ViTForImageClassification, smoothing: float, share: Share) -> tuple[Tensor, ...]:
    """Return the loss and its gradients for one worker's share of a batch."""
    pixels, labels, kept = share
    with torch.autocast(pixels.device.type, torch.bfloat16):
        logits = forward(model, pixels, kept)
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
    return loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))


def split(batch: Share, parts: int) -> list[Share]:
    """Split a batch into equal shares."""
    pixels, labels, kept = batch
    kepts = [None] * parts if kept is None else kept.chunk(parts)
    return list(zip(pixels.chunk(parts), labels.chunk(parts), kepts, strict=True))


def train_epoch(
    forward: Forward,
    model: ViTForImageClassification,
    optimizers: dict[str, torch.optim.Optimizer],
    data: tuple[np.ndarray, np.ndarray],
    options: Options,
    epoch: int,
    log: Callable[[str], None],
) -> None:
    """Train for one epoch in place.

    Each worker thread computes on one core and they meet once a step: on cores that others use too this is
    far faster than sharing out every single operation.
    """
    peaks = {"muon": options.muon_lr, "adam": options.adam_lr}
    steps = len(data[0]) // options.batch
    began_s, running = time.perf_counter(), 0.0
    task = partial(gradients, forward, model, options.label_smoothing)
    with ThreadPoolExecutor(options.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for step, batch in enumerate(batches(*data, options, epoch)):
            rate = rate_at((epoch * steps + step + 1) / (options.epochs * steps + 1), options)
            results = pool.map(task, split(batch, options.workers))
            loss, *means = (torch.stack(parts).mean(0) for parts in zip(*results, strict=True))
            for parameter, gradient in zip(model.parameters(), means, strict=True):
                parameter.grad = gradient
            for kind, optimizer in optimizers.items():
                optimizer.param_groups[0]["lr"] = peaks[kind] * rate
                optimizer.step()
            value = loss.item()
            if not math.isfinite(value):
                raise RuntimeError(f"epoch {epoch + 1}, step {step + 1}: loss {value}; lower the learning rates")
            running = value if step == 0 else 0.98 * running + 0.02 * value
            if (step + 1) % 50 == 0:
                per_s = (step + 1) * options.batch / (time.perf_counter() - began_s)
                left_min = (steps - step - 1) * options.batch / per_s / 60
                log(
                    f"epoch {epoch + 1}/{options.epochs} step {step + 1}/{steps} loss {running:.3f} "
                    f"rate {rate:.3f} {per_s:.0f} images/s, epoch ends in {left_min:.1f} min"
                )


def main(options: Options) -> None:
    """Train, evaluate after every epoch, keep a checkpoint, write the finished model."""
    options.work.mkdir(parents=True, exist_ok=True)
    prepare_cpu(options.workers)

    def log(line: str) -> None:
        stamped = f"{time.strftime('%H:%M:%S')} {line}"
        print(stamped, file=sys.stderr, flush=True)
        with (options.work / "log.txt").open("a") as file:
            file.write(stamped + "\n")

    data: Arrays = {s: load_split(options.data / f"{s}.parquet", options.work / s) for s in ("train", "test")}
    model = build_model(options, int(data["train"][1].max()) + 1)
    optimizers = build_optimizers(model, options)
    checkpoint = options.work / "checkpoint.safetensors"
    state: State = {"epochs_done": 0, "seconds": 0.0, "history": []}
    if options.resume or options.export_only:
        state = load_checkpoint(checkpoint, model, optimizers)
    if options.export_only:
        export(model, options.out)
        return
    log(f"{sum(p.numel() for p in model.parameters())} parameters, {asdict(options)}")
    inductor.cpp.threads = 1
    forward: Forward = torch.compile(logits_of, dynamic=False) if options.compile else logits_of
    model.train()
    for epoch in range(state["epochs_done"], options.epochs):
        began_s = time.perf_counter()
        train_epoch(forward, model, optimizers, data["train"], options, epoch, log)
        scores = evaluate(model, *data["test"])
        state["epochs_done"] = epoch + 1
        state["seconds"] += time.perf_counter() - began_s
        state["history"].append(scores)
        save_checkpoint(checkpoint, model, optimizers, state)
        log(
            f"epoch {epoch + 1}/{options.epochs} done, {state['seconds']:.0f} s in all, "
            f"test top-1 {scores['top1']:.4f}, top-5 {scores['top5']:.4f}"
        )
    export(model, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options))
