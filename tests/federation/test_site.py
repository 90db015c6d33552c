from pathlib import Path

import pytest

from matu.errors import DataError
from matu.federation.site import Site
from matu.tasks import class_list
from matu.wire import Envelope
from world import ask, tiny_site


@pytest.fixture(scope="module")
def site(tiny_vit: Path) -> Site:
    return tiny_site(tiny_vit)


def test_a_site_answers_with_its_update(site: Site) -> None:
    envelope = Envelope(site(ask(site)))
    update = envelope.header
    assert (update.kind, update.site, update.round) == ("update", "north", 1)
    assert update.samples == (30, 10)
    assert update.metrics["images"] == 40
    opened = envelope.tensors(site.method.uplink_parts(update.tasks), site.method.downlink({}, "north", update.tasks))
    assert set(opened) == {"vector", "masks", "rescalers", "head/left", "head/right"}


def test_its_answer_depends_on_seed_round_and_message_alone(site: Site) -> None:
    assert site(ask(site)) == site(ask(site))
    assert site(ask(site)) != site(ask(site, round=2))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"class_lists": ("4:0000", "3:0000")}, "task 'left': 3 classes here, 4 at the server"),
        ({"class_lists": (class_list(["bar-1", "bar-0", "bar-2"]), "?")}, "other names or another order"),
        ({"site": "south"}, "site 'south', here it is 'north'"),
        ({"method": "fedavg"}, "method 'fedavg'"),
        ({"fingerprint": "0" * 64}, "fingerprint '0000"),
        ({"run": "1" * 32}, "run '1111"),
        ({"kind": "update"}, "kind 'update'"),
        ({"tasks": ("right", "left")}, "tasks"),
    ],
)
def test_a_message_that_is_not_for_this_site_is_refused(site: Site, changes: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        site(ask(site, **changes))
