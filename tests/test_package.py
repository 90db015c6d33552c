"""The wheel that is built holds all it needs, and runs from where it is installed."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("matu-*.whl")
    return found


def test_the_wheel_holds_types_backbone_and_licence_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {"matu/py.typed", "matu/report/templates/run.html", "matu/report/templates/page.css"} <= set(names)
    assert {"config.json", "model.safetensors", "README.md"} <= {
        Path(name).name for name in names if name.startswith("matu/models/vit_mini/")
    }
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert all(name.startswith(("matu/", "matu-")) for name in names)
    assert wheel.stat().st_size < 7e6


def test_the_wheel_installs_and_runs(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, *install], check=True, capture_output=True)
    environment = os.environ | {"PYTHONPATH": str(site), "MATU_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = (
        "-m matu run --tasks demo:digits demo:letters_sans --clients 2 --participation 1 --rounds 1 --zeta-c 1 "
        "--max-train 40 --max-test 20 --min-samples 2 --precision float32 --json"
    )
    done = subprocess.run(
        [sys.executable, *command.split()], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["accuracy"]) == {"digits", "letters_sans"}
    where = subprocess.run(
        [sys.executable, "-c", "import matu; print(matu.__file__)"], env=environment, capture_output=True, text=True
    )
    assert where.stdout.startswith(str(site))
