"""What this machine computes fastest: decided by measuring once, then written down."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from matu.config import MachineConfig, RunConfig
from matu.errors import ConfigError
from matu.models import AdaptedModel, load_backbone
from matu.tasks import Split
from matu.training.crew import Crew
from matu.training.stacked import Job, train_together
from matu.training.trainer import Trainer

LONG_S = 4.0
"""Seconds after which no further burst is timed."""
TOGETHER = 4
"""Fine-tunings at once that are tried: more gained little where it was measured, and need that much more memory."""

# of malloc.h; no mmap threshold may be above 32 MiB
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


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
        libc.mallopt(_M_ARENA_MAX, cores() + 1)  # else every thread that ever trained keeps what it freed to itself


def decide(config: RunConfig, models_root: Path | None = None, *, jobs: int = 1) -> MachineConfig:
    """The machine settings with every "auto" and 0 replaced by what measures best here: threads, precision, together.

    A setting must be a tenth faster than the plainer one before it: a tie is noise. Of several trainings at work at a
    time each has its share of the cores.
    """
    on_cpu = config.machine.device.startswith("cpu")
    most = cores() // jobs
    choices: list[tuple[str, Any, tuple[Any, ...]]] = [
        ("threads", 0, (1, most) if on_cpu and most > 1 else (1,)),
        ("precision", "auto", ("float32", "bfloat16")),
        ("together", 0, (1, TOGETHER)),
    ]
    machine = config.machine
    for name, undecided, values in choices:
        if getattr(machine, name) != undecided:
            continue
        tried = [dataclasses.replace(machine, **{name: value}) for value in values]
        machine = tried[0]
        if len(tried) > 1:
            plain = [dataclasses.replace(one, together=one.together or 1) for one in tried]
            # processor time is not disturbed by what else runs here, but of threads it counts those that wait
            clock = time.process_time if on_cpu and name != "threads" else time.perf_counter
            speed = _images_per_second(config, plain, models_root, clock)
            machine = tried[int(speed[1] > 1.1 * speed[0])]
    return machine


def cores() -> int:
    """Cores that this process may use; at most OMP_NUM_THREADS."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(here, int(asked)) if asked.isdigit() and int(asked) else here


def parallel_jobs(machine: MachineConfig, most: int) -> int:
    """Of so many trainings, how many to have at work at a time: as many as there are cores for, on a GPU one."""
    on_cpu = machine.device.startswith("cpu")
    return max(1, min(most, cores() // max(1, machine.threads))) if on_cpu else 1


def build_trainer(
    config: RunConfig,
    models_root: Path | None,
    device: torch.device,
    precision: str,
    revision: str | None = None,
    jobs: int = 1,
) -> Trainer:
    """The backbone (of the hub: at any revision) with its adapter, ready to train; with a crew for several jobs."""
    m = config.model

    def built() -> AdaptedModel:
        backbone = load_backbone(
            m.backbone, image_size=config.tasks.image_size, models_root=models_root, revision=revision
        )
        return AdaptedModel(
            backbone, rank=m.rank, alpha=m.alpha, targets=m.targets, adapter_seed=m.adapter_seed, start_b=m.start_b,
            device=device, low_precision=precision == "bfloat16",
        )  # fmt: skip

    models = [built()]
    for _ in range(jobs - 1):  # one after another: two sets of weights are there at most
        models.append(built())
        models[-1].share_frozen(models[0])
    crew = Crew(models) if jobs > 1 else None
    return Trainer(models[0], config.training, together=config.machine.together or 1, crew=crew)


def _images_per_second(
    config: RunConfig,
    machines: Sequence[MachineConfig],
    models_root: Path | None,
    clock: Callable[[], float],
) -> list[float]:
    """Best of three short bursts of training steps on noise, in turn, after a warm-up; fewer where they take long."""
    size, count = config.tasks.image_size, config.training.batch_size
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    split, trainers = Split(images, np.arange(count, dtype=np.int64) % 10), []
    for machine in machines:
        precision = "float32" if machine.precision == "auto" else machine.precision
        built = build_trainer(config, models_root, prepare_machine(machine), precision)
        trainers.append(dataclasses.replace(built, together=machine.together))
    best, first = [0.0] * len(machines), time.perf_counter()
    for steps in (1, 2, 2, 2):
        if all(best) and time.perf_counter() - first > LONG_S * len(machines):
            break
        for number, (machine, trainer) in enumerate(zip(machines, trainers, strict=True)):
            prepare_machine(machine)
            jobs = [
                Job(trainer.untrained(10), split, np.arange(count), np.random.default_rng(0))
                for _ in range(machine.together)
            ]
            began = clock()
            train_together(trainer, jobs, steps=steps)
            best[number] = max(best[number], machine.together * steps * count / max(clock() - began, 1e-9))
    return best
