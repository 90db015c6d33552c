from pathlib import Path

import pytest

from matu.errors import ConfigError
from matu.methods import Method, Reference, find_method, method_name, method_names, method_source
from matu.methods.base import parse_options
from playing import build
from world import tiny_problem

PROBLEM = tiny_problem({"a": 2}, dim=4, features=1)
ONE = "from matu.methods.fedavg import FedAvg\n\nclass Mine(FedAvg):\n    pass\n"
OPTIONS = """
from dataclasses import dataclass
from matu.methods.fedavg import FedAvg

@dataclass(frozen=True)
class Options:
    flag: bool = True
    word: str = "plain"

class Mine(FedAvg):
    Options = Options
"""


def write(folder: Path, content: str, name: str = "mine.py") -> str:
    (folder / name).write_text(content)
    return str(folder / name)


def test_all_methods_have_names() -> None:
    names = method_names()
    assert list(names) == sorted(set(names))
    assert {
        "fedavg", "fedper", "fedprox", "ffa_lora", "individual", "local", "mat_fl", "matu", "ntk_fedavg",
        "per_task_fedavg", "task_arithmetic", "ties",
    } <= set(names)  # fmt: skip
    assert not {"base", "reference", "__init__"} & set(names)


@pytest.mark.parametrize("name", method_names())
def test_every_name_is_a_method_or_a_reference(name: str) -> None:
    kind = find_method(name)
    assert issubclass(kind, Method) != issubclass(kind, Reference)
    assert issubclass(kind, Reference) == (name in ("individual", "local"))
    assert (method_name(name), method_source(name)) == (name, "1" if name == "individual" else "")
    assert parse_options(kind, ()) == kind.Options()


@pytest.mark.parametrize("name", ["fedsgd", "FedAvg", "base", "reference", "", "fedavg ", "matu.fedavg"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"method '{name}': unknown.*fedavg.*matu.*ties"):
        find_method(name)


def test_a_file_with_a_method_is_one(tmp_path: Path) -> None:
    path = write(tmp_path, ONE)
    kind = find_method(path)
    assert kind.__name__ == "Mine"
    assert issubclass(kind, Method)
    assert method_name(path) == "mine"
    first = method_source(path)
    write(tmp_path, ONE + "\n")
    assert len(first) == 64
    assert method_source(path) != first


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("class Mine(\n", "cannot be imported .SyntaxError"),
        ("import nothing_of_this_name\n", "cannot be imported .ModuleNotFoundError"),
        ("raise RuntimeError('no luck')\n", "RuntimeError: no luck"),
        ("from matu.methods.fedavg import FedAvg\n", "defines 0 methods, expected one"),
        ("class Mine:\n    pass\n", "defines 0 methods"),
        ("", "defines 0 methods"),
        (ONE + "class Other(Mine):\n    pass\n", "defines 2 methods, expected one"),
    ],
)
def test_a_file_that_is_not_one_method_is_refused(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"mine\.py.*{said}"):
        find_method(write(tmp_path, content))


def test_a_second_name_for_the_method_is_not_a_second_method(tmp_path: Path) -> None:
    assert find_method(write(tmp_path, ONE + "Default = Mine\n")).__name__ == "Mine"


@pytest.mark.parametrize("path", ["nowhere.py", "folder.py"])
def test_a_file_that_is_not_there_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(ConfigError, match="no such file"):
        find_method(str(tmp_path / path))


@pytest.mark.parametrize(
    ("name", "words", "values"),
    [
        ("fedprox", ("mu=0.1",), {"mu": 0.1}),
        ("fedprox", ("mu=0",), {"mu": 0.0}),
        ("fedprox", ("mu=1e-3",), {"mu": 0.001}),
        ("ntk_fedavg", ("server_step=0.3",), {"server_step": 0.3}),
        ("task_arithmetic", ("scale=-0.5",), {"scale": -0.5}),
        ("ties", ("scale=2", "keep=1"), {"keep": 1.0, "scale": 2.0}),
        ("mat_fl", ("grouping=soft", "clusters=5"), {"grouping": "soft", "clusters": 5}),
    ],
)
def test_options_are_read(name: str, words: tuple[str, ...], values: dict[str, object]) -> None:
    found = vars(build(name, PROBLEM, *words).options)
    assert found == values
    assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in values.items()}


def test_the_defaults_are_those_of_the_definitions() -> None:
    assert vars(build("fedprox", PROBLEM).options) == {"mu": 0.01}
    assert vars(build("ntk_fedavg", PROBLEM).options) == {"server_step": 1.0}
    assert vars(build("ties", PROBLEM).options) == {"keep": 0.2, "scale": 1.0}
    assert vars(build("mat_fl", PROBLEM).options) == {"grouping": "hard", "clusters": 3}


@pytest.mark.parametrize(
    ("name", "word", "said"),
    [
        ("fedavg", "mu=0.1", "no option"),
        ("matu", "top_k=1", "no option"),
        ("individual", "epochs=3", "no option"),
        ("fedprox", "server_step=1", "mu=0.01"),
        ("fedprox", "Mu=1", "mu=0.01"),
        ("fedprox", "mu", "mu=0.01"),
        ("fedprox", "=1", "mu=0.01"),
        ("fedprox", "mu=", "something like 0.01"),
        ("fedprox", "mu=much", "mu = 'much'"),
        ("fedprox", "mu=-0.1", "mu -0.1: expected 0 or more"),
        ("fedprox", "mu=inf", "mu inf"),
        ("fedprox", "mu=nan", "mu nan"),
        ("ntk_fedavg", "server_step=0", "more than 0"),
        ("ntk_fedavg", "server_step=nan", "more than 0"),
        ("ties", "keep=0", "at most 1"),
        ("ties", "keep=1.1", "at most 1"),
        ("ties", "keep=nan", "at most 1"),
        ("ties", "scale=inf", "finite"),
        ("task_arithmetic", "scale=nan", "finite"),
        ("task_arithmetic", "keep=0.5", "scale=0.3"),
        ("mat_fl", "clusters=0", "1 or more"),
        ("mat_fl", "clusters=2.5", "something like 3"),
        ("mat_fl", "grouping=fuzzy", "hard or soft"),
    ],
)
def test_an_option_it_cannot_have_is_refused(name: str, word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^options: .*{said}"):
        parse_options(find_method(name), (word,))


def test_the_options_of_a_file(tmp_path: Path) -> None:
    kind = find_method(write(tmp_path, OPTIONS))
    assert vars(parse_options(kind, ("word=a=b",))) == {"flag": True, "word": "a=b"}


@pytest.mark.parametrize("text", ["false", "False"])
def test_an_option_that_is_switched_off_is_off(tmp_path: Path, text: str) -> None:
    assert parse_options(find_method(write(tmp_path, OPTIONS)), (f"flag={text}",)).flag is False


def test_a_switch_that_is_neither_on_nor_off_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="flag"):
        parse_options(find_method(write(tmp_path, OPTIONS)), ("flag=perhaps",))


def test_a_method_that_leaves_something_out_is_told_what(tmp_path: Path) -> None:
    path = tmp_path / "half.py"
    path.write_text("from matu.methods import Method\n\n\nclass Half(Method):\n    pass\n")
    with pytest.raises(ConfigError, match="Half does not say begin_round, downlink, downlink_parts, local_update"):
        find_method(str(path))
