"""Merge 30 LoRA adapters of a ViT-B/32, beside PEFT's own add_weighted_adapter on the same adapters.

python benchmarks/merge.py [--tasks 30] [--scratch DIR] [--out FILE]

`shared`: rank 16 on query, key and value of 12 layers (d = 884,736), from one start that matu can prove. Task vectors
are drawn with the statistics of trained adapters (benchmarks/merge_trained.py, ViT-Tiny): normal, of standard deviation
0.016 in A and B alike, cosine 0.03 between tasks. `different`: every adapter has a start of its own and rank 16, 8 or 4
in turn, so that nothing is in common: the hardest case there is. Every merge by matu runs in a process of its own, in
which torch is imported already, from opening the files to the last one written. PEFT's merges run in one process, after
the backbone and all adapters were read; their peaks include those, and what came before. One thread everywhere.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from matu.merge import mark_start, merge
from matu.merge.adapters import Adapter
from matu.merge.factors import product
from matu.vectors import draw_start

WIDTH, LAYERS, SPREAD, COSINE = 768, 12, 0.016, 0.03
RIVAL = """
import json, resource, sys, time, torch, warnings
warnings.filterwarnings("ignore")
from peft import PeftModel
from transformers import ViTConfig, ViTModel
kinds, out, *folders = sys.argv[1:]
model = ViTModel(ViTConfig(patch_size=32), add_pooling_layer=False)
model = PeftModel.from_pretrained(model, folders[0], adapter_name="t0")
for i, folder in enumerate(folders[1:], 1):
    model.load_adapter(folder, adapter_name=f"t{i}")
names = [f"t{i}" for i in range(len(folders))]
for kind in kinds.split(","):
    began, cpu = time.perf_counter(), time.process_time()
    model.add_weighted_adapter(
        names, [1 / len(names)] * len(names), kind, combination_type=kind, svd_full_matrices=False,
        density=0.2 if kind == "ties" else None, svd_rank=16 if kind == "svd" else None,
    )
    found = {
        "what": "peft " + kind, "seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    model.save_pretrained(out, selected_adapters=[kind])
    print(json.dumps(found), flush=True)
"""


def shapes(rank: int) -> dict[str, tuple[int, ...]]:
    """Of the adapter of a ViT-B/32, by the names that PEFT gives them."""
    modules = [f"layers.{i}.attention.{p}_proj" for i in range(LAYERS) for p in "qkv"]
    a: dict[str, tuple[int, ...]] = {f"base_model.model.{module}.lora_A.weight": (rank, WIDTH) for module in modules}
    return a | {f"base_model.model.{module}.lora_B.weight": (WIDTH, rank) for module in modules}


def draw_adapters(folder: Path, count: int, *, shared: bool) -> list[Path]:
    """Write random adapters."""
    found = []
    draw = torch.Generator().manual_seed(1)
    common = {name: torch.randn(shape, generator=draw) for name, shape in shapes(16).items()}
    for t in range(count):
        rank = 16 if shared else (16, 8, 4)[t % 3]
        here = folder / f"task{t:02d}"
        here.mkdir(parents=True)
        adapter = {}
        for name, start in draw_start(sorted(shapes(rank).items()), 0 if shared else 100 + t, 0.0):
            own = torch.randn(start.shape, generator=draw)
            mixed = math.sqrt(COSINE) * common[name] + math.sqrt(1 - COSINE) * own if shared else own
            adapter[name] = start + SPREAD * mixed
        save_file(adapter, here / "adapter_model.safetensors", {"format": "pt"})
        config = {
            "peft_type": "LORA", "base_model_name_or_path": "random-vit-b-32", "r": rank, "lora_alpha": rank,
            "target_modules": ["q_proj", "k_proj", "v_proj"], "bias": "none", "fan_in_fan_out": False,
        }  # fmt: skip
        (here / "adapter_config.json").write_text(json.dumps(config))
        if shared:
            mark_start(here, fingerprint="random-vit-b-32", seed=0, start_b=0.0)
        found.append(here)
    return found


def measured(call: Callable[[], object], result: Path) -> dict[str, Any]:
    """Seconds, processor seconds and peak memory of a call in a process of its own, which knows torch and matu."""
    began = time.perf_counter()
    child = os.fork()
    if not child:
        result.write_text(json.dumps(call()))
        os._exit(0)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit("merging failed")
    return {
        "seconds": time.perf_counter() - began, "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
    }  # fmt: skip


def by_matu(folders: list[Path], out: Path, **options: Any) -> dict[str, Any]:
    """One merge."""
    named = {folder.name: folder for folder in folders}
    found = measured(lambda: merge(named, out, **options), out.with_suffix(".json"))
    note = json.loads(out.with_suffix(".json").read_text())
    tasks = note["tasks"].values()
    keys = ("vector_cosine", "vector_norm_ratio", "factorisation_error", "weight_cosine", "weight_norm_ratio")
    return {
        "what": " ".join(["matu", *map(str, options.values())]), **found, "merged_bytes": note["sizes"]["merged_bytes"],
        "folder_bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
        "mean": {key: sum(task[key] for task in tasks) / len(tasks) for key in keys},
        "least_weight_cosine": min(task["weight_cosine"] for task in tasks),
    }  # fmt: skip


def read_shapes(folder: Path) -> list[tuple[int, ...]]:
    """Of an adapter's matrices."""
    with ExitStack() as files:
        return list(Adapter("", folder, files).shapes.values())


def by_peft(kinds: str, folders: list[Path], out: Path) -> Iterator[dict[str, Any]]:
    """One add_weighted_adapter after the other, and the cosines of its weight change with those of the adapters."""
    command = [sys.executable, "-c", RIVAL, kinds, str(out), *map(str, folders)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    for kind, line in zip(kinds.split(","), process.stdout, strict=True):
        with ExitStack() as files:
            merged = Adapter(kind, out / kind, files)
            cosines = [cosine(Adapter(folder.name, folder, files), merged) for folder in folders]
        yield json.loads(line) | {
            "mean": {"weight_cosine": sum(cosines) / len(cosines)}, "least_weight_cosine": min(cosines),
            "merged_bytes": merged.path.stat().st_size,
        }  # fmt: skip


def cosine(one: Adapter, other: Adapter) -> float:
    """Of two weight changes."""
    sums = [0.0, 0.0, 0.0]
    for module in one.pairs:
        mine, theirs = one.factors(module), other.factors(module)
        if mine is None or theirs is None:
            continue
        for i, pair in enumerate([(mine, theirs), (mine, mine), (theirs, theirs)]):
            sums[i] += product(*pair)
    return sums[0] / math.sqrt(sums[1] * sums[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=30)
    parser.add_argument("--scratch", type=Path, help="where adapters lie for the time being")
    parser.add_argument("--out", type=Path, help="JSON file for the record")
    a = parser.parse_args()
    record: dict[str, Any] = {
        "tasks": a.tasks, "cores": os.cpu_count(), "threads": 1,
        "load": os.getloadavg(), "machine": platform.machine(), "torch": torch.__version__,
    }  # fmt: skip
    torch.set_num_threads(1)
    matu_ways: dict[str, list[dict[str, Any]]] = {
        "shared": [{}, {"method": "ties"}, {"method": "mean"}],
        "different": [{}, {"rank": 64}, {"rank": 256}, {"method": "mean"}],
    }
    with tempfile.TemporaryDirectory(dir=a.scratch) as scratch:
        for kind, ways in matu_ways.items():
            home = Path(scratch) / kind
            folders = draw_adapters(home / "adapters", a.tasks, shared=kind == "shared")
            rows = (by_matu(folders, home / f"matu{i}", **way) for i, way in enumerate(ways))
            rivals = by_peft("linear,ties,svd" if kind == "shared" else "svd", folders, home / "peft")
            before = sum(4 * math.prod(shape) for folder in folders for shape in read_shapes(folder))
            record[kind] = {"adapters_float32_bytes": before, "ways": []}
            print(f"{kind:20s} seconds  (cpu)  peak MB   size   1/  vector cos  fact. error  weight cos (least)")
            for row in itertools.chain(rows, rivals):
                record[kind]["ways"].append(row)
                print_row(row, before)
                if a.out:
                    a.out.write_text(json.dumps(record, indent=1) + "\n")


def print_row(row: dict[str, Any], before: int) -> None:
    """One way to merge."""
    mean, size = row["mean"], row["merged_bytes"]
    print(
        f"{row['what']:20s} {row['seconds']:7.1f} {row['cpu_seconds']:6.1f} {row['peak_bytes'] / 1e6:8.0f} "
        f"{size / 1e6:6.2f} {before / size:4.1f} {mean.get('vector_cosine', math.nan):11.3f} "
        f"{mean.get('factorisation_error', math.nan):12.3f} "
        f"{mean['weight_cosine']:11.3f} ({row['least_weight_cosine']:.3f})",
        flush=True,
    )


if __name__ == "__main__":
    main()
