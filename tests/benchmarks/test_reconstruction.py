"""The benchmark of what comes back of k vectors: its forms are what they say, on small vectors."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("reconstruction")


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(3, 5000, generator=torch.Generator().manual_seed(1))


def error(back: Tensor, rows: Tensor) -> float:
    return float((back - rows).norm() / rows.norm())


def test_one_task_comes_back_as_it_was_from_every_shared_form(forms: Any, rows: Tensor) -> None:
    for form in (forms.papers, forms.true_signs, forms.two_levels):
        back, stated, _ = form(rows[:1])
        torch.testing.assert_close(back, rows[:1], rtol=0, atol=0)
        assert stated == 32


def test_two_levels_are_between_one_level_and_none_lost(forms: Any, rows: Tensor) -> None:
    one, two = forms.true_signs(rows), forms.two_levels(rows)
    assert 0 < error(two[0], rows) < 0.6 * error(one[0], rows)
    assert torch.equal(two[0].sign(), rows.sign())
    assert (one[1], two[1]) == (35, 38)
    sizes = two[0].abs() / two[0].abs().max(0).values  # of each entry, a task's level over the largest
    assert all(len(row.unique()) > 1 for row in sizes)


def test_turns_come_nearer(forms: Any, rows: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = []
    for turns in (1, 2, 5, 20):
        monkeypatch.setattr(forms, "TURNS", turns)
        errors.append(error(forms.two_levels(rows)[0], rows))
    assert errors == sorted(errors, reverse=True)


def test_more_bits_come_nearer_and_are_counted(forms: Any, rows: Tensor) -> None:
    codecs = ("2bit", "3bit", "4bit", "5bit", "8bit")
    found = [forms.a_vector_a_task(rows, codec) for codec in codecs]
    errors = [error(back, rows) for back, _, _ in found]
    assert errors == sorted(errors, reverse=True)
    for (_, stated, encoded), codec in zip(found, codecs, strict=True):
        assert stated == 3 * int(codec[0])
        assert 0.5 * stated < encoded < 1.5 * stated


def test_what_is_measured_is_what_the_forms_give(forms: Any, rows: Tensor, tmp_path: Path) -> None:
    found = forms.measure(rows)
    back, _, encoded = forms.papers(rows)
    cosine = torch.nn.functional.cosine_similarity(back, rows).tolist()
    here = found["the paper's"]["3"]
    assert here["cosine"] == pytest.approx(sum(cosine) / 3)
    assert here["least_cosine"] == pytest.approx(min(cosine))
    assert here["bits_encoded"] == pytest.approx(encoded)
    assert set(found["true signs"]) == {"1", "2", "3"}
    forms.draw({"made up": {"forms": found}, "again": {"forms": found}}, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
