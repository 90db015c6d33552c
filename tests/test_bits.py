"""The paper's bit columns by plain accounting."""

import pytest

from matu import bits

COMPUTED = {(r.table, r.method): r for r in bits.rows()}


@pytest.mark.parametrize(
    ("table", "method", "digits", "expected"),
    [
        (1, "FedAvg", 2, 6.13),
        (1, "FedPer", 2, 5.19),
        (2, "FedAvg", 1, 19.6),
        (2, "FedPer", 1, 16.6),
        (2, "MaTU", 1, 7.7),
    ],
)
def test_the_five_numbers(table: int, method: str, digits: int, expected: float) -> None:
    assert round(COMPUTED[table, method].computed, digits) == expected


def test_head_is_the_mean_of_the_eight() -> None:
    assert bits.head() == (397 + 196 + 45 + 10 + 10 + 43 + 10 + 47) / 8 * 769


def test_one_task_costs_matu_what_fedavg_costs() -> None:
    assert COMPUTED[1, "MaTU"].computed == COMPUTED[1, "FedAvg"].computed
    assert bits.uplink_bits("MaTU", 2) == 32 * (884_736 + 2 * bits.head() + 2) + 2 * 884_736


def test_plain_accounting_is_a_little_below_what_is_printed() -> None:
    assert len(COMPUTED) == 12
    assert all(0.95 < r.ratio < 0.98 for r in COMPUTED.values())
    assert COMPUTED[2, "MaTU"].printed / COMPUTED[2, "FedAvg"].printed == pytest.approx(0.394, abs=1e-3)


def test_text_has_every_row_and_the_accounting() -> None:
    lines = bits.text().splitlines()
    assert [line.split() for line in lines[-12:]] == [
        [str(r.table), r.method, f"{r.computed:.2f}", f"{r.printed:.2f}", f"{r.ratio:.3f}"] for r in bits.rows()
    ]
    assert "884,736" in bits.text()
    assert all(len(line) <= 120 for line in lines)
