"""The paper's Table 2 at full size, on images that are made up: seconds a round on one GPU, and where they go.

python benchmarks/full_size.py [--rounds 3] [--compile default] [--profile DIR] [--out FILE]
python benchmarks/full_size.py --tiny --device cpu

ViT-B/32 with random weights, eight tasks with the sizes and class counts of the paper's datasets at 224 px, and
configs/table2.toml: round loop, sites, messages and evaluation are those of `matu run`. Images are picked from a pool
of noise, so nothing is learnt and memory is bounded. The first round warms up and is left out. Reported are the seconds
of a round by what they go to, training images a second, the share of the stated peak that matrix products reach, and
what 100 rounds with Table 2's evaluations would take. --compile gives the backbone to torch.compile (`reduce-overhead`
is CUDA graphs); where it fails, the run says so and goes on without. --profile leaves a trace of ten training steps for
Perfetto, and a table of what they spend their time on. No result from a GPU is in benchmarks/records yet: the script
has been tried out with --tiny on a CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import matu.federation.rounds as rounds
import matu.federation.site as site
from matu.cli.common import prepare_libraries
from matu.config import MachineConfig, read_config
from matu.errors import ConfigError
from matu.federation.checkpoint import Progress
from matu.federation.evaluation import Evaluator
from matu.federation.rounds import Federation, codecs_of, run_rounds
from matu.federation.transport import InProcess
from matu.methods import Method, Problem, find_method
from matu.models import AdaptedModel
from matu.roots import Roots
from matu.simulate import Run, deal
from matu.tasks import Split, Task, class_list
from matu.tasks.paper import EIGHT, PAPER
from matu.training import Trainer, Weights, prepare_machine
from matu.wire import Envelope
from random_vit import as_backbone, random_vit
from watch import processor

TABLE_2 = Path(__file__).parents[1] / "configs" / "table2.toml"
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0}
"""Dense bfloat16 as NVIDIA's data sheets state it, by a part of the device's name."""
POOL = 256
"""Different images there are."""


class MadeUp:
    """Images uint8 [n, size, size, 3] that are picked from a pool when they are asked for."""

    def __init__(self, count: int, pool: np.ndarray) -> None:
        self.count, self.pool = count, pool

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        chosen = np.arange(self.count)[which]
        return self.pool[chosen % len(self.pool)]


def made_up(count: int, classes: int, pool: np.ndarray) -> Split:
    """So many images, classes in turn."""
    images: Any = MadeUp(count, pool)  # as an array is read
    return Split(images, np.arange(count, dtype=np.int64) % classes)


def made_up_tasks(size: int, share: int) -> dict[str, Task]:
    """The eight datasets' names, classes and sizes, the sizes over `share`."""
    pool = np.random.default_rng(0).integers(0, 256, (POOL, size, size, 3), dtype=np.uint8)
    found = {}
    for name in EIGHT:
        about = PAPER[name]
        classes = about.classes or 0
        train, test = (
            made_up(stated if share == 1 else max(stated // share, 300), classes, pool)
            for stated in (about.train or 0, about.test or 0)
        )
        found[name] = Task(name, tuple(f"class {i}" for i in range(classes)), train, test, "made up", "0" * 64)
    return found


def prepare(asked: argparse.Namespace) -> Run:
    """Table 2's run on made-up tasks."""
    backbone, size, share = ("vit-toy", 16, 100) if asked.tiny else ("vit-b32", 224, 1)
    config = read_config(TABLE_2)
    precision: Any = asked.precision or ("bfloat16" if asked.device.startswith("cuda") else "float32")
    config = dataclasses.replace(
        config, machine=MachineConfig(device=asked.device, precision=precision, threads=asked.threads),
        federation=dataclasses.replace(config.federation, rounds=asked.rounds),
        tasks=dataclasses.replace(config.tasks, image_size=size),
    )  # fmt: skip
    device, m = prepare_machine(config.machine), config.model
    model = AdaptedModel(
        as_backbone(random_vit(backbone, size, asked.attention), backbone), rank=m.rank, alpha=m.alpha,
        targets=m.targets, adapter_seed=m.adapter_seed, device=device, low_precision=precision == "bfloat16",
    )  # fmt: skip
    tasks = made_up_tasks(size, share)
    problem = Problem({n: len(t.classes) for n, t in tasks.items()}, model.layout, model.backbone.features)
    kind = find_method(config.federation.method)
    assert issubclass(kind, Method)
    shares = deal(tasks, config.federation, config.machine.seed)
    trainer = Trainer(model, config.training)
    return Run(config, Path(), Roots(None, None, Path()), tasks, shares, trainer, kind(problem, config), "0" * 64)


def burst(run: Run, steps: int) -> Weights:
    """What some training steps on the first task's images give; nothing is pending after them."""
    task = next(iter(run.tasks.values()))
    model, images = run.trainer.model, np.arange(len(task.train.labels))
    start = Weights(torch.zeros(model.dim), torch.zeros(len(task.classes), model.backbone.features + 1))
    return run.trainer.train(start, task.train, images, np.random.default_rng(0), steps=steps)[0]


def flop_an_image(run: Run) -> float:
    """Of a training step's matrix products, as PEFT's own form has them: frozen weights have no gradients."""
    model = run.trainer.model
    module: Any = model.backbone.module
    attention = module.config._attn_implementation
    module.set_attn_implementation("eager")  # whose products the counter knows on every device
    model.compute_together(False)
    with FlopCounterMode(display=False) as counter:
        burst(run, 1)
    model.compute_together(True)
    module.set_attn_implementation(attention)
    return counter.get_total_flops() / run.config.training.batch_size


def compiled(run: Run, mode: str) -> str:
    """Give the backbone to torch.compile and try it; what came of it, in words."""
    model = run.trainer.model
    module: Any = model.backbone.module
    plain = module.forward
    model.compute_together(False)  # PEFT's own layers are what the compiler can see through
    module.forward = torch.compile(plain, mode=mode)
    try:
        run.trainer.accuracy(burst(run, 2), run.tasks[EIGHT[0]].test, np.arange(300))  # evaluation is compiled apart
    except Exception as error:  # whatever a compiler may raise
        module.forward = plain
        model.compute_together(True)
        return f"torch.compile failed, going on without ({type(error).__name__}: {str(error).splitlines()[0][:150]})"
    torch._dynamo.config.suppress_errors = True  # a shape that comes later and fails is computed without
    return f"compiled, mode {mode}"


@contextmanager
def stopwatch(seconds: dict[str, float]) -> Iterator[None]:
    """Add up the seconds inside training and messages, at sites and at the server."""

    def around(what: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*args: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **named)
            finally:
                seconds[what] = seconds.get(what, 0.0) + time.perf_counter() - began

        return timed

    opened = {name: around("at sites", getattr(Envelope, name)) for name in ("__init__", "tensors")}
    timed = {
        (Trainer, "train"): around("training", Trainer.train),
        (site, "encode"): around("at sites", site.encode),
        (site, "Envelope"): type("Envelope", (Envelope,), opened),
        (rounds, "encode"): around("at the server", rounds.encode),
        (rounds, "open_update"): around("at the server", rounds.open_update),
    }
    before = {(owner, name): getattr(owner, name) for owner, name in timed}
    for (owner, name), call in timed.items():
        setattr(owner, name, call)
    try:
        yield
    finally:
        for (owner, name), call in before.items():
            setattr(owner, name, call)


def measure(run: Run) -> dict[str, Any]:
    """Run the rounds and evaluate once: seconds a round by part, the first round left out."""
    method, config, clock = run.method, run.config, run.trainer.clock
    assert isinstance(method, Method)
    down, f = codecs_of(config.wire)[1], config.federation
    federation = Federation(
        method, f.method, run.clients, InProcess(run.sites(method)), run.identity[:32], run.trainer.model.fingerprint,
        {name: class_list(task.classes) for name, task in run.tasks.items()}, f.rounds, f.participation,
        config.machine.seed, down, config.defence,
    )  # fmt: skip
    inside: dict[str, float] = {}
    lines: list[Mapping[str, Any]] = []
    marks: list[dict[str, float]] = []

    def record(line: Mapping[str, Any]) -> None:
        assert not line["failures"], line["failures"]
        lines.append(line)
        print(f"round {line['round']}/{f.rounds}: {line['seconds']:.2f} s, loss {line['loss']:.3f}", file=sys.stderr)

    def save(progress: Progress) -> None:
        t = progress.totals
        marks.append({"sites": t.training_s, "server": t.aggregation_s, "images": clock.train_images, **inside})

    with stopwatch(inside):
        progress = run_rounds(
            federation, Progress(0, method.start()), evaluate=lambda *_: None, record=record, save=save
        )
    spent = {name: (marks[-1][name] - marks[0][name]) / (f.rounds - 1) for name in marks[0]}
    evaluator = Evaluator(method, run.trainer, run.tasks, run.clients, lambda _: {}, config.machine.seed, down)
    began, seen = time.perf_counter(), clock.evaluate_images
    evaluator.on_the_way(progress.state, config.evaluation.evaluate_images)
    return {
        "seconds_a_round": {
            "training": spent["training"],
            "unification at sites": spent["sites"] - spent["training"] - spent["at sites"],
            "aggregation and unification at the server": spent["server"] - spent["at the server"],
            "messages": spent["at sites"] + spent["at the server"],
        },
        "images_a_round": spent["images"], "rounds": [line["seconds"] for line in lines],
        "evaluation_on_the_way_s": time.perf_counter() - began, "images_evaluated": clock.evaluate_images - seen,
    }  # fmt: skip


def extrapolated(run: Run, found: Mapping[str, Any], images: float) -> float:
    """Seconds of 100 such rounds of so many images, four evaluations on the way, and one at the end on all images."""
    seconds = dict(found["seconds_a_round"])
    seconds["training"] *= images / found["images_a_round"]
    sizes = {name: len(task.test.labels) for name, task in run.tasks.items()}
    # a client of one task gets the server's own vector, which is measured once
    delivered = sum(sizes[task] for tasks in set(run.clients.values()) if len(tasks) > 1 for task in tasks)
    at_the_end = (delivered + 2 * sum(sizes.values())) / found["images_evaluated"]  # the server's own, the artifact
    return 100 * sum(seconds.values()) + (4 + at_the_end) * found["evaluation_on_the_way_s"]


def peak_flop_a_second(run: Run, stated_tflops: float) -> tuple[float, str]:
    """What shares are of, and where it is from."""
    device = run.trainer.model.device
    dtype = torch.bfloat16 if run.trainer.model.low_precision else torch.float32
    if stated_tflops:
        return stated_tflops * 1e12, "stated"
    for part, tflops in PEAK_TFLOPS.items():
        if device.type == "cuda" and part in torch.cuda.get_device_name(device) and dtype == torch.bfloat16:
            return tflops * 1e12, f"data sheet of {part}, dense bfloat16"
    n, best = 8192 if device.type == "cuda" else 1024, 0.0
    square = torch.ones(n, n, dtype=dtype, device=device)
    for _ in range(5):
        began = time.perf_counter()
        (square @ square)[0, 0].item()
        best = max(best, 2 * n**3 / (time.perf_counter() - began))
    return best, f"best of five products of {n} x {n} in {dtype}, measured here"


def take_profile(run: Run, folder: Path) -> list[dict[str, Any]]:
    """A trace of ten steps; the five operations with the largest time of their own."""
    on_gpu = run.trainer.model.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as taken:
        burst(run, 10)
    folder.mkdir(parents=True, exist_ok=True)
    taken.export_chrome_trace(str(folder / "trace.json"))
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    averages = taken.key_averages()
    (folder / "largest.txt").write_text(averages.table(sort_by=key, row_limit=25))
    spent = {event.key: getattr(event, key) for event in averages}
    largest = sorted(spent, key=spent.__getitem__, reverse=True)[:5]
    return [{"operation": name, "share": round(spent[name] / sum(spent.values()), 4)} for name in largest]


def report(run: Run, found: dict[str, Any], flop: float, peak: tuple[float, str]) -> dict[str, Any]:
    """The measurements with what follows from them."""
    seconds, model = found["seconds_a_round"], run.trainer.model
    on_gpu = model.device.type == "cuda"
    images = run.config.federation.participation * sum(len(task.train.labels) for task in run.tasks.values())
    rate = found["images_a_round"] / seconds["training"]
    return found | {
        "round_s": sum(seconds.values()), "training_images_a_second": rate,
        "training_share_of_a_round": seconds["training"] / sum(seconds.values()),
        "gflop_a_training_image": flop / 1e9, "tflop_a_second": rate * flop / 1e12,
        "share_of_peak": rate * flop / peak[0], "peak_tflops": peak[0] / 1e12, "peak_from": peak[1],
        "hundred_rounds_min": extrapolated(run, found, images) / 60,
        "floor_at_40_percent_min": 100 * images * flop / (0.4 * peak[0]) / 60,
        "peak_device_memory_gb": torch.cuda.max_memory_allocated(model.device) / 1e9 if on_gpu else None,
        "peak_resident_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "backbone": model.backbone.name, "image_size": model.backbone.image_size, "adapter": model.dim,
        "precision": run.config.machine.precision, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "device": torch.cuda.get_device_name(model.device) if on_gpu else processor(),
        "cores": psutil.cpu_count(), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="2 or more; the first is left out")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="bfloat16 on a GPU, float32 elsewhere")
    parser.add_argument("--attention", default="sdpa", choices=("sdpa", "eager"), help="matu run's own is eager")
    parser.add_argument("--compile", choices=("default", "reduce-overhead", "max-autotune"))
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="0: the data sheet's, or measured")
    parser.add_argument("--profile", type=Path, help="folder for a trace and a table of ten training steps")
    parser.add_argument("--tiny", action="store_true", help="a toy ViT, 16 px, a hundredth of the images")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.rounds < 2:
        parser.error(f"--rounds {asked.rounds}: expected 2 or more, the first only warms up")
    prepare_libraries()
    try:
        run = prepare(asked)
    except ConfigError as error:
        parser.error(f"{error}; --tiny --device cpu tries the script out")
    flop = flop_an_image(run)
    how = compiled(run, asked.compile) if asked.compile else "not compiled"
    print(f"{run.trainer.model.backbone.name}, {asked.attention} attention, {how}", file=sys.stderr)
    found = report(run, measure(run), flop, peak_flop_a_second(run, asked.peak_tflops))
    found |= {"attention": asked.attention, "compile": how}
    if asked.profile:
        found["largest"] = take_profile(run, asked.profile)
    print(json.dumps(found, indent=1))
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
