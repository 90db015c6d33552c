"""Where the training of an adapter starts, drawn from a seed: the same at every site."""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def is_b(name: str) -> bool:
    """Whether a LoRA parameter, by its name, is a B; the others are A's."""
    return ".lora_B." in name


def draw_start(
    shapes: Iterable[tuple[str, tuple[int, ...]]], seed: int, start_b: float
) -> Iterator[tuple[str, Tensor]]:
    """Draw LoRA matrices one after the other: A uniform in ±1/√fan_in (the usual draw of LoRA), B in ±start_b.

    Parameters
    ----------
    shapes
        Names and shapes, in sorted order of names; A is what has `.lora_A.` in its name.
    seed
        Of the generator that all draws come from.
    start_b
        0, the usual start, draws nothing for B.

    Yields
    ------
    name : str
    start : float32, on the CPU
    """
    generator = torch.Generator().manual_seed(seed)
    for name, shape in shapes:
        bound = 1 / math.sqrt(shape[1]) if ".lora_A." in name else start_b
        yield name, torch.empty(shape).uniform_(-bound, bound, generator=generator) if bound else torch.zeros(shape)
