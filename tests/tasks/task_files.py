"""Small datasets on disk, in the forms that users have them."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from matu.errors import DataError
from matu.tasks import Task, load_tasks


def pixels(shade: int, size: int = 8) -> np.ndarray:
    """An RGB image uint8 [size, size, 3] unlike any other shade's."""
    return np.random.default_rng(shade).integers(0, 256, (size, size, 3), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def truncated_png() -> bytes:
    return png(pixels(99, 32))[:1500]


def write_parquet(
    folder: Path,
    train: Sequence[tuple[bytes | None, object]],
    test: Sequence[tuple[bytes | None, object]],
    classes: Sequence[str] | None = ("cat", "dog"),
    *,
    columns: tuple[str, str] = ("image", "label"),
    info: Mapping[str, object] | None = None,
) -> Path:
    """A parquet folder of (encoded image, label) rows; `classes` are stored as the datasets library does."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", train), ("test", test)):
        images = pa.array(
            [None if data is None else {"bytes": data, "path": f"{i}.png"} for i, (data, _) in enumerate(rows)],
            pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        )
        labels = pa.array([label for _, label in rows], pa.int64() if classes is not None or not rows else None)
        table = pa.table({columns[0]: images, columns[1]: labels})
        if classes is not None:
            kinds = {
                columns[0]: {"_type": "Image"},
                columns[1]: {"names": list(classes), "_type": "ClassLabel"},
            }
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": kinds}})})
        pq.write_table(table, folder / f"{split}.parquet")
    if info is not None:
        (folder / "info.json").write_text(json.dumps(info))
    return folder


def pet_rows(count: int = 6, first: int = 0) -> list[tuple[bytes, int]]:
    """Rows whose labels alternate 0, 1, 0, 1, ..."""
    return [(png(pixels(first + i)), i % 2) for i in range(count)]


def write_pets(folder: Path) -> Path:
    """A sound parquet task: 6 training and 4 test images of two classes."""
    return write_parquet(folder, pet_rows(6), pet_rows(4, first=50))


def write_image_folder(folder: Path, classes: Sequence[str] = ("cat", "dog"), each: int = 2) -> Path:
    for s, split in enumerate(("train", "test")):
        for c, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for i in range(each):
                (folder / split / name / f"{i}.png").write_bytes(png(pixels(100 * s + 10 * c + i)))
    return folder


def load(tmp_path: Path, *references: str, **settings: object) -> list[Task]:
    """load_tasks at 8 px, with its cache and the data root in tmp_path."""
    given = {"image_size": 8, "data_root": tmp_path, "cache_dir": tmp_path / "cache", **settings}
    return load_tasks(references, **given)  # type: ignore[arg-type]


def problem(tmp_path: Path, *references: str, **settings: object) -> str:
    """What load says is wrong."""
    with pytest.raises(DataError) as raised:
        load(tmp_path, *references, **settings)
    return str(raised.value)
