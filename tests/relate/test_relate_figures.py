"""Figures of relatedness: what stands where."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from matu.relate import clusters, figures
from matu.relate.statistics import correlations

MATRIX = np.array([[1.0, 0.5, 0.8], [0.5, 1.0, 0.6], [0.8, 0.6, 1.0]])
MATRICES = {"sign": MATRIX, "cosine": 2 * MATRIX - 1, "fim": MATRIX**2, "e_tran": MATRIX / 2, "wte": 20 - 10 * MATRIX}


@pytest.fixture
def drawn(monkeypatch):
    """The figures themselves, in place of files."""
    kept: list[Figure] = []
    monkeypatch.setattr(figures, "save", lambda figure, path: kept.append(figure) or [path])
    return kept


def draw(path, matrices=MATRICES, count=2):
    merges = clusters.tree(matrices["sign"])
    names = [f"task {i}" for i in range(len(merges) + 1)]
    return figures.similarities(names, matrices, merges, clusters.clusters(merges, count), path)


def test_similar_tasks_stand_together_in_every_map(drawn, tmp_path):
    draw(tmp_path / "a")
    panels = [axes for axes in drawn[0].axes if axes.get_title("left")]
    assert [axes.get_title("left") for axes in panels[:5]] == list(figures.TITLES.values())
    order = [text.get_text() for text in panels[0].get_yticklabels()]
    assert set(order[:2]) == {"task 0", "task 2"} or set(order[1:]) == {"task 0", "task 2"}
    at = [int(name[-1]) for name in order]
    for axes, values in zip(panels, MATRICES.values(), strict=False):
        shown = axes.images[0].get_array()
        np.testing.assert_array_equal(shown.data, values[np.ix_(at, at)])
        np.testing.assert_array_equal(shown.mask, np.eye(3, dtype=bool))
        assert sorted(square.get_width() for square in axes.patches) == [1, 2]
    others = MATRIX[np.triu_indices(3, 1)]
    assert panels[0].images[0].get_clim() == (others.min(), others.max())
    assert [axes.images[0].get_cmap().name for axes in panels[3:5]] == ["Blues", "Blues_r"], "dark is alike"
    assert [text.get_text() for text in panels[5].get_yticklabels()] == order
    assert panels[5].get_title("left").endswith("2 clusters")


@pytest.mark.parametrize(("tasks", "numbers"), [(2, 4), (12, 144), (13, 0)])
def test_large_maps_have_no_numbers(drawn, tmp_path, tasks, numbers):
    sign = np.full((tasks, tasks), 0.5)  # all alike: no range to colour
    draw(tmp_path / "a", dict.fromkeys(MATRICES, sign), count=1)
    assert len(drawn[0].axes[0].texts) == numbers


def test_correlations_are_drawn_against_sign(drawn, tmp_path):
    closeness = MATRICES | {"wte": -MATRICES["wte"], "fim": np.ones((3, 3))}
    figures.correlations(MATRICES, correlations(closeness, np.random.default_rng(0)), tmp_path / "a")
    titles = [axes.get_title("left") for axes in drawn[0].axes if axes.get_title("left")]
    assert titles[:4] == ["Cosine: r 1.00", "FIM: r –", "E-Tran: r 1.00", "−WTE: r 1.00"]
    assert titles[4] == "Pearson's r over 3 pairs, Mantel's p"
    points = np.column_stack(drawn[0].axes[3].lines[0].get_data())
    np.testing.assert_allclose(points, [[0.5, -15], [0.8, -12], [0.6, -14]])


def test_files_repeat_to_the_byte(tmp_path):
    one, two = (draw(tmp_path / name / "a") for name in ("one", "two"))
    assert [path.name for path in one] == ["a.png", "a.svg"]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
