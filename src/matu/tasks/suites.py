"""Named suites of tasks."""

from collections.abc import Sequence

from matu.tasks.demo import DEMO_8
from matu.tasks.paper import PAPER_8, PAPER_30

REAL_8 = ("intel_scenes", "stanford_cars", "aid", "eurosat", "mnist_m", "gtsrb", "mnist", "dtd10")
REAL_22 = (
    *REAL_8,
    "ants_bees",
    "blood_cells",
    "cats_dogs",
    "cifar10",
    "ck48",
    "emnist_letters",
    "fashion_mnist",
    "flowers5",
    "monkeys10",
    "omniglot_alphabets",
    "pneumoniamnist",
    "signdigits",
    "trashnet",
    "weather4",
)

SUITES: dict[str, tuple[str, ...]] = {
    "demo-8": tuple(f"demo:{name}" for name in DEMO_8),
    "real-8": REAL_8,
    "real-22": REAL_22,
    "paper-8": PAPER_8,
    "paper-30": PAPER_30,
}


def resolve(references: Sequence[str]) -> list[str]:
    """Task references with every suite's name replaced by the suite's tasks, in order."""
    return [task for reference in references for task in SUITES.get(reference, (reference,))]
