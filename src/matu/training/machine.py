"""What this machine computes fastest: decided by measuring once, then written down."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import sys
import time

import numpy as np
import torch

from matu.config import MachineConfig, RunConfig
from matu.errors import ConfigError
from matu.models import AdaptedModel, load_backbone
from matu.tasks import Split
from matu.training.trainer import Trainer, Weights

LONG_S = 4.0
"""Seconds after which no further burst is timed."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h; glibc takes no mmap threshold above 32 MiB


def prepare_machine(config: MachineConfig, *, trains: bool = True) -> torch.device:
    """Set threads and, for a process that trains, the allocator, and return the device.

    Raises
    ------
    ConfigError
        If the device is not there.
    """
    try:
        device = torch.device(config.device)
    except RuntimeError:
        raise ConfigError(f"device '{config.device}': expected cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device '{config.device}': expected cpu or cuda")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(f"device '{config.device}': this machine has no such GPU; --device cpu would be right")
    if config.threads:
        torch.set_num_threads(config.threads)
    if device.type == "cpu" and trains:
        _keep_freed_memory()
    elif device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return device


def _keep_freed_memory() -> None:
    """Large temporaries go back to the system at every step and are faulted in again: tell glibc to keep them."""
    if sys.platform == "linux":
        try:
            libc = ctypes.CDLL("libc.so.6")
        except OSError:  # another C library: nothing to tune
            return
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def decide(config: RunConfig, models_root: os.PathLike[str] | None = None) -> MachineConfig:
    """The machine settings with every "auto" and 0 replaced by what measures best here."""
    machine = config.machine
    if not machine.threads:
        machine = dataclasses.replace(machine, threads=cores() if machine.device.startswith("cpu") else 1)
    if machine.precision == "auto":
        device = prepare_machine(machine)
        speed = {name: _images_per_second(config, name, device, models_root) for name in ("float32", "bfloat16")}
        # bfloat16 must earn its lower precision; a tie is noise
        fast = speed["bfloat16"] > 1.1 * speed["float32"]
        machine = dataclasses.replace(machine, precision="bfloat16" if fast else "float32")
    return machine


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def build_trainer(
    config: RunConfig,
    models_root: os.PathLike[str] | None,
    device: torch.device,
    precision: str,
    revision: str | None = None,
) -> Trainer:
    """The backbone (of the hub: at any revision) with its adapter, ready to train."""
    from pathlib import Path

    m = config.model
    root = None if models_root is None else Path(models_root)
    backbone = load_backbone(m.backbone, image_size=config.tasks.image_size, models_root=root, revision=revision)
    model = AdaptedModel(
        backbone, rank=m.rank, alpha=m.alpha, targets=m.targets, adapter_seed=m.adapter_seed, start_b=m.start_b,
        device=device, low_precision=precision == "bfloat16",
    )  # fmt: skip
    return Trainer(model, config.training)


def _images_per_second(
    config: RunConfig, precision: str, device: torch.device, models_root: os.PathLike[str] | None
) -> float:
    """Best of three short bursts of training steps on noise, after a warm-up; fewer where a burst takes long."""
    trainer = build_trainer(config, models_root, device, precision)
    size, count = config.tasks.image_size, config.training.batch_size
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    split = Split(images, np.arange(count, dtype=np.int64) % 10)
    weights = Weights(torch.zeros(trainer.model.dim), torch.zeros(10, trainer.model.backbone.features + 1))
    best, first = 0.0, time.perf_counter()
    for steps in (1, 2, 2, 2):
        began = time.perf_counter()
        if best and began - first > LONG_S:
            break
        trainer.train(weights, split, np.arange(count), np.random.default_rng(0), steps=steps)
        best = max(best, steps * count / (time.perf_counter() - began))
    return best
