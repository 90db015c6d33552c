"""A backbone of the hub, from the library's cache: its revision is kept, and used again when the hub has moved on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

FIRST, SECOND = "a" * 40, "b" * 40
SCRIPT = """
import json, os, re, sys
from pathlib import Path
import numpy as np
from PIL import Image
from artifact_cases import leave_artifact
from matu.artifact import load_artifact
from matu.artifact.export import export

cache, here = Path(sys.argv[1]), Path(sys.argv[2])
leave_artifact(here / "a", "someone/tiny-vit")
(cache / "refs/main").write_text("b" * 40)
artifact = load_artifact(here / "a")
trainer, weights = artifact.trainer(), artifact.weights("left")
trainer.model.load(weights.vector)
pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
expected = trainer.predict_as_is(weights.head, pixels[None])
export(artifact, {"left": "."}, here / "to")
os.chdir(here / "to")
Image.fromarray(pixels).save("photo.jpg", format="PNG")
(code,) = re.findall(r"```python\\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
shown = {}
exec(code, shown)
stated = json.loads(Path("adapter_config.json").read_text())
print(json.dumps({
    "backbone": artifact.note["backbone"], "logits": [expected.tolist(), shown["logits"].tolist()],
    "stated": [stated["base_model_name_or_path"], stated["revision"]], "base": "base_model: someone/tiny-vit" in
    Path("README.md").read_text(),
}))
"""


def test_a_revision_is_kept_and_used_again(tiny_vit: Path, tmp_path: Path) -> None:
    cache = tmp_path / "hf/hub/models--someone--tiny-vit"
    for revision in (FIRST, SECOND):
        shutil.copytree(tiny_vit, cache / "snapshots" / revision)
    weights = cache / "snapshots" / SECOND / "model.safetensors"
    save_file({name: 2 * values for name, values in load_file(weights).items()}, weights, {"format": "pt"})
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text(FIRST)
    tests = Path(__file__).parents[1]
    environment = {
        **os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests / "artifact"), str(tests.parent / "src")]),
    }  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(cache), str(tmp_path)], env=environment, capture_output=True, text=True,
        timeout=280,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert (found["backbone"]["name"], found["backbone"]["revision"]) == ("someone/tiny-vit", FIRST)
    assert found["stated"] == ["someone/tiny-vit", FIRST]
    assert found["base"]
    torch.testing.assert_close(*map(torch.tensor, found["logits"]), rtol=1e-4, atol=1e-4)
