"""Commands on what a run left to be used: inspect, predict, evaluate, export, forget."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from matu.cli.common import DONE, FAILED, Folders, prepare_libraries, read_options, roots
from matu.config import MachineConfig, TasksConfig
from matu.errors import ConfigError
from matu.words import printable_path

if TYPE_CHECKING:
    from matu.artifact import Artifact
    from matu.artifact.predict import Prediction
    from matu.training import Trainer


@dataclass(frozen=True)
class ModelPlace:
    """Where the backbone is, and where to compute."""

    models_root: Path | None = None
    """Folder of backbone folders; the environment's MATU_MODELS by default."""
    backbone: str = ""
    """The backbone's folder or hub id, if it is not to be found under its name."""
    device: str = "cpu"
    """cpu, cuda or cuda:1."""

    def trainer(self, artifact: Artifact) -> Trainer:
        """What computes; ConfigError if backbone or device are not there."""
        from matu.training import prepare_machine

        device = prepare_machine(MachineConfig(device=self.device), trains=False)
        root = roots(Folders(models_root=self.models_root)).models
        return artifact.trainer(models_root=root, backbone=self.backbone, device=device)


@dataclass(frozen=True)
class InspectArguments:
    """Say what an artifact weighs and holds.

    That is sizes, tasks, mask densities, similarity and accuracy.

    Example:
        matu inspect runs/garden
    """

    artifact: tyro.conf.Positional[Path]
    """Folder of a run, or of its artifact."""
    json: bool = False
    """Print everything as JSON."""


@dataclass(frozen=True)
class PredictArguments:
    """Classify image files by a task of an artifact.

    The exit code is 1 if an image could not be read.

    Examples:
        matu predict runs/garden photo.jpg --task flowers
        matu predict runs/garden photos/ --task flowers --top 3 --csv
    """

    artifact: tyro.conf.Positional[Path]
    """Folder of a run, or of its artifact."""
    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Image files, and folders of them at any depth."""
    task: str = ""
    """Which task; may be left out where there is one."""
    top: int = 1
    """How many classes to name for an image."""
    json: bool = False
    """Print a list of objects as JSON."""
    csv: bool = False
    """Print CSV: image, rank, label, probability."""
    place: ModelPlace = field(default_factory=ModelPlace)


@dataclass(frozen=True)
class EvaluateArguments:
    """Measure an artifact on the test images of tasks that it knows.

    Example:
        matu evaluate runs/garden --tasks ./flowers ./birds
    """

    artifact: tyro.conf.Positional[Path]
    """Folder of a run, or of its artifact."""
    tasks: tuple[str, ...]
    """Suites, folders, hub:owner/name, demo:name, as for matu run; matched by the task's name."""
    max_test: int = 0
    """Most test images of a task (a stratified draw); 0: all."""
    skip_bad_images: bool = False
    """Leave out images that cannot be decoded instead of stopping."""
    json: bool = False
    """Print the accuracies as JSON."""
    data_root: Path | None = None
    """Folder of task folders; the environment's MATU_DATA by default."""
    cache: Path | None = None
    """Decoded images; MATU_CACHE, or the user's cache folder by default."""
    place: ModelPlace = field(default_factory=ModelPlace)


@dataclass(frozen=True)
class ExportArguments:
    """Write tasks as plain PEFT adapters, for people without matu.

    Each has a README.md with code that uses it.

    Examples:
        matu export runs/garden --all --to adapters
        matu export runs/garden --task birds --merged --to birds
    """

    artifact: tyro.conf.Positional[Path]
    """Folder of a run, of its artifact, or what matu merge wrote."""
    to: Path
    """New folder: of the one task, or with a folder a task."""
    task: str = ""
    """Which task; may be left out where there is one."""
    all: bool = False
    """Every task."""
    merged: bool = False
    """Whole models with the adapter merged in, which need no PEFT."""
    place: ModelPlace = field(default_factory=ModelPlace)


@dataclass(frozen=True)
class ForgetArguments:
    """Write an artifact without a task, or with the task's vector turned around.

    Examples:
        matu forget runs/garden --task birds --to without-birds
        matu forget runs/garden --task birds --negate 0.5 --to worse-at-birds
    """

    artifact: tyro.conf.Positional[Path]
    """Folder of a run, or of its artifact."""
    task: str
    """Which task."""
    to: Path
    """New folder."""
    negate: float | None = None
    """Keep the task, its vector times minus this: task negation."""


def inspect(arguments: list[str]) -> int:
    """matu inspect."""
    asked = _parse(InspectArguments, arguments, "inspect")
    from matu.artifact.inspect import inspect as look
    from matu.report.artifact import print_inspection

    found = look(_open(asked.artifact), asked.artifact)
    print(json.dumps(found, indent=1)) if asked.json else print_inspection(found)
    return DONE


def predict(arguments: list[str]) -> int:
    """matu predict."""
    asked = _parse(PredictArguments, arguments, "predict")
    if asked.json and asked.csv:
        raise ConfigError("--json and --csv: only one of them")
    if asked.top < 1:
        raise ConfigError(f"--top {asked.top}: expected 1 or more")
    from matu.artifact.predict import find_images
    from matu.artifact.predict import predict as classify
    from matu.report.artifact import print_predictions

    artifact = _open(asked.artifact)
    task, images = artifact.one_of(asked.task), find_images(asked.images)
    found = list(classify(artifact, asked.place.trainer(artifact), task, images, top=asked.top))
    broken = [one for one in found if one.problem]
    for one in broken:
        print(f"matu: {printable_path(one.image)}: {one.problem}", file=sys.stderr)
    if asked.json:
        print(json.dumps([_as_object(one) for one in found], indent=1))
    elif asked.csv:
        _write_csv(found)
    else:
        print_predictions(task, [one for one in found if not one.problem])
    return FAILED if broken else DONE


def evaluate(arguments: list[str]) -> int:
    """matu evaluate."""
    asked = _parse(EvaluateArguments, arguments, "evaluate")
    from matu.artifact.predict import evaluate as measure
    from matu.report.artifact import print_evaluation
    from matu.roots import read_tasks

    artifact = _open(asked.artifact)
    size = artifact.note["preprocessing"]["image_size"]
    settings = TasksConfig(asked.tasks, size, max_test=asked.max_test, skip_bad_images=asked.skip_bad_images)
    folders = roots(Folders(asked.data_root, asked.place.models_root, asked.cache))
    trainer = asked.place.trainer(artifact)
    found = measure(artifact, trainer, read_tasks(settings, folders, needed=("test",)))
    print(json.dumps(found, indent=1)) if asked.json else print_evaluation(found)
    return DONE


def export(arguments: list[str]) -> int:
    """matu export."""
    asked = _parse(ExportArguments, arguments, "export")
    if asked.all and asked.task:
        raise ConfigError("--all and --task: only one of them")
    from matu.artifact.export import export as write
    from matu.merge import is_merged

    if is_merged(asked.artifact):
        return _restore(asked)
    artifact, place = _open(asked.artifact), asked.place
    places = {task: task for task in artifact.tasks} if asked.all else {artifact.one_of(asked.task): "."}
    root = roots(Folders(models_root=place.models_root)).models
    write(artifact, places, asked.to, models_root=root, backbone=place.backbone, merged=asked.merged)
    for task, at in places.items():
        print(f"{task}: {asked.to / at}; README.md there says how to use it")
    return DONE


def _restore(asked: ExportArguments) -> int:
    """matu export of what matu merge wrote."""
    from matu.files import new_folder
    from matu.merge import merged_tasks, restore

    tasks = merged_tasks(asked.artifact)
    if asked.merged:
        raise ConfigError("--merged: adapters of matu merge are given back as adapters; PEFT merges one into its model")
    one = asked.task or (tasks[0] if len(tasks) == 1 else "")
    if not asked.all and one not in tasks:
        raise ConfigError(f"--task {one}: expected one of {', '.join(tasks)}, or --all")
    if not asked.all:
        restore(asked.artifact, one, asked.to)
        print(f"{one}: {asked.to}")
        return DONE
    with new_folder(asked.to) as part:
        for task in tasks:
            restore(asked.artifact, task, part / task)
    for task in tasks:
        print(f"{task}: {asked.to / task}")
    return DONE


def forget(arguments: list[str]) -> int:
    """matu forget."""
    asked = _parse(ForgetArguments, arguments, "forget")
    from matu.artifact.forget import drop, negate
    from matu.files import new_folder

    artifact = _open(asked.artifact)
    task = artifact.one_of(asked.task)
    changed = drop(artifact, task) if asked.negate is None else negate(artifact, task, asked.negate)
    with new_folder(asked.to) as part:
        changed.write(part)
    print(f"{asked.to}: {changed.note['provenance']['changes'][-1]}; its tasks are {', '.join(changed.tasks)}")
    return DONE


def _parse(kind: Any, arguments: Sequence[str], command: str) -> Any:
    """The options of a command; libraries are made ready."""
    asked = read_options(kind, arguments, command)
    prepare_libraries()
    return asked


def _open(folder: Path) -> Artifact:
    from matu.artifact import load_artifact

    return load_artifact(folder)


def _as_object(one: Prediction) -> dict[str, Any]:
    if one.problem:
        return {"image": str(one.image), "problem": one.problem}
    top = [{"label": label, "probability": share} for label, share in one.top]
    return {"image": str(one.image), **top[0], "top": top}


def _write_csv(found: Sequence[Prediction]) -> None:
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(("image", "rank", "label", "probability"))
    for one in found:
        name = printable_path(one.image)
        rows.writerows((name, rank, label, f"{share:.6f}") for rank, (label, share) in enumerate(one.top, 1))
