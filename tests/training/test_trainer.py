from pathlib import Path

import numpy as np
import pytest
import torch

from matu.config import MachineConfig, ModelConfig, RunConfig, TasksConfig
from matu.errors import ConfigError, DivergedError
from matu.training import Weights, decide, machine, prepare_machine
from matu.training.trainer import batches, logits
from world import tiny_task, tiny_trainer


def zero(trainer, classes: int) -> Weights:
    return Weights(torch.zeros(trainer.model.dim), torch.zeros(classes, trainer.model.backbone.features + 1))


def test_it_learns(tiny_vit: Path) -> None:
    trainer, task = tiny_trainer(tiny_vit), tiny_task("left")
    start = zero(trainer, 3)
    before = trainer.accuracy(start, task.test)
    trained, loss = trainer.train(start, task.train, np.arange(60), np.random.default_rng(0), epochs=25)
    assert before == pytest.approx(1 / 3)
    assert loss < 0.9 * np.log(3)
    assert trainer.accuracy(trained, task.test) > 0.8


def test_the_same_draw_gives_the_same_bits(tiny_vit: Path) -> None:
    trainer, task = tiny_trainer(tiny_vit), tiny_task("left")
    runs = [
        trainer.train(zero(trainer, 3), task.train, np.arange(60), np.random.default_rng(seed), steps=4)[0]
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0].vector, runs[1].vector)
    assert torch.equal(runs[0].head, runs[1].head)
    assert not torch.equal(runs[0].vector, runs[2].vector)


def test_one_step_is_adamw_on_the_clipped_gradient(tiny_vit: Path) -> None:
    trainer, task = tiny_trainer(tiny_vit, gradient_clip=0.01), tiny_task("left")
    indices = np.arange(8)
    start = Weights(torch.full((trainer.model.dim,), 0.01), torch.full((3, 17), 0.02))
    trained, loss = trainer.train(start, task.train, indices, np.random.default_rng(0), steps=1)

    model, head = trainer.model, start.head.clone().requires_grad_()
    model.load(start.vector)
    model.parameters.grad.zero_()
    features = model.features(torch.from_numpy(task.train.images[indices]))
    expected_loss = torch.nn.functional.cross_entropy(logits(features, head), torch.from_numpy(task.train.labels[:8]))
    expected_loss.backward()
    gradients = torch.cat([model.parameters.grad, head.grad.flatten()])
    clipped = gradients * min(1.0, 0.01 / (float(gradients.norm()) + 1e-6))
    before = torch.cat([start.vector, start.head.flatten()])
    # the first step of Adam: mean and variance are the gradient's own, bias-corrected
    expected = before - 1e-2 * clipped / (clipped.abs() + 1e-8)
    assert loss == pytest.approx(float(expected_loss.detach()), rel=1e-6)
    found = torch.cat([trained.vector, trained.head.flatten()])
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


def test_training_starts_afresh_each_time(tiny_vit: Path) -> None:
    trainer, task = tiny_trainer(tiny_vit), tiny_task("left")
    alone, _ = trainer.train(zero(trainer, 3), task.train, np.arange(60), np.random.default_rng(0), steps=3)
    trainer.train(zero(trainer, 3), task.train, np.arange(30), np.random.default_rng(5), steps=5)
    again, _ = trainer.train(zero(trainer, 3), task.train, np.arange(60), np.random.default_rng(0), steps=3)
    assert torch.equal(alone.vector, again.vector)


def test_a_start_is_not_changed_by_training_from_it(tiny_vit: Path) -> None:
    trainer, task = tiny_trainer(tiny_vit), tiny_task("left")
    start = zero(trainer, 3)
    trainer.train(start, task.train, np.arange(60), np.random.default_rng(0), steps=2)
    assert not start.vector.any()
    assert not start.head.any()


def test_divergence_is_an_error(tiny_vit: Path) -> None:
    trainer, task = tiny_trainer(tiny_vit, gradient_clip=0), tiny_task("left")
    broken = Weights(torch.full((trainer.model.dim,), float("nan")), torch.zeros(3, 17))
    with pytest.raises(DivergedError, match="learning_rate"):
        trainer.train(broken, task.train, np.arange(60), np.random.default_rng(0), steps=1)


def test_an_epoch_sees_every_image_once() -> None:
    seen = list(batches(np.arange(10, 33), 5, np.random.default_rng(0), steps=0, epochs=2))
    assert [len(batch) for batch in seen] == [5, 5, 5, 5, 3] * 2
    for epoch in (seen[:5], seen[5:]):
        assert sorted(np.concatenate(epoch)) == list(range(10, 33))
    assert not np.array_equal(seen[0], seen[5])


def test_steps_go_over_as_many_epochs_as_they_take() -> None:
    assert [len(b) for b in batches(np.arange(7), 4, np.random.default_rng(0), steps=5, epochs=1)] == [4, 3, 4, 3, 4]


def test_a_batch_larger_than_the_data_is_the_whole_data() -> None:
    assert [len(b) for b in batches(np.arange(3), 64, np.random.default_rng(0), steps=0, epochs=2)] == [3, 3]


def test_accuracy_counts(tiny_vit: Path) -> None:
    trainer, task = tiny_trainer(tiny_vit), tiny_task("left")
    always_second = Weights(torch.zeros(trainer.model.dim), torch.zeros(3, 17))
    always_second.head[1, -1] = 1.0
    assert trainer.accuracy(always_second, task.test) == pytest.approx(1 / 3)
    assert trainer.accuracy(always_second, task.test, np.array([0, 8, 9, 10])) == 0.75


def test_what_is_auto_is_decided_and_stays(tiny_vit: Path) -> None:
    config = RunConfig(
        tasks=TasksConfig(image_size=8),
        model=ModelConfig(backbone=str(tiny_vit)),
        machine=MachineConfig(seed=3, together=0),
    )
    threads = torch.get_num_threads()
    try:
        decided = decide(config)
    finally:
        torch.set_num_threads(threads)
    assert decided.precision in ("float32", "bfloat16")
    assert decided.threads >= 1
    assert decided.together >= 1
    assert decided.seed == 3
    fixed = RunConfig(machine=MachineConfig(precision="float32", threads=1))
    assert decide(fixed) == fixed.machine


def test_no_more_threads_than_the_environment_allows(tiny_vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def speed(config, machines, models_root, clock):
        tried.extend(one.threads for one in machines)
        return [1.0, 2.0]

    monkeypatch.setattr(machine, "_images_per_second", speed)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)), raising=False)
    config = RunConfig(model=ModelConfig(backbone=str(tiny_vit)), machine=MachineConfig(precision="float32"))
    for asked, expected in (("", 4), ("3", 3), ("64", 4), ("1", 1), ("0", 4), ("many", 4)):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert decide(config).threads == expected
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert [decide(config, jobs=jobs).threads for jobs in (2, 3, 4, 9)] == [2, 1, 1, 1], "each has its share"
    assert set(tried) == {1, 2, 3, 4}


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "meta", "cpuu"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=device):
        prepare_machine(MachineConfig(device=device))
