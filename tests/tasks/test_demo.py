import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from matu.errors import DataError
from matu.tasks.demo import DEMO_8, RENDERER_VERSION, RenderedTask, more_tasks, render_task
from matu.tasks.demo.glyphs import STROKES, outlines
from matu.tasks.demo.patterns import PATTERNS, pattern

# Handwritten digits are real data, small to begin with, and nearer to linear than what we render.
LINEAR_BOUND = {"digits": 0.8}


@pytest.fixture(scope="module")
def suite() -> dict[str, RenderedTask]:
    return {name: render_task(name) for name in DEMO_8}


def digest(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


def test_suite_has_eight_tasks_in_related_families(suite):
    assert len(set(DEMO_8)) == len(suite) == 8
    families = [task.family for task in suite.values()]
    assert sum(families.count(family) >= 2 for family in set(families)) >= 2
    assert len(set(families)) >= 4
    assert isinstance(RENDERER_VERSION, int)


@pytest.mark.parametrize("name", DEMO_8)
def test_shapes_types_and_balance(suite, name):
    task = suite[name]
    assert task.name == name
    assert 6 <= len(task.classes) == len(set(task.classes)) <= 12
    for images, labels, count in (
        (task.train_images, task.train_labels, 600),
        (task.test_images, task.test_labels, 300),
    ):
        assert images.shape == (count, 32, 32, 3)
        assert images.dtype == np.uint8
        assert labels.shape == (count,)
        assert labels.dtype == np.int64
        held = np.bincount(labels, minlength=len(task.classes))
        assert len(held) == len(task.classes)
        assert held.max() - held.min() <= 1
        assert 60 < images.mean() < 200
        assert images.std() > 30
        assert images.std(axis=(1, 2, 3)).min() > 3, "a blank image"


@pytest.mark.parametrize("name", DEMO_8)
def test_no_image_is_in_both_splits(suite, name):
    task = suite[name]
    train, test = digest(task.train_images), digest(task.test_images)
    assert len(train) == 600
    assert len(test) == 300
    assert not train & test


@pytest.mark.parametrize("name", [*DEMO_8, *more_tasks(5)])
def test_same_call_same_pixels_other_seed_other_pixels(name):
    first, again, other = (render_task(name, train=24, test=12, seed=seed) for seed in (3, 3, 4))
    for a, b in zip(first[3:], again[3:], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not digest(first.train_images) & digest(other.train_images)
    assert first.classes == other.classes


def test_the_size_of_train_does_not_change_test():
    np.testing.assert_array_equal(
        render_task("signs", train=12, test=12).test_images, render_task("signs", train=30, test=12).test_images
    )


def test_handwritten_digits_run_out_evenly_and_stay_apart():
    task = render_task("digits", train=5000, test=5000)
    assert np.bincount(task.train_labels).tolist() == [114] * 10
    assert np.bincount(task.test_labels).tolist() == [60] * 10


def test_figures_conflict_same_images_other_labels(suite):
    by_form, by_pattern = suite["figures_form"], suite["figures_pattern"]
    assert not set(by_form.classes) & set(by_pattern.classes)
    # The two look alike: channel means and spreads over the split agree within a few grey levels.
    np.testing.assert_allclose(by_form.train_images.mean((0, 1, 2)), by_pattern.train_images.mean((0, 1, 2)), atol=8)
    np.testing.assert_allclose(by_form.train_images.std((0, 1, 2)), by_pattern.train_images.std((0, 1, 2)), atol=8)


@pytest.mark.parametrize("name", DEMO_8)
def test_mean_colour_does_not_solve_a_task(suite, name):
    task = suite[name]
    model = NearestCentroid().fit(task.train_images.mean((1, 2)), task.train_labels)
    assert model.score(task.test_images.mean((1, 2)), task.test_labels) <= 2 / len(task.classes)


@pytest.mark.parametrize("name", DEMO_8)
def test_a_linear_classifier_on_pixels_does_not_solve_a_task(suite, name):
    task = suite[name]
    train, test = (images.reshape(len(images), -1) / 255 for images in (task.train_images, task.test_images))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=60, tol=1e-2))
    assert model.fit(train, task.train_labels).score(test, task.test_labels) < LINEAR_BOUND.get(name, 0.7)


def test_stripes_are_upright_and_periodic_at_angle_zero():
    class NoTurn:
        def uniform(self, low, high, size=None):
            return 0.0 if size is None else np.zeros(size)

    stripes = np.asarray(pattern("stripes", NoTurn(), period_px=4.0))  # type: ignore[arg-type]
    assert (stripes == stripes[0]).all()
    np.testing.assert_array_equal(stripes[0], np.roll(stripes[0], 12))
    assert stripes.mean() == pytest.approx(127.5)


@pytest.mark.parametrize("kind", PATTERNS)
def test_patterns_show_both_tones(kind):
    mask = np.asarray(pattern(kind, np.random.default_rng(0), period_px=5.0))
    assert mask.shape == (96, 96)
    assert 0.15 < (mask > 0).mean() < 0.85


@pytest.mark.parametrize("symbol", sorted(STROKES))
def test_glyphs_stay_in_their_frame(symbol):
    for stroke in outlines(symbol):
        assert stroke.ndim == 2
        assert len(stroke) >= 2
        assert np.abs(stroke).max() <= 1


def test_more_tasks_are_distinct_and_render():
    names = more_tasks(300)
    assert len(set(names)) == 300
    assert not set(names) & set(DEMO_8)
    assert more_tasks(7) == names[:7]
    assert more_tasks(0) == ()
    for name in names[:10]:
        task = render_task(name, train=24, test=12)
        assert 6 <= len(task.classes) <= 12
        assert set(task.train_labels.tolist()) == set(range(len(task.classes)))
    assert render_task(names[0], train=2, test=1).classes != render_task(names[5], train=2, test=1).classes


@pytest.mark.parametrize("name", ["cifar10", "letters-", "letters-x", "digits-3", "", "letters_sans-1"])
def test_unknown_names_are_refused_with_the_known_ones(name):
    with pytest.raises(DataError, match=r"unknown task .*letters_sans"):
        render_task(name)


@pytest.mark.parametrize("counts", [{"train": 0}, {"test": -1}])
def test_counts_below_one_are_refused(counts):
    with pytest.raises(DataError, match="at least 1"):
        render_task("signs", **counts)
