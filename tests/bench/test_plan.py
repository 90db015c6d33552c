from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w

from matu.bench.options import parse_spec, with_options
from matu.bench.plan import Comparison
from matu.bench.saved import comparison_of, differences, load_saved, read_comparison
from matu.config import FederationConfig, MachineConfig, RunConfig, TrainingConfig, WireConfig
from matu.errors import ConfigError
from matu.methods import find_method, method_names

BASE = RunConfig(federation=FederationConfig(clients=4, rounds=10, participation=0.5))


def rates(comparison: Comparison, rate: float = 1e-3) -> dict[str, float]:
    return dict.fromkeys(comparison.tuned(), rate)


def test_by_default_every_method_runs_in_both_settings_references_first() -> None:
    comparison = Comparison(BASE)
    assert set(comparison.methods) == set(method_names())
    assert comparison.methods[:2] == ("individual", "local")
    assert comparison.methods[-2:] == ("matu", "matu_plus")
    assert comparison.settings == {"single": {"zeta_t": 0.0}, "many": {"zeta_t": 0.5}}
    assert comparison.tune_setting == "many"


def test_cells_carry_setting_method_seed_and_rate() -> None:
    comparison = Comparison(BASE, methods=("matu", "mat_fl rounds=30 clusters=5"), seeds=(3, 4))
    cells = comparison.cells({"matu": 3e-3, "mat_fl": 3e-4})
    assert len(cells) == 2 * 2 * 2
    assert [c.seed for c in cells] == [3] * 4 + [4] * 4, "a seed is finished before the next begins"
    cell = next(c for c in cells if c.setting == "single" and c.method.startswith("mat_fl"))
    f = cell.config.federation
    assert (f.method, f.options, f.rounds, f.zeta_t) == ("mat_fl", ("clusters=5",), 30, 0.0)
    assert (cell.config.training.learning_rate, cell.config.machine.seed) == (3e-4, 3)
    assert len({c.folder for c in cells}) == len({c.hash for c in cells}) == 8


def test_a_cells_hash_is_the_same_on_another_machine_and_not_for_another_number() -> None:
    def hash_of(base: RunConfig, **more: object) -> str:
        comparison = Comparison(base, methods=("matu",), **more)  # type: ignore[arg-type]
        return comparison.cells(rates(comparison))[0].hash

    elsewhere = with_options(BASE, {"device": "cuda", "precision": "bfloat16", "threads": 7})
    assert hash_of(elsewhere) == hash_of(BASE)
    assert hash_of(with_options(BASE, {"rounds": 11})) != hash_of(BASE)
    assert hash_of(BASE, seeds=(1,)) != hash_of(BASE)


def test_a_built_in_method_of_another_revision_is_another_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    def hash_now() -> str:
        comparison = Comparison(BASE, methods=("matu",))
        return comparison.cells(rates(comparison))[0].hash

    before = hash_now()
    monkeypatch.setattr("matu.methods.matu.Matu.revision", 1)
    assert hash_now() != before


def test_defaults_do_not_change_without_a_revision() -> None:
    # Finished cells are found by a hash without defaults: who changes a line here counts its revision up.
    methods = {name: find_method(name) for name in method_names()}
    assert {name: (kind.revision, vars(kind.Options())) for name, kind in methods.items()} == {
        "fedavg": (0, {}), "fedper": (0, {}), "fedprox": (0, {"mu": 0.01}), "ffa_lora": (0, {}),
        "individual": (1, {}), "local": (0, {}), "mat_fl": (0, {"grouping": "hard", "clusters": 3}), "matu": (0, {}),
        "matu_plus": (0, {"step": 0.3, "momentum": 0.7, "anneal": 10.0, "evidence": True}),
        "ntk_fedavg": (0, {"server_step": 1.0}), "per_task_fedavg": (0, {}), "task_arithmetic": (0, {"scale": 0.3}),
        "ties": (0, {"keep": 0.2, "scale": 1.0}), "true_signs": (0, {}),
    }  # fmt: skip


def test_individual_knows_no_clients_and_has_one_cell_for_all_settings() -> None:
    comparison = Comparison(BASE, methods=("individual", "local"))
    cells = comparison.cells(rates(comparison))
    assert len({c.folder for c in cells if c.method == "individual"}) == 1
    assert len({c.folder for c in cells if c.method == "local"}) == 2
    steps = Comparison(with_options(BASE, {"local_steps": 5}), methods=("individual",))
    assert len({c.hash for c in steps.cells(rates(steps))}) == 2, "counted in steps, its budget depends on the holders"


def test_tuning_is_short_held_out_and_once_for_every_way_to_train() -> None:
    methods = ("matu", "matu rule=off", "fedavg", "fedavg balanced=true uplink=3bit")
    comparison = Comparison(BASE, methods=methods, seeds=(5, 6), tune_rounds=3)
    cells = comparison.tuning_cells()
    tuned = ("matu", "fedavg", "fedavg balanced=true")
    assert [(c.method, c.learning_rate) for c in cells] == [(m, r) for m in tuned for r in (3e-4, 1e-3, 3e-3)]
    assert [c.config.training.balanced for c in cells] == [False] * 6 + [True] * 3
    rates = {"matu": 1.0, "fedavg": 2.0, "fedavg balanced=true": 3.0}
    assert [c.learning_rate for c in comparison.cells(rates)][:8:2] == [1.0, 1.0, 2.0, 3.0]
    for cell in cells:
        c = cell.config
        assert (c.federation.rounds, c.evaluation.held_out, c.machine.seed, c.matu.rule) == (3, True, 5, "average")
    assert not Comparison(BASE, methods=("matu",), learning_rates=(1e-3,)).tuning_cells()


def test_the_options_of_a_method_and_of_the_run_stand_side_by_side() -> None:
    assert parse_spec("fedprox mu=0.1 rounds=7") == ("fedprox", {"rounds": 7}, ["mu=0.1"])
    assert parse_spec("matu unification=false top_k=0") == ("matu", {"unification": False, "top_k": 0}, [])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("fedsgd", "unknown; expected one of .*fedavg"),
        ("fedprox nu=1", "'nu=1'; FedProx takes mu=0.01"),
        ("fedavg mu=1", "'mu=1'; FedAvg takes no option"),
        ("fedprox mu=x", "mu = 'x'"),
        ("fedprox mu=-1", "mu -1.0: expected 0 or more"),
        ("matu top_k=a", "'a'; expected something like 3"),
        ("matu unification=maybe", "'maybe'"),
    ],
)
def test_a_method_asked_for_what_it_does_not_have_is_refused(spec: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Comparison(BASE, methods=(spec,)).check()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": ()}, "seeds"),
        ({"seeds": (1, 1)}, "each once"),
        ({"settings": {"a": {"zeta": 1}}}, "setting 'a': unknown option 'zeta'"),
        ({"settings": {"a": {"zeta_t": "x"}}}, "expected a number"),
        ({"tune_setting": "x"}, "tune_setting 'x'"),
        ({"tune_rounds": 0}, "tune_rounds 0"),
        ({"target": 2.0}, "target 2"),
        ({"axis": "tasks_per_client"}, "axis"),
        ({"learning_rates": (-1.0,)}, "learning_rate -1"),
        ({"methods": ("matu rule=off", "matu  rule=off")}, "each once"),
        ({"settings": {"a": {"backbone": "vit-mini"}}}, "'backbone' is shared by all"),
    ],
)
def test_what_cannot_work_is_told_before_any_work(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Comparison(BASE, **{"methods": ("matu",), **changes}).check()  # type: ignore[arg-type]


def test_settings_that_the_base_makes_follow_it() -> None:
    made = Comparison(BASE)
    assert made.on(with_options(BASE, {"zeta_t": 0.2})).settings == {"single": {"zeta_t": 0.0}, "many": {"zeta_t": 0.2}}
    three = made.on(with_options(BASE, {"tasks_per_client": 3}))
    assert three.settings["many"] == {"tasks_per_client": 3}
    tasks = {c.setting: c.config.federation.tasks_per_client for c in three.cells(rates(three))}
    assert tasks == {"single": 0, "many": 3}
    named = Comparison(BASE, {"a": {"zeta_t": 0.1}, "b": {"zeta_t": 0.2}}, ("matu",))
    assert named.on(with_options(BASE, {"rounds": 3})).settings == named.settings
    with pytest.raises(ConfigError, match=r"zeta_t = 0\.3: every setting of the comparison sets it by itself"):
        named.on(with_options(BASE, {"zeta_t": 0.3}))


def test_a_file_that_is_called_like_another_method_is_refused(tmp_path: Path) -> None:
    mine = tmp_path / "fedavg.py"
    mine.write_text("from matu.methods.fedavg import FedAvg\n\n\nclass Mine(FedAvg):\n    pass\n")
    with pytest.raises(ConfigError, match="several are called fedavg"):
        Comparison(BASE, methods=("fedavg", str(mine))).check()


def test_individual_spends_what_a_round_really_draws() -> None:
    base = with_options(BASE, {"clients": 8, "participation": 0.2})  # 1.6 clients a round: 2
    comparison = Comparison(base, methods=("individual",))
    (cell,) = comparison.cells(rates(comparison))[:1]
    assert cell.config.federation.participation == 0.25


def test_a_file_describes_a_comparison(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        "[federation]\nrounds = 7\n[compare]\nmethods = ['matu', 'fedavg']\nseeds = [1, 2]\naxis = 'tasks_per_client'\n"
        "learning_rates = [1e-3]\ntarget = 1\n[settings.2-tasks]\ntasks_per_client = 2\n"
    )
    found = read_comparison(path)
    assert (found.methods, found.seeds, found.learning_rates, found.target) == (("matu", "fedavg"), (1, 2), (1e-3,), 1)
    assert found.base.federation.rounds == 7
    assert found.settings == {"2-tasks": {"tasks_per_client": 2}}
    assert comparison_of(found.table(), "again") == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[compare]\nmethod = 'matu'", r"\[compare\]: unknown 'method'; known are methods, seeds"),
        ("[compare]\nmethods = 'matu'", "expected a list"),
        ("[compare]\nseeds = [0.5]", "seeds"),
        ("[compare]\ntune_rounds = 'a'", "tune_rounds"),
        ("settings = 3", r"expected sections \[settings.NAME\]"),
        ("[federaton]\nrounds = 1", "unknown 'federaton'"),
    ],
)
def test_a_broken_file_is_told(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_comparison(path)


def test_a_folder_may_grow_by_methods_seeds_and_settings_and_nothing_else() -> None:
    saved = Comparison(BASE, methods=("matu",)).table()
    more = Comparison(BASE, {"single": {"zeta_t": 0.0}, "k2": {"tasks_per_client": 2}}, ("fedavg",), seeds=(7,))
    assert not differences(saved, more.table())
    faster = RunConfig(BASE.tasks, BASE.model, BASE.federation, machine=MachineConfig(threads=2, precision="bfloat16"))
    assert not differences(saved, Comparison(faster).table())
    here, there = (
        with_options(BASE, {"tasks": (f"{at}/birds", "demo:digits"), "backbone": f"{at}/vit"}) for at in "ab"
    )
    assert not differences(Comparison(here).table(), Comparison(there).table()), "where they lie is no difference"
    other = RunConfig(BASE.tasks, BASE.model, BASE.federation, TrainingConfig(batch_size=3))
    assert differences(saved, Comparison(other).table()) == ["batch_size: 64 there, 3 here"]
    assert not differences(saved, Comparison(BASE, learning_rates=(3e-4, 1e-3, 3e-3, 1e-2)).table())
    assert differences(saved, Comparison(BASE, learning_rates=(1e-3,)).table()) == [
        "learning_rates: [0.0003, 0.001, 0.003] there, which [0.001] leaves out"
    ]
    assert differences(saved, Comparison(BASE, {"many": {"zeta_t": 0.1}}).table()) == [
        "setting 'many': {'zeta_t': 0.5} there, {'zeta_t': 0.1} here"
    ]


def test_what_the_plan_sets_itself_is_refused_elsewhere() -> None:
    for option in ("learning_rate=5e-4", "method=fedavg", "held_out=true"):
        with pytest.raises(ConfigError, match=r"the comparison itself sets it|takes"):
            Comparison(BASE, methods=(f"matu {option}",)).check()
    with pytest.raises(ConfigError, match="'learning_rate' is not for a setting"):
        Comparison(BASE, {"a": {"learning_rate": 0.1}}, ("matu",)).check()
    with pytest.raises(ConfigError, match="held_out"):
        Comparison(with_options(BASE, {"held_out": True})).check()


def test_a_methods_file_is_known_by_name_and_content(tmp_path: Path) -> None:
    text = "from matu.methods.fedavg import FedAvg\n\n\nclass Mine(FedAvg):\n    pass\n"
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(text)

    def cell(folder: str):
        comparison = Comparison(BASE, methods=(f"{tmp_path / folder / 'mine.py'} rounds=3",))
        return comparison.cells(rates(comparison))[0]

    assert cell("here").folder == cell("there").folder
    assert cell("here").folder.startswith("single-mine-rounds3-s0-")
    assert str(tmp_path) not in str(cell("here"))
    kept = cell("here")
    before = kept.folder
    (tmp_path / "here" / "mine.py").write_text(text + "\n\nX = 1\n")
    assert kept.folder == before, "a cell keeps its name while it runs"
    assert cell("here").folder != before, "another content is another method"


def test_folders_count_by_name_and_defaults_not_at_all() -> None:
    def hash_of(**changes: object) -> str:
        comparison = Comparison(with_options(BASE, changes), methods=("matu",))
        return comparison.cells(rates(comparison))[0].hash

    assert hash_of(tasks=["/a/flowers"]) == hash_of(tasks=["/b/flowers"]) != hash_of(tasks=["/b/birds"])
    assert hash_of(backbone="/a/vit") == hash_of(backbone="/b/vit")
    assert hash_of(tasks=["hub:a/x"]) != hash_of(tasks=["hub:b/x"])


def test_only_some_settings_may_be_run() -> None:
    comparison = Comparison(BASE, methods=("matu",), only=("single",))
    assert {c.setting for c in comparison.cells(rates(comparison))} == {"single"}
    assert {c.setting for c in comparison.tuning_cells()} == {"many"}, "rates are tuned in the same form for all"
    with pytest.raises(ConfigError, match="settings few: expected some of single, many"):
        Comparison(BASE, only=("few",)).check()


def test_a_comparison_saved_before_an_option_was_there_goes_on(tmp_path: Path) -> None:
    exact = replace(BASE, wire=WireConfig.exact())
    table = Comparison(exact).table()
    older = {name: section for name, section in table.items() if name not in ("wire", "defence")}
    (tmp_path / "compare.toml").write_text(tomli_w.dumps(older))
    saved = load_saved(tmp_path / "compare.toml")
    assert saved is not None
    assert not differences(saved, table)
    assert any(said.startswith("uplink: 'float32' there") for said in differences(saved, Comparison(BASE).table()))


def test_cells_keep_their_names_when_messages_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    # the folders of committed results: their hashes were made before there were codecs, and individual had a revision
    monkeypatch.setattr("matu.methods.individual.Individual.revision", 0)
    pilot = read_comparison(Path(__file__).parents[2] / "configs" / "real8-pilot.toml")
    folders = {cell.folder for cell in pilot.cells(dict.fromkeys(pilot.tuned(), 1e-3))}
    there = Path(__file__).parents[2] / "docs" / "results" / "real8" / "pilot" / "cells"
    assert folders == {path.name for path in there.iterdir()}


def test_a_baseline_is_a_method() -> None:
    Comparison(BASE, methods=("fedavg", "matu rule=off"), baseline="matu rule=off").check()
    with pytest.raises(ConfigError, match="method 'best': unknown"):
        Comparison(BASE, methods=("fedavg",), baseline="best").check()
