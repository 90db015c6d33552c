"""The paper's bit columns (Tables 1 and 2), computed: what a client sends up, by plain accounting."""

from dataclasses import dataclass

from matu.tasks.paper import EIGHT, PAPER

ADAPTER = 884_736  # LoRA of rank 16 on query, key and value of ViT-B/32's 12 blocks
FEATURES = 768
SHARED_BLOCKS = 11 / 12  # FedPer keeps the last block, and the heads, at the client
PARTICIPATION = 0.2
NUMBER_BITS = 32
TASKS_PER_CLIENT = {1: 1.0, 2: 3.2}

# As printed, in Mbit.
PRINTED = {
    1: {"FedAvg": 6.32, "NTK-FedAvg": 6.32, "FedProx": 6.32, "FedPer": 5.36, "MaT-FL": 6.32, "MaTU": 6.32},
    2: {"FedAvg": 20.43, "NTK-FedAvg": 20.43, "FedProx": 20.43, "FedPer": 17.16, "MaT-FL": 20.43, "MaTU": 8.04},
}


@dataclass(frozen=True)
class Row:
    """One method's bits in one table, in millions."""

    table: int
    method: str
    computed: float
    printed: float

    @property
    def ratio(self) -> float:
        return self.computed / self.printed


def head() -> float:
    """Numbers in a head: the mean over the eight tasks of classes x (features + bias)."""
    classes = [PAPER[name].classes or 0 for name in EIGHT]
    return sum(classes) / len(classes) * (FEATURES + 1)


def uplink_bits(method: str, tasks: float) -> float:
    """Bits that a client with so many tasks (a mean may be fractional) sends up in a round."""
    if method == "FedPer":
        return NUMBER_BITS * tasks * SHARED_BLOCKS * ADAPTER
    if method != "MaTU":
        return NUMBER_BITS * tasks * (ADAPTER + head())
    if tasks == 1:
        return NUMBER_BITS * (ADAPTER + head())
    return NUMBER_BITS * (ADAPTER + tasks * head() + tasks) + tasks * ADAPTER


def rows() -> list[Row]:
    """Every method of both tables, in the paper's order."""
    return [
        Row(table, method, PARTICIPATION * uplink_bits(method, TASKS_PER_CLIENT[table]) / 1e6, printed)
        for table, methods in PRINTED.items()
        for method, printed in methods.items()
    ]


def text() -> str:
    """The table as text, with the accounting written out."""
    lines = [
        "Bits of the paper's Tables 1 and 2, in millions: participation x uplink of a client, 32 bits a number.",
        f"adapter d = {ADAPTER:,}; head h = {head():,.2f} = mean classes of the eight tasks x ({FEATURES} + 1)",
        f"tasks a client k = {TASKS_PER_CLIENT[1]:g} (Table 1), {TASKS_PER_CLIENT[2]:g} (Table 2); "
        f"participation {PARTICIPATION:g}",
        "FedAvg, NTK-FedAvg, FedProx, MaT-FL: 32 k (d + h)",
        "FedPer: 32 k 11/12 d",
        "MaTU: 32 (d + k h + k) + k d, the last for the masks; with k = 1 neither masks nor rescalers: 32 (d + h)",
        "",
        f"{'table':>5}  {'method':<10}  {'computed':>8}  {'printed':>7}  {'ratio':>5}",
    ]
    lines += [f"{r.table:>5}  {r.method:<10}  {r.computed:>8.2f}  {r.printed:>7.2f}  {r.ratio:>5.3f}" for r in rows()]
    return "\n".join(lines)
