"""Who holds which task, and which of its training samples: Dirichlet partitions over tasks and classes."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from matu.errors import ConfigError, DataError
from matu.seeds import stream
from matu.words import counted

HOLDING_SHARE = 0.1  # a client holds the tasks to which its draw gives at least this share
REDRAWS = 100  # draws of one task's split before samples are moved instead
WOULD_FIT = (
    "holders of a task are the clients that hold it; what would fit: fewer clients (--clients), fewer tasks a client "
    "(--tasks-per-client, or a lower --zeta-t), or fewer samples a holder (--min-samples)"
)


def partition(
    labels: Mapping[str, np.ndarray],
    *,
    clients: int,
    zeta_c: float,
    zeta_t: float,
    seed: int,
    tasks_per_client: int = 0,
    task_groups: Sequence[Sequence[str]] = (),
    min_samples: int = 10,
) -> list[dict[str, np.ndarray]]:
    """Deal the tasks to the clients, and each task's training samples to its holders.

    Allocation: client n draws p ~ Dir_T(`zeta_t`) and holds the tasks with p >= 0.1, at least its largest;
    `zeta_t` = 0 gives one task each, dealt round. `tasks_per_client` = k > 0 draws k distinct tasks instead,
    all equally likely; `task_groups` deals these groups round. A task that nobody drew goes to the client
    with fewest tasks.

    Split: each class of a task goes to the task's holders by Dir(`zeta_c`), redrawn until everyone has
    `min_samples` (100 times at most); then samples move one by one from the largest holder to the smallest.

    A task's split depends on the seed, its name, its labels and the number of its holders alone.

    Parameters
    ----------
    labels : training labels of each task, int64 [n]; the order of the tasks is kept

    Returns
    -------
    one dict a client: task -> sorted indices into the task's training split, int64; every sample is in one

    Raises
    ------
    ConfigError : a setting out of range, or two ways of allocating at once
    DataError : a task has fewer than `min_samples` samples a holder; all such tasks are named

    References
    ----------
    Dirichlet over classes: Li et al. 2021, arXiv 2102.02079.
    """
    names = list(labels)
    _check(names, clients, zeta_c, zeta_t, seed, tasks_per_client, min_samples)
    held = _allocate(names, clients, zeta_t, seed, tasks_per_client, task_groups)
    holders = {name: [n for n in range(clients) if name in held[n]] for name in names}
    _check_enough(labels, holders, min_samples)

    shares: list[dict[str, np.ndarray]] = [{} for _ in range(clients)]
    for name in names:
        rng = stream(seed, "split", name)
        parts = _split(np.asarray(labels[name]), len(holders[name]), zeta_c, min_samples, rng)
        for client, part in zip(holders[name], parts, strict=True):
            shares[client][name] = part
    return shares


def _allocate(
    names: Sequence[str],
    clients: int,
    zeta_t: float,
    seed: int,
    tasks_per_client: int,
    groups: Sequence[Sequence[str]],
) -> list[set[str]]:
    """Tasks of each client; every task has a holder."""
    if groups:
        _check_groups(groups, names, tasks_per_client)
        held = [set(groups[n % len(groups)]) for n in range(clients)]
    elif tasks_per_client:
        rng = stream(seed, "allocation")
        drawn = [rng.choice(len(names), tasks_per_client, replace=False) for _ in range(clients)]
        held = [{names[t] for t in draw} for draw in drawn]
    elif zeta_t == 0:
        held = [{names[n % len(names)]} for n in range(clients)]
    else:
        shares = stream(seed, "allocation").dirichlet(np.full(len(names), zeta_t), size=clients)
        held = [{names[t] for t in range(len(names)) if p[t] >= HOLDING_SHARE} | {names[p.argmax()]} for p in shares]
    for name in names:
        if not any(name in tasks for tasks in held):
            min(held, key=len).add(name)
    return held


def _split(
    labels: np.ndarray, holders: int, zeta_c: float, min_samples: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Indices of each holder, sorted; each class by Dir(zeta_c), everyone with at least `min_samples`."""
    classes, class_counts = np.unique(labels, return_counts=True)
    for _ in range(REDRAWS):
        shares = rng.dirichlet(np.full(holders, zeta_c), size=len(classes))
        counts = _whole_counts(shares, class_counts)
        if counts.sum(axis=0).min() >= min_samples:
            break
    else:
        _move_to_smallest(counts, min_samples, rng)

    parts: list[list[np.ndarray]] = [[] for _ in range(holders)]
    for label, row in zip(classes, counts, strict=True):
        members = rng.permutation(np.flatnonzero(labels == label))
        for holder, piece in enumerate(np.split(members, np.cumsum(row)[:-1])):
            parts[holder].append(piece)
    return [np.sort(np.concatenate(pieces)).astype(np.int64) for pieces in parts]


def _whole_counts(shares: np.ndarray, class_counts: np.ndarray) -> np.ndarray:
    """Shares float [C, H] of class_counts int [C] as whole numbers [C, H] whose rows sum to class_counts."""
    # Rounding the cumulative sum, not the shares, keeps every row's total.
    edges = (np.cumsum(shares, axis=1) * class_counts[:, None]).astype(np.int64)
    edges[:, -1] = class_counts
    edges = np.minimum(edges, class_counts[:, None])
    return np.diff(edges, axis=1, prepend=0)


def _move_to_smallest(counts: np.ndarray, min_samples: int, rng: np.random.Generator) -> None:
    """Move single samples, drawn evenly from the largest holder's, until every holder has `min_samples`."""
    totals = counts.sum(axis=0)
    while totals.min() < min_samples:
        largest, smallest = int(totals.argmax()), int(totals.argmin())
        drawn = rng.integers(totals[largest])
        label = int(np.searchsorted(np.cumsum(counts[:, largest]), drawn, side="right"))
        counts[label, largest] -= 1
        counts[label, smallest] += 1
        totals[largest] -= 1
        totals[smallest] += 1


def _check(
    names: Sequence[str],
    clients: int,
    zeta_c: float,
    zeta_t: float,
    seed: int,
    tasks_per_client: int,
    min_samples: int,
) -> None:
    if not names:
        raise ConfigError("no tasks to partition: give at least one")
    if clients < 1:
        raise ConfigError(f"clients = {clients}: at least 1 is needed")
    if not (math.isfinite(zeta_c) and zeta_c > 0):
        raise ConfigError(f"zeta_c = {zeta_c}: a finite number above 0 is needed (0.1 is the usual choice)")
    if not (math.isfinite(zeta_t) and zeta_t >= 0):
        raise ConfigError(f"zeta_t = {zeta_t}: a finite number is needed, 0 (one task a client) or more")
    if seed < 0:
        raise ConfigError(f"seed = {seed}: a whole number, 0 or more, is needed")
    if not 0 <= tasks_per_client <= len(names):
        raise ConfigError(
            f"tasks_per_client = {tasks_per_client}: 1 to {len(names)} (the tasks there are) is needed, "
            "or 0 to draw by zeta_t"
        )
    if min_samples < 1:
        raise ConfigError(f"min_samples = {min_samples}: at least 1 is needed")


def _check_groups(groups: Sequence[Sequence[str]], names: Sequence[str], tasks_per_client: int) -> None:
    if tasks_per_client:
        raise ConfigError(
            f"task_groups and tasks_per_client = {tasks_per_client} both say which tasks a client holds: "
            "give one of them"
        )
    for position, group in enumerate(groups):
        unknown = [name for name in group if name not in names]
        if unknown:
            raise ConfigError(f"task_groups[{position}]: unknown task {unknown[0]!r}; known: {', '.join(names)}")
        if not group:
            raise ConfigError(f"task_groups[{position}] is empty: name at least one task")
        if len(set(group)) < len(group):
            raise ConfigError(f"task_groups[{position}] names a task twice: {', '.join(group)}")


def _check_enough(labels: Mapping[str, np.ndarray], holders: Mapping[str, Sequence[int]], min_samples: int) -> None:
    short = []
    for name, clients in holders.items():
        samples = len(labels[name])
        if samples < min_samples * len(clients):
            short.append(
                f"task {name!r}: {counted(samples, 'training sample')} for {counted(len(clients), 'holder')}, "
                f"at least {min_samples * len(clients)} needed ({min_samples} a holder)"
            )
    if short:
        raise DataError("\n".join([*short, WOULD_FIT]))
