"""Merge 30 LoRA adapters of a ViT-B/32, beside PEFT's own add_weighted_adapter on the same adapters.

python benchmarks/merge.py [--tasks 30] [--scratch DIR] [--out FILE]

`shared`: rank 16 on query, key and value of 12 layers (d = 884,736), from one start that matu can prove. Task vectors
are drawn with the statistics of eight trained adapters (benchmarks/merge_trained.py, ViT-Tiny): normal, of standard
deviation 0.016 in A and B alike, cosine 0.03 between tasks. `different`: every adapter has a start of its own and rank
16, 8 or 4 in turn, so that nothing is in common: the hardest case there is. Each command runs in a process of its own,
whose wall-clock time and peak memory are its own (imports included; PEFT's include reading the backbone).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from matu.merge import mark_start
from matu.merge.adapters import Adapter
from matu.merge.factors import product
from matu.vectors import draw_start

WIDTH, LAYERS, SPREAD, COSINE = 768, 12, 0.016, 0.03
RIVAL = """
import sys, time, torch, warnings
warnings.filterwarnings("ignore")
from peft import PeftModel
from transformers import ViTConfig, ViTModel
kind, out, rank, *folders = sys.argv[1:]
model = ViTModel(ViTConfig(patch_size=32), add_pooling_layer=False)
model = PeftModel.from_pretrained(model, folders[0], adapter_name="0")
for i, folder in enumerate(folders[1:], 1):
    model.load_adapter(folder, adapter_name=str(i))
began = time.perf_counter()
names = [str(i) for i in range(len(folders))]
model.add_weighted_adapter(
    names, [1 / len(names)] * len(names), "merged", combination_type=kind, density=0.2 if kind == "ties" else None,
    svd_rank=int(rank) if kind == "svd" else None, svd_full_matrices=False,
)
print(time.perf_counter() - began)
model.save_pretrained(out, selected_adapters=["merged"])
"""


def shapes(rank: int) -> dict[str, tuple[int, ...]]:
    """Of the adapter of a ViT-B/32, by the names that PEFT gives them."""
    modules = [f"layers.{i}.attention.{p}_proj" for i in range(LAYERS) for p in "qkv"]
    a = {f"base_model.model.{module}.lora_A.weight": (rank, WIDTH) for module in modules}
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


def run(command: list[str]) -> dict[str, Any]:
    """Wall-clock and processor seconds, peak memory and output of a process."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[:3]} failed")
    return {
        "seconds": time.perf_counter() - began, "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024, "output": output,
    }  # fmt: skip


def by_matu(name: str, folders: list[Path], out: Path, *options: str) -> dict[str, Any]:
    """One matu merge."""
    found = run(["-m", "matu", "merge", *map(str, folders), "--to", str(out), "--json", *options])
    note = json.loads(found.pop("output"))
    tasks = note["tasks"].values()
    keys = ("vector_cosine", "vector_norm_ratio", "factorisation_error", "weight_cosine", "weight_norm_ratio")
    float32 = 4 * sum(math.prod(s) for folder in folders for s in read_shapes(folder))
    return {
        "what": name, **found, "adapters_float32_bytes": float32, "merged_bytes": note["sizes"]["merged_bytes"],
        "folder_bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
        "mean": {key: sum(task[key] for task in tasks) / len(tasks) for key in keys},
        "least_weight_cosine": min(task["weight_cosine"] for task in tasks),
    }  # fmt: skip


def read_shapes(folder: Path) -> list[tuple[int, ...]]:
    """Of an adapter's matrices."""
    with ExitStack() as files:
        return list(Adapter("", folder, files).shapes.values())


def by_peft(kind: str, folders: list[Path], out: Path, rank: int) -> dict[str, Any]:
    """One add_weighted_adapter, and the cosines of its weight change with those of the adapters."""
    found = run(["-c", RIVAL, kind, str(out), str(rank), *map(str, folders)])
    found["merging_seconds"] = float(found.pop("output").split()[-1])
    with ExitStack() as files:
        merged = Adapter("merged", out / "merged", files)
        cosines = [cosine(Adapter(folder.name, folder, files), merged) for folder in folders]
    return {
        "what": f"peft {kind}", **found, "mean": {"weight_cosine": sum(cosines) / len(cosines)},
        "merged_bytes": merged.path.stat().st_size, "least_weight_cosine": min(cosines),
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
        "tasks": a.tasks, "cores": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "load": os.getloadavg(), "machine": platform.machine(), "torch": torch.__version__,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=a.scratch) as scratch:
        for kind in ("shared", "different"):
            home = Path(scratch) / kind
            folders = draw_adapters(home / "adapters", a.tasks, shared=kind == "shared")
            ways: list[tuple[str, ...]] = [("--method", m) for m in ("unify", "ties", "mean")]
            if kind == "different":
                ways += [("--rank", "64"), ("--rank", "256")]
            rows = [
                by_matu("matu " + " ".join(w).replace("--method ", ""), folders, home / f"matu{i}", *w)
                for i, w in enumerate(ways)
            ]
            rivals = ("svd", "linear", "ties") if kind == "shared" else ("svd",)
            rows += [by_peft(rival, folders, home / f"peft-{rival}", 16) for rival in rivals]
            record[kind] = rows
            print_rows(kind, rows)
    if a.out:
        a.out.write_text(json.dumps(record, indent=1) + "\n")


def print_rows(kind: str, rows: list[dict[str, Any]]) -> None:
    """One line a way to merge."""
    print(f"{kind:20s} seconds  (cpu)  peak MB   size  1/  vector cos  fact. error  weight cos (least)")
    for row in rows:
        mean, size = row["mean"], row["merged_bytes"] / 1e6
        ratio, peak = rows[0]["adapters_float32_bytes"] / row["merged_bytes"], row["peak_bytes"] / 1e6
        print(
            f"{row['what']:20s} {row['seconds']:7.1f} {row['cpu_seconds']:6.1f} {peak:8.0f} {size:6.2f} {ratio:3.1f} "
            f"{mean.get('vector_cosine', math.nan):8.3f} {mean.get('factorisation_error', math.nan):11.3f} "
            f"{mean['weight_cosine']:12.3f} ({row['least_weight_cosine']:.3f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
