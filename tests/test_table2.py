"""The paper's own configuration, from a folder of its eight datasets and a ViT-B/32, both of the right form only."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

from matu.cli import run_command
from matu.tasks.paper import EIGHT, PAPER

CONFIG = Path(__file__).parents[1] / "configs" / "table2.toml"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ with the eight datasets (a few images a class), models/ with a random ViT-B/32 of the paper's name."""
    root = tmp_path_factory.mktemp("paper")
    draw = np.random.default_rng(0)
    for name in EIGHT:
        classes = PAPER[name].classes
        assert classes is not None
        for split, least in (("train", 150), ("test", 10)):
            for label in range(classes):
                folder = root / "data" / name / split / f"class {label:03}"
                folder.mkdir(parents=True)
                for i in range(max(1, -(-least // classes))):
                    Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    torch.manual_seed(0)
    config = ViTConfig(image_size=224, patch_size=32)
    ViTModel(config, add_pooling_layer=False).save_pretrained(
        root / "models" / "google" / "vit-base-patch32-224-in21k"
    )  # fmt: skip
    return root


def test_one_round_of_table_2(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folders / "run"
    code = run_command(
        ["run", "--config", str(CONFIG), "--data-root", str(folders / "data"), "--models-root", str(folders / "models"),
         "--cache", str(folders / "cache"), "--out", str(out), "--rounds", "1", "--participation", "0.04",
         "--max-test", "1", "--max-train", "400", "--precision", "float32", "--json"]
    )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    result = json.loads(capsys.readouterr().out)
    assert list(result["tasks"]) == list(EIGHT)
    assert [about["classes"] for about in result["tasks"].values()] == [397, 196, 45, 10, 10, 43, 10, 47]
    note = json.loads((out / "artifact/artifact.json").read_text())
    assert note["adapter"]["dim"] == 884_736, "rank 16 on query, key and value of ViT-B/32"
    assert len(result["clients"]) == 30
    assert result["failures"] == 0


def test_without_the_data_every_dataset_is_told_how_to_get(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matu.tasks.hub.hub_answers", lambda: False)
    code = run_command(
        ["run", "--config", str(CONFIG), "--data-root", str(tmp_path), "--models-root", str(folders / "models"),
         "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "run")]
    )  # fmt: skip
    said = capsys.readouterr().err
    assert code == 2
    for name in EIGHT:
        assert name in said
    assert "train/<class>/" in said
    assert not (tmp_path / "run").exists()
