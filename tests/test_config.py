import dataclasses
from pathlib import Path

import pytest

from matu.bench import read_comparison
from matu.config import FederationConfig, MachineConfig, RunConfig, TasksConfig, read_config, write_config
from matu.errors import ConfigError
from matu.tables import read_table

CONFIGS = Path(__file__).parents[1] / "configs"


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    config = RunConfig(
        tasks=TasksConfig(tasks=("a", "b"), skip_bad_images=True),
        federation=FederationConfig(clients=3, task_groups=("a+b", "a"), zeta_t=0.0),
        machine=MachineConfig(seed=7, precision="float32"),
    )
    path = tmp_path / "config.toml"
    path.write_bytes(write_config(config))
    assert read_config(path) == config


def test_every_option_is_written() -> None:
    text = write_config(RunConfig()).decode()
    for section in dataclasses.fields(RunConfig):
        assert f"[{section.name}]" in text
        for option in dataclasses.fields(section.default_factory):  # type: ignore[arg-type]
            assert f"{option.name} = " in text


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_the_configs_of_the_repository_are_valid(path: Path) -> None:
    if {"compare", "settings"} & set(read_table(path)):
        read_comparison(path).check()
    else:
        read_config(path).check()


def test_a_comparison_is_no_run() -> None:
    with pytest.raises(ConfigError, match="describes a comparison of several runs; matu compare --config"):
        read_config(CONFIGS / "figure5.toml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rounds = 3", "unknown 'rounds'; known are tasks, model, federation"),
        ("[federation]\nround = 3", r"\[federation\]: unknown 'round'; known are method, options, clients"),
        ("[federation]\nrounds = 3.5", "rounds: 3.5; expected a whole number"),
        ("[federation]\nrounds = true", "rounds: True; expected a whole number"),
        ("[federation]\nzeta_c = '1'", "zeta_c: '1'; expected a number"),
        ("[tasks]\ntasks = 'demo-8'", "expected a list"),
        ("[tasks]\ntasks = [1]", "expected text"),
        ("[tasks]\nskip_bad_images = 1", "expected true or false"),
        ("[matu]\nrule = 'mean'", "'mean'; expected one of average, half_sum, literal, off"),
        ("tasks = 3", r"\[tasks\]: expected a section"),
        ("[tasks", "cannot be read as TOML"),
    ],
)
def test_a_broken_file_is_refused_with_what_would_be_right(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such"):
        read_config(tmp_path / "nowhere.toml")


def test_a_whole_number_may_stand_for_a_float(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[federation]\nzeta_c = 1")
    assert read_config(path).federation.zeta_c == 1.0


@pytest.mark.parametrize(
    ("section", "option", "value"),
    [
        ("tasks", "tasks", ()), ("model", "rank", 0), ("federation", "participation", 0.0),
        ("federation", "participation", 1.5), ("federation", "zeta_c", 0.0), ("federation", "zeta_t", -1.0),
        ("federation", "clients", 0), ("training", "batch_size", 0), ("training", "learning_rate", float("nan")),
        ("matu", "agreement_threshold", 1.1), ("matu", "top_k", -1), ("machine", "seed", -1),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(section: str, option: str, value: object) -> None:
    changed = dataclasses.replace(getattr(RunConfig(), section), **{option: value})
    with pytest.raises(ConfigError, match=option):
        dataclasses.replace(RunConfig(), **{section: changed}).check()


def test_all_that_is_wrong_is_told_at_once() -> None:
    wrong = RunConfig(federation=FederationConfig(clients=0, rounds=0))
    with pytest.raises(ConfigError, match=r"clients 0.*rounds 0"):
        wrong.check()


def test_the_digest_follows_every_value() -> None:
    assert RunConfig().digest() == RunConfig().digest()
    assert RunConfig(machine=MachineConfig(seed=1)).digest() != RunConfig().digest()
