"""Thirty tasks on one backbone, served from one artifact and from thirty adapters of PEFT: time, memory, disk.

python benchmarks/serving.py [--backbones vit-tiny vit-b32] [--tasks 30] [--repeats 7] [--out FILE]
python benchmarks/serving.py --small

Both give the same logits, which is asserted first, in float32 on one thread. They take turns in one run; what is
printed is the median in seconds of processor time, which other work on the machine disturbs least. Weights are random.
PEFT is used as its documentation shows it: adapters loaded from folders, `set_adapter`, `adapter_names=[...]` for mixed
batches, the attention that Transformers takes by itself. Heads are alike on both sides, and left out of memory and
disk. Memory is what a fresh process grows by, from a backbone that has classified an image to all tasks loaded and an
image classified. Floors: one pass over the vectors, the backbone without any adapter, the artifact's bytes.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import psutil
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ViTModel

from matu.cli.common import prepare_libraries
from matu.models import AdaptedModel
from matu.serving import ManyTaskModel
from matu.training.trainer import logits
from matu.vectors import Unified, unify
from random_vit import SIZES, as_backbone, random_vit
from watch import processor

CLASSES = 40
Row = dict[str, Any]


def names(count: int) -> list[str]:
    return [f"task{i}" for i in range(count)]


def adapted(module: ViTModel, backbone: str) -> AdaptedModel:
    return AdaptedModel(
        as_backbone(module, backbone), rank=16, alpha=16.0, targets=("query", "key", "value"), adapter_seed=0,
        device=torch.device("cpu"), low_precision=False,
    )  # fmt: skip


def heads(tasks: Sequence[str], width: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {f"head/{task}": torch.randn(CLASSES, width + 1, generator=draw) for task in tasks}


def write(folder: Path, backbone: str, size: int, tasks: Sequence[str]) -> None:
    """The tensors of an artifact, and a PEFT adapter folder for every task, of the same adapters."""
    model = adapted(random_vit(backbone, size), backbone)
    draw = torch.Generator().manual_seed(2)
    unified = unify(torch.randn(len(tasks), model.dim, generator=draw).mul_(0.02))
    packed = torch.nn.functional.pad(unified.masks, (0, -model.dim % 8)).view(len(tasks), -1, 8)
    masks = (packed * (1 << torch.arange(8))).sum(-1).to(torch.uint8)
    save_file(
        {"vector": unified.vector, "masks": masks, "rescalers": unified.rescalers}, folder / "unified.safetensors"
    )
    (first, *others) = tasks
    rival = get_peft_model(random_vit(backbone, size, "sdpa"), lora(), adapter_name=first)
    for task in others:
        rival.add_adapter(task, lora())
    for row, task in enumerate(tasks):
        fill(rival, model, unified, row, task)
    rival.save_pretrained(str(folder / "peft"))


def lora() -> LoraConfig:
    return LoraConfig(r=16, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj"], lora_dropout=0.0)


def fill(rival: PeftModel, model: AdaptedModel, unified: Unified, row: int, task: str) -> None:
    """Give PEFT's adapter of a task the numbers that ours stands for."""
    values = model.layout.unflatten(model.start + unified.modulate(row))
    parameters = dict(rival.get_submodule("base_model.model").named_parameters())
    for name, value in values.items():
        parameters[name.replace(".default.", f".{task}.")].data.copy_(value)


def load_ours(folder: Path, module: ViTModel, backbone: str, tasks: Sequence[str]) -> ManyTaskModel:
    tensors = load_file(folder / "unified.safetensors") | heads(tasks, module.config.hidden_size)
    return ManyTaskModel(adapted(module, backbone), tensors, tasks)


def load_rival(folder: Path, module: ViTModel, tasks: Sequence[str]) -> PeftModel:
    (first, *others) = tasks
    rival = PeftModel.from_pretrained(module, str(folder / "peft" / first), adapter_name=first)
    for task in others:
        rival.load_adapter(str(folder / "peft" / task), adapter_name=task)
    return rival.eval()


class Rival:
    """PEFT with all adapters loaded, and the heads."""

    def __init__(self, model: PeftModel, tasks: Sequence[str]) -> None:
        self.model = model
        self.heads = heads(tasks, model.config.hidden_size)

    def features(self, images: Tensor, **how: Any) -> Tensor:
        pixels = images.permute(0, 3, 1, 2).float().sub_(127.5).div_(127.5)
        found: Tensor = self.model(pixel_values=pixels, **how).last_hidden_state[:, 0]
        return found

    @torch.inference_mode()
    def predict(self, images: Tensor, task: str) -> Tensor:
        self.model.set_adapter(task)
        return logits(self.features(images), self.heads[f"head/{task}"])

    @torch.inference_mode()
    def predict_mixed(self, images: Tensor, tasks: Sequence[str]) -> list[Tensor]:
        features = self.features(images, adapter_names=list(tasks))
        return [logits(features[i : i + 1], self.heads[f"head/{task}"])[0] for i, task in enumerate(tasks)]


def in_turns(calls: Sequence[Callable[[int], object]], repeats: int) -> list[float]:
    """Median processor seconds of each; every call is told which repeat it is."""
    times: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats + 1):
        for call, spent in zip(calls, times, strict=True):
            began = time.process_time()
            call(repeat)
            spent.append(time.process_time() - began)
    return [statistics.median(spent[1:]) for spent in times]  # the first warms up


def require_equal(ours: ManyTaskModel, rival: Rival, images: Tensor, tasks: Sequence[str]) -> float:
    """The largest difference of logits over their largest size, mixed and one task at a time; at most 1e-4."""
    pairs = list(zip(ours.predict_mixed(images, tasks), rival.predict_mixed(images, tasks), strict=True))
    pairs += [(ours.predict(images[:2], task), rival.predict(images[:2], task)) for task in tasks[:3]]
    found = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    assert found < 1e-4, f"logits differ by {found:.1e} of their size"
    return found


def pass_a_task(served: ManyTaskModel | Rival, images: Tensor, tasks: Sequence[str]) -> None:
    """What one does without mixed batches: a switch and a pass for each task."""
    for task in dict.fromkeys(tasks):
        served.predict(images[[i for i, asked in enumerate(tasks) if asked == task]], task)


def of_a_batch(
    ours: ManyTaskModel, rival: Rival, plain: ViTModel, images: Tensor, tasks: Sequence[str], repeats: int
) -> list[float]:
    """Seconds of a mixed pass: ours, the rival's, the plain backbone's; of a pass a task: ours, the rival's."""
    pixels = images.permute(0, 3, 1, 2).float()
    return in_turns(
        [lambda _: ours.predict_mixed(images, tasks), lambda _: rival.predict_mixed(images, tasks),
         lambda _: forward(plain, pixels), lambda _: pass_a_task(ours, images, tasks),
         lambda _: pass_a_task(rival, images, tasks)], repeats,
    )  # fmt: skip


def rows_of(folder: Path, backbone: str, size: int, tasks: list[str], batch: int, repeats: int) -> list[Row]:
    write(folder, backbone, size, tasks)
    ours = load_ours(folder, random_vit(backbone, size), backbone, tasks)
    rival = Rival(load_rival(folder, random_vit(backbone, size, "sdpa"), tasks), tasks)
    plain = random_vit(backbone, size, "sdpa")
    images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)
    pixels = images.permute(0, 3, 1, 2).float()
    d = ours.model.dim
    found: list[Row] = []

    def row(what: str, unit: str, measured: Sequence[float]) -> None:
        """Ours, the rival's and, where there is one, the floor's."""
        ours, rival, *floor = measured
        less_is_better = unit != "images/s"
        ratio = rival / ours if less_is_better else ours / rival
        found.append({"backbone": backbone, "what": what, "unit": unit, "ours": ours, "rival": rival,
                      "ratio": ratio, "floor": floor[0] if floor else None})  # fmt: skip

    difference = require_equal(ours, rival, images, [tasks[i % len(tasks)] for i in range(batch)])
    start, vector, into = ours.model.start, torch.randn(d), torch.empty(d)
    seconds = in_turns(
        [lambda i: ours.switch(tasks[i % len(tasks)]), lambda i: rival.model.set_adapter(tasks[i % len(tasks)]),
         lambda i: torch.add(start, vector, out=into)], 10 * repeats,
    )  # fmt: skip
    row("switch", "ms", [1e3 * s for s in seconds])
    seconds = in_turns(
        [lambda i: ours.predict(images[:1], tasks[i % len(tasks)]),
         lambda i: rival.predict(images[:1], tasks[i % len(tasks)]),
         lambda i: forward(plain, pixels[:1])], 2 * repeats,
    )  # fmt: skip
    row("switch to the first image's logits", "ms", [1e3 * s for s in seconds])
    for count in (8, len(tasks)):
        asked = [tasks[i % count] for i in range(batch)]
        seconds = of_a_batch(ours, rival, plain, images, asked, repeats)
        rates = [batch / s for s in seconds]
        row(f"{batch} images of {len(set(asked))} tasks, one mixed pass", "images/s", rates[:3])
        row(f"{batch} images of {len(set(asked))} tasks, a pass a task", "images/s", [*rates[3:], rates[2]])
    artifact, adapters = [folder / "unified.safetensors"], [*(folder / "peft").rglob("*.safetensors")]
    on_disk = [sum(file.stat().st_size for file in files) / 1e6 for files in (artifact, adapters)]
    memory = [grown(folder, form, backbone, size, len(tasks)) for form in ("ours", "rival")]
    row("memory of all tasks", "MB", [*memory, on_disk[0]])
    row("disk of all tasks", "MB", on_disk)
    found[0]["largest_difference_of_logits"] = difference
    found[0]["parameters"] = d
    return found


@torch.inference_mode()
def forward(module: ViTModel, pixels: Tensor) -> Tensor:
    found: Tensor = module(pixel_values=pixels).last_hidden_state
    return found


def grown(folder: Path, form: str, backbone: str, size: int, tasks: int) -> float:
    """MB by which a process of its own grows."""
    words = [sys.executable, __file__, "--grow", str(folder), form, backbone, str(size), str(tasks)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def grow(folder: Path, form: str, backbone: str, size: int, tasks: list[str]) -> float:
    module = random_vit(backbone, size, "eager" if form == "ours" else "sdpa")
    image = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    forward(module, image.permute(0, 3, 1, 2).float())
    before = resident()
    served: ManyTaskModel | Rival
    if form == "ours":
        served = load_ours(folder, module, backbone, tasks)
    else:
        served = Rival(load_rival(folder, module, tasks), tasks)
    without = sum(head.nbytes for head in heads(tasks, module.config.hidden_size).values())
    served.predict(image, tasks[-1])
    return (resident() - before - without) / 1e6


def resident() -> int:
    """Bytes in memory once what is free is given back."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def show(rows: Sequence[Row]) -> None:
    print(f"{'backbone':9s} {'what':42s} {'ours':>9s} {'PEFT':>9s} {'ratio':>6s} {'floor':>9s}")
    for r in rows:
        floor = "" if r["floor"] is None else f"{r['floor']:9.4g}"
        print(
            f"{r['backbone']:9s} {r['what']:42s} {r['ours']:9.4g} {r['rival']:9.4g} {r['ratio']:6.2f} {floor:>9s} "
            f"{r['unit']}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["vit-tiny", "vit-b32"], choices=sorted(SIZES))
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--tasks", type=int, default=30)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="vit-tiny alone at 64 px: under a minute")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--grow", nargs=5, help=argparse.SUPPRESS)
    a = parser.parse_args()
    prepare_libraries()
    torch.set_num_threads(1)
    if a.grow:
        folder, form, backbone, size, count = a.grow
        print(grow(Path(folder), form, backbone, int(size), names(int(count))))
        return
    if a.small:
        a.backbones, a.image_size, a.repeats = ["vit-tiny"], 64, 5
    rows: list[Row] = []
    for backbone in a.backbones:
        with tempfile.TemporaryDirectory() as place:
            rows += rows_of(Path(place), backbone, a.image_size, names(a.tasks), a.batch, a.repeats)
    show(rows)
    record = {
        "rows": rows, "tasks": a.tasks, "batch": a.batch, "image_size": a.image_size, "repeats": a.repeats,
        "threads": 1, "rival": f"peft {peft.__version__}", "torch": torch.__version__, "processor": processor(),
        "cores": psutil.cpu_count(), "load_after": psutil.getloadavg()[0], "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    if a.out:
        a.out.parent.mkdir(parents=True, exist_ok=True)
        a.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
