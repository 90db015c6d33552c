"""Serving many tasks from one unified vector: what is predicted is what each task alone would."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import ViTConfig, ViTModel

from artifact_cases import leave_artifact
from matu.artifact import load_artifact
from matu.artifact.forget import negate
from matu.errors import ConfigError, DataError
from matu.models import AdaptedModel, load_backbone
from matu.serving import ManyTaskModel
from matu.training.trainer import logits
from matu.vectors import Unified, unify
from world import SIZE

TASKS = ("birds", "flowers", "beetles", "mosses")
CLASSES = {"birds": 4, "flowers": 3, "beetles": 7, "mosses": 3}


@pytest.fixture(scope="module")
def odd_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of width 6: with rank 1 the matrices begin in the middle of a mask's bytes."""
    folder = tmp_path_factory.mktemp("models") / "odd-vit"
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=6, num_hidden_layers=3, num_attention_heads=2, intermediate_size=10, image_size=SIZE, patch_size=4
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def adapted(vit: Path, *, rank: int = 3, low: bool = False) -> AdaptedModel:
    return AdaptedModel(
        load_backbone(str(vit), image_size=SIZE), rank=rank, alpha=6.0, targets=("query", "key", "value"),
        adapter_seed=0, device=torch.device("cpu"), low_precision=low,
    )  # fmt: skip


def artifact(model: AdaptedModel, tasks: tuple[str, ...] = TASKS) -> dict[str, Tensor]:
    """Tensors of an artifact whose tasks differ much."""
    draw = torch.Generator().manual_seed(1)
    unified = unify(torch.randn(len(tasks), model.dim, generator=draw))
    heads = {f"head/{t}": torch.randn(CLASSES[t], model.backbone.features + 1, generator=draw) for t in tasks}
    return {"vector": unified.vector, "masks": unified.masks, "rescalers": unified.rescalers, **heads}


def noise(count: int) -> Tensor:
    return torch.randint(0, 256, (count, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def alone(vit: Path, image: Tensor, task: str, **how: Any) -> Tensor:
    """Logits of one image with a task's adapter loaded, as evaluation does it."""
    model = adapted(vit, **how)
    tensors = artifact(model)
    unified = Unified(tensors["vector"], tensors["masks"], tensors["rescalers"])
    model.load(unified.modulate(TASKS.index(task)))
    return logits(model.features(image[None]).float(), tensors[f"head/{task}"])[0].detach()


@pytest.mark.parametrize(
    ("vit", "rank", "low", "tolerance"),
    [("tiny_vit", 3, False, 1e-5), ("odd_vit", 1, False, 1e-5), ("tiny_vit", 3, True, 5e-2)],
)
def test_a_mixed_batch_is_what_its_images_are_one_by_one_in_order(
    vit: str, rank: int, low: bool, tolerance: float, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(vit)
    model = adapted(folder, rank=rank, low=low)
    served = ManyTaskModel(model, artifact(model), TASKS)
    asked = ("flowers", "birds", "mosses", "flowers", "beetles", "birds", "flowers")
    images = noise(len(asked))
    found = served.predict_mixed(images, asked)
    for image, task, scores in zip(images, asked, found, strict=True):
        expected = alone(folder, image, task, rank=rank, low=low)
        assert scores.shape == (CLASSES[task],)
        assert (scores - expected).norm() <= tolerance * expected.norm()
        torch.testing.assert_close(served.predict(image[None], task)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vit", ["tiny_vit", "odd_vit"])
def test_a_switch_loads_the_bits_of_the_modulated_vector(vit: str, request: pytest.FixtureRequest) -> None:
    model = adapted(request.getfixturevalue(vit), rank=1)
    tensors = artifact(model)
    unified = Unified(tensors["vector"], tensors["masks"], tensors["rescalers"])
    served = ManyTaskModel(model, tensors, TASKS)
    assert served.task is None
    for row, task in [*enumerate(TASKS), (0, "birds")]:
        served.switch(task)
        found = model.parameters.detach().clone()
        model.load(unified.modulate(row))
        assert torch.equal(found, model.parameters)
        assert served.task == task


def test_masks_may_come_packed(odd_vit: Path) -> None:
    model = adapted(odd_vit, rank=1)
    tensors = artifact(model)
    packed = [np.packbits(row.numpy(), bitorder="little") for row in tensors["masks"]]
    images = noise(2)
    expected = ManyTaskModel(model, tensors, TASKS).predict_mixed(images, ["birds", "mosses"])
    served = ManyTaskModel(model, tensors | {"masks": torch.from_numpy(np.stack(packed))}, TASKS)
    assert all(map(torch.equal, served.predict_mixed(images, ["birds", "mosses"]), expected))


def test_a_mixed_batch_leaves_the_loaded_task(tiny_vit: Path) -> None:
    model = adapted(tiny_vit)
    served = ManyTaskModel(model, artifact(model), TASKS)
    before = served.predict(noise(3), "mosses")
    served.predict_mixed(noise(2), ["birds", "flowers"])
    assert served.task == "mosses"
    assert torch.equal(served.predict(noise(3), "mosses"), before)


def test_one_task_of_few_coordinates(tiny_vit: Path) -> None:
    model = adapted(tiny_vit)
    vector = torch.zeros(model.dim)
    vector[5::7] = 0.5
    tensors = artifact(model, ("birds",)) | {"vector": vector, "masks": vector.ne(0)[None]}
    tensors["rescalers"] = torch.ones(1)
    served = ManyTaskModel(model, tensors, ("birds",))
    served.switch("birds")
    assert torch.equal(model.parameters.detach(), model.start + vector)


def test_tasks_are_kept_in_unified_form(tiny_vit: Path) -> None:
    model = adapted(tiny_vit)
    served = ManyTaskModel(model, artifact(model), TASKS)
    kept = {name: value for name, value in vars(served).items() if isinstance(value, Tensor)}
    assert sum(value.nbytes for value in kept.values()) <= 4 * model.dim + 4 * -(-model.dim // 8) + 4 * 4 + 256 * 8 * 4


def test_calls_from_several_threads_do_not_mix(tiny_vit: Path) -> None:
    model = adapted(tiny_vit)
    served = ManyTaskModel(model, artifact(model), TASKS)
    images = noise(4)
    expected = {task: served.predict(images, task) for task in TASKS}
    wrong: list[str] = []

    def ask(task: str) -> None:
        for _ in range(30):
            mixed = served.predict_mixed(images[:1], [task])[0]
            near = torch.allclose(mixed, expected[task][0], rtol=1e-4, atol=1e-4)
            if not near or not torch.equal(served.predict(images, task), expected[task]):
                wrong.append(task)

    threads = [threading.Thread(target=ask, args=(task,)) for task in TASKS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s: s.switch("fish"), "no task 'fish'; served are birds, flowers, beetles, mosses"),
        (lambda s: s.predict(noise(1), "fish"), "no task 'fish'"),
        (lambda s: s.predict_mixed(noise(2), ["birds", "fish"]), "no task 'fish'"),
        (lambda s: s.predict_mixed(noise(2), ["birds"]), "1 for 2 images"),
    ],
)
def test_a_wrong_task_is_told(tiny_vit: Path, call: Callable[[ManyTaskModel], object], says: str) -> None:
    model = adapted(tiny_vit)
    served = ManyTaskModel(model, artifact(model), TASKS)
    served.switch("birds")
    with pytest.raises(ConfigError, match=says):
        call(served)
    assert served.task == "birds"


@pytest.mark.parametrize("images", [noise(2).float(), noise(2)[:, :4], noise(2)[0], noise(2)[:0]])
def test_images_of_another_form_are_told(tiny_vit: Path, images: Tensor) -> None:
    model = adapted(tiny_vit)
    served = ManyTaskModel(model, artifact(model), TASKS)
    for call in (lambda: served.predict(images, "birds"), lambda: served.predict_mixed(images, ["birds"] * 2)):
        with pytest.raises(DataError, match=r"expected torch.uint8 \[n, 8, 8, 3\]"):
            call()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vector": torch.zeros(7)}, r"vector: torch.float32 \[7\], expected float \[576\]"),
        ({"masks": torch.zeros(3, 576, dtype=torch.bool)}, r"masks: .* \[3, 576\], expected .* \[4, 576\]"),
        ({"masks": torch.zeros(4, 71, dtype=torch.uint8)}, r"masks: .* \[4, 71\], expected .* \[4, 72\]"),
        ({"masks": torch.zeros(4, 576)}, "masks: torch.float32 .*, expected bool or packed in uint8"),
        ({"rescalers": torch.ones(4, dtype=torch.bool)}, "rescalers: torch.bool .*, expected float"),
        ({"rescalers": torch.ones(4, 1)}, r"rescalers: .* \[4, 1\], expected float \[4\]"),
        ({"head/flowers": torch.zeros(3, 16)}, r"head/flowers: .* \[3, 16\], expected float \[classes, 17\]"),
        ({"head/mosses": None, "vector": None}, "vector, head/mosses: missing; there are head/beetles"),
    ],
)
def test_tensors_that_do_not_fit_are_told(tiny_vit: Path, change: Mapping[str, Tensor | None], says: str) -> None:
    model = adapted(tiny_vit)
    tensors = {name: tensor for name, tensor in (artifact(model) | change).items() if tensor is not None}
    with pytest.raises(DataError, match=says):
        ManyTaskModel(model, tensors, TASKS)


def test_a_task_named_twice_is_told(tiny_vit: Path) -> None:
    model = adapted(tiny_vit)
    with pytest.raises(DataError, match="each once"):
        ManyTaskModel(model, artifact(model), ("birds", "birds"))


def test_a_negated_task_is_served_negated(tiny_vit: Path, tmp_path: Path) -> None:
    leave_artifact(tmp_path / "run", str(tiny_vit), method="matu")
    first, second = load_artifact(tmp_path / "run").tasks[:2]
    negate(load_artifact(tmp_path / "run"), first, 0.5).write(tmp_path / "turned")
    turned = load_artifact(tmp_path / "turned")
    served, trainer = ManyTaskModel.of(turned, models_root=tiny_vit.parent), turned.trainer(models_root=tiny_vit.parent)
    images = noise(4)
    mixed = served.predict_mixed(images, [first, second, second, first])
    for task, places in ((first, (0, 3)), (second, (1, 2))):
        trainer.model.load(turned.vector(task))
        expected = logits(trainer.model.features(images).float(), turned.weights(task).head).detach()
        torch.testing.assert_close(served.predict(images, task), expected, rtol=1e-5, atol=1e-5)
        for place in places:
            torch.testing.assert_close(mixed[place], expected[place], rtol=1e-5, atol=1e-5)
    untouched = ManyTaskModel.of(load_artifact(tmp_path / "run"), models_root=tiny_vit.parent)
    assert not torch.allclose(untouched.predict(images, first), served.predict(images, first))
    assert torch.equal(untouched.predict(images, second), served.predict(images, second))


def test_artifacts_in_other_forms_are_refused(tiny_vit: Path, tmp_path: Path) -> None:
    leave_artifact(tmp_path / "plus", str(tiny_vit), method="matu_plus")
    with pytest.raises(DataError, match="a vector a task"):
        ManyTaskModel.of(load_artifact(tmp_path / "plus"), models_root=tiny_vit.parent)
    leave_artifact(tmp_path / "ntk", str(tiny_vit), method="ntk_fedavg")
    with pytest.raises(ConfigError, match="linear in the adapter"):
        ManyTaskModel.of(load_artifact(tmp_path / "ntk"), models_root=tiny_vit.parent)
