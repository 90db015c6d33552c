from dataclasses import replace

import numpy as np
import pytest

from matu.tasks import Split, Task, held_out
from world import tiny_task


def numbered(labels: list[int]) -> Task:
    """A task whose training image i is filled with i, and whose test images are all 255."""
    images = np.broadcast_to(np.arange(len(labels), dtype=np.uint8)[:, None, None, None], (len(labels), 8, 8, 3))
    test = Split(np.full((6, 8, 8, 3), 255, dtype=np.uint8), np.array([0, 1, 2, 0, 1, 2]))
    return replace(tiny_task("left"), train=Split(images, np.array(labels)), test=test)


def numbers(split: Split) -> list[int]:
    return [int(image[0, 0, 0]) for image in split.images]


def test_a_tenth_of_the_training_images_takes_the_place_of_the_test_images() -> None:
    task = numbered([0] * 20 + [1] * 20 + [2] * 20)
    found = held_out(task)
    kept, tenth = numbers(found.train), numbers(found.test)
    assert sorted(kept + tenth) == list(range(60))
    assert len(tenth) == 6
    assert 255 not in tenth


def test_images_keep_their_labels() -> None:
    labels = [i % 3 for i in range(60)]
    found = held_out(numbered(labels))
    for split in (found.train, found.test):
        assert split.labels.tolist() == [labels[i] for i in numbers(split)]


def test_it_is_drawn_class_by_class() -> None:
    task = numbered([0] * 100 + [1] * 50 + [2] * 10)
    found = held_out(task)
    assert np.bincount(found.test.labels).tolist() == [10, 5, 1]
    assert np.bincount(found.train.labels).tolist() == [90, 45, 9]
    assert numbers(found.test) != list(range(90, 100)) + list(range(145, 150)) + [159]


@pytest.mark.parametrize(("images", "tenth"), [(4, 1), (10, 1), (19, 1), (20, 2), (59, 5)])
def test_a_tenth_is_rounded_down_and_at_least_one(images: int, tenth: int) -> None:
    found = held_out(numbered([i % 2 for i in range(images)]))
    assert (len(found.train.labels), len(found.test.labels)) == (images - tenth, tenth)


def test_it_is_the_same_every_time_whatever_the_test_images() -> None:
    task = numbered([i % 3 for i in range(60)])
    other = replace(task, test=Split(task.test.images[:3], task.test.labels[:3]))
    assert numbers(held_out(task).test) == numbers(held_out(task).test) == numbers(held_out(other).test)


def test_it_is_told_from_the_task_itself_and_keeps_the_rest() -> None:
    task = numbered([i % 3 for i in range(60)])
    found = held_out(task)
    assert found.digest != task.digest
    assert held_out(replace(task, digest="another")).digest not in (task.digest, found.digest)
    assert (found.name, found.classes, found.source) == (task.name, task.classes, task.source)
    assert len(task.train.labels) == 60, "the task itself is left as it is"
