"""Per-task FedAvg: one global adapter per task, the control that the paper lacks.

sent up      an adapter and a head for each of the client's tasks
sent down    the same of the server
trained      every task of the client from that task's adapter
aggregated   per task: sample-weighted mean over its holders; a task without holders keeps what it has
kept         at the server: an adapter and a head a task; at clients: nothing
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from matu.methods.base import Local, Means, Method, Round, State, adapter_parts, head_parts
from matu.training import Weights
from matu.wire import Part


class PerTaskFedAvg(Method):
    """The method of this file."""

    separate = True

    def downlink(self, state: State, site: str, tasks: Sequence[str]) -> dict[str, Tensor]:
        return plain({task: self.server(state, task) for task in tasks})

    def downlink_parts(self, tasks: Sequence[str]) -> tuple[Part, ...]:
        return *adapter_parts(tasks, self.problem.dim), *head_parts(self.problem, tasks)

    def uplink_parts(self, tasks: Sequence[str]) -> tuple[Part, ...]:
        return self.downlink_parts(tasks)

    def weights(self, tasks: Sequence[str], tensors: Mapping[str, Tensor], memory: State) -> dict[str, Weights]:
        return {t: Weights(tensors[f"adapter/{t}"], tensors[f"head/{t}"]) for t in tasks}

    def local_update(self, local: Local, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], State]:
        starts = self.weights(local.tasks, tensors, local.memory)
        return plain(local.train(starts)), {}

    def reported(self, tasks: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, Weights]:
        return self.weights(tasks, tensors, {})

    def begin_round(self, state: State) -> Round:
        return PerTaskRound(self, state, lambda means: means)

    def server_weights(self, state: State) -> dict[str, Weights] | None:
        return {task: self.server(state, task) for task in self.problem.tasks}

    def paper_bits(self, tasks: Sequence[str]) -> int:
        return 32 * (len(tasks) * self.problem.dim + self.problem.head_numbers(tasks))

    def server(self, state: State, task: str) -> Weights:
        """The server's adapter and head of a task, the start where nobody has trained it."""
        if f"head/{task}" not in state:
            return self.problem.base(task)
        return Weights(state[f"adapter/{task}"], state[f"head/{task}"])


class PerTaskRound(Round):
    """Means per task of one round, folded in as updates arrive.

    Parameters
    ----------
    method, state
        Whose round it is, and the state before it.
    advance
        From the means by name (`adapter/<task>`, `head/<task>`; tasks with holders) to what changes in the state.
    """

    def __init__(self, method: Method, state: State, advance: Callable[[dict[str, Tensor]], State]) -> None:
        self.method, self.state, self.advance, self.means = method, state, advance, Means()

    def add_weights(self, site: str, task: str, samples: int, weights: Weights) -> None:
        self.means.add(f"adapter/{task}", weights.vector, samples)
        self.means.add(f"head/{task}", weights.head, samples)

    def finish(self) -> State:
        return {**self.state, **self.advance(self.means.values())} if self.means else self.state


def plain(weights: Mapping[str, Weights]) -> dict[str, Tensor]:
    """An adapter and a head a task, as they travel."""
    vectors = {f"adapter/{task}": w.vector for task, w in weights.items()}
    return vectors | {f"head/{task}": w.head for task, w in weights.items()}
