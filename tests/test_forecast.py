"""What messages will weigh, held to what they did weigh."""

import dataclasses
import json
from pathlib import Path

import pytest

from matu.cli import run_command
from matu.config import FederationConfig, RunConfig, WireConfig
from matu.errors import ConfigError
from matu.forecast import as_table, as_text, forecast
from matu.report import Display
from matu.roots import Roots
from matu.simulate import simulate
from test_simulate import small

METHODS = ("matu", "fedavg", "per_task_fedavg", "fedper", "mat_fl", "ffa_lora")


@pytest.fixture
def roots(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Roots:
    return Roots(data=tiny_data, models=None, cache=tmp_path_factory.getbasetemp() / "cache")


def config_of(vit: Path, method: str, wire: WireConfig) -> RunConfig:
    """Everybody takes part, so that the mean over the messages is that over the clients."""
    config = small(vit, participation=1.0, rounds=2, evaluate_every=0)
    federation = dataclasses.replace(config.federation, method=method)
    return dataclasses.replace(config, federation=federation, wire=wire)


@pytest.mark.parametrize("method", METHODS)
def test_exact_messages_are_foretold_to_the_byte(tiny_vit: Path, roots: Roots, tmp_path: Path, method: str) -> None:
    config = config_of(tiny_vit, method, WireConfig.exact())
    found = forecast(config, roots)
    assert found[0] == found[1]
    bytes_ = simulate(config, tmp_path / "run", roots, Display(quiet=True))["bytes"]
    for way, direction in (("up", "uplink"), ("down", "downlink")):
        for share, mean in getattr(found[0], way).items():
            assert 8 * mean == bytes_[direction][share], (direction, share)  # two rounds of four clients
        total = as_table(config, found)["configured"][way]["total_bytes"]
        assert total == pytest.approx(bytes_[f"{direction}_total"])


def test_coded_messages_are_foretold_about(tiny_vit: Path, roots: Roots, tmp_path: Path) -> None:
    config = config_of(tiny_vit, "matu", WireConfig())
    found = forecast(config, roots)
    simulate(config, tmp_path / "run", roots, Display(quiet=True))
    second = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1])  # the first starts from zero
    for way, direction in (("up", "uplink"), ("down", "downlink")):
        assert 4 * found[0].total(way) == pytest.approx(second[f"{direction}_bytes"], rel=0.1)
    assert "as configured over the paper's form" in as_text(config, found)


def test_a_reference_sends_nothing(roots: Roots) -> None:
    with pytest.raises(ConfigError, match="'local': sends no messages"):
        forecast(RunConfig(federation=FederationConfig(method="local")), roots)


def test_the_command_prints_the_table(tiny_vit: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bits", "--tasks", "left", "right", "--image-size", "8", "--backbone", str(tiny_vit), "--rank", "4",
             "--clients", "4", "--min-samples", "4", "--data-root", str(tiny_data)]  # fmt: skip
    assert run_command(words) == 0
    assert "matu: kB of a client's message, mean over 4 clients; 100 messages each way" in capsys.readouterr().out
    assert run_command([*words, "--json"]) == 0
    assert '"papers_form"' in capsys.readouterr().out
