"""Small benchmarks in the published formats, with questions that the demo can answer."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support.web import ROOT

SAMPLE = ROOT / "configs" / "demo" / "sample.png"
COLUMNS = (
    "index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source",
    "l2-category", "comment", "split",
)  # fmt: skip
COLOURS = {"A": "red", "B": "green", "C": "blue", "D": "yellow"}


def picture(colour: str = "red", kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, kind)
    return file.getvalue()


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def mmbench_row(index: int, /, **more: Any) -> dict[str, str]:
    row: dict[str, Any] = {
        "index": index, "question": "What colour is the shape?", "answer": "A",
        "category": "attribute_recognition", "l2-category": "coarse_perception",
        "image": base64_of(SAMPLE.read_bytes()), "split": "dev", **COLOURS,
    }  # fmt: skip
    return {key: str(value) for key, value in (row | more).items()}


def write_mmbench(path: Path, rows: Sequence[dict[str, str]], columns: Any = COLUMNS) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_mme(folder: Path) -> Path:
    """Two pictures of `count` side by side with their texts, one of `artwork` in two folders."""
    for task, texts, images in (
        ("count", "count", "count"),
        ("artwork", "artwork/questions_answers_YN", "artwork/images"),
    ):
        (folder / texts).mkdir(parents=True)
        (folder / images).mkdir(parents=True, exist_ok=True)
        for name in ("0001", "0002") if task == "count" else ("9",):
            (folder / images / f"{name}.png").write_bytes(SAMPLE.read_bytes())
            lines = [
                "Is there a star? Please answer yes or no.\tYes",
                "Is there a circle? Please answer yes or no.\tNo",
            ]
            (folder / texts / f"{name}.txt").write_text("\n".join(lines), "utf-8")
    return folder


def mmmu_row(number: int, /, **more: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": f"validation_Art_Theory_{number}",
        "question": "What colour is the shape in <image 1>?",
        "options": "['red', 'green', 'blue', 'yellow']",
        "explanation": "",
        **{f"image_{i}": None for i in range(1, 8)},
        "image_1": {"bytes": SAMPLE.read_bytes(), "path": "1.png"},
        "img_type": "['Paintings']",
        "answer": "A",
        "topic_difficulty": "Easy",
        "question_type": "multiple-choice",
        "subfield": "Drawing",
    }
    return row | more


def cmmmu_row(number: int, /, **more: Any) -> dict[str, Any]:
    """Returns a row as in the parquet files."""
    row: dict[str, Any] = {
        "id": number, "type": "选择", "source_type": "website", "source": "none",
        "question": "这个图形<图片 1>是什么颜色？",
        "option1": "红色", "option2": "绿色", "option3": "蓝色", "option4": "黄色",
        "image_1": {"bytes": SAMPLE.read_bytes(), "path": "1.png"}, "image_2": None,
        "answer": "A", "analysis": None, "distribution": "本科", "difficulty_level": "easy",
        "subcategory": "设计", "category": "艺术与设计", "subfield": "['色彩']",
    }  # fmt: skip
    return row | more


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    import pyarrow
    from pyarrow import parquet

    struct = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    fields = [
        (name, struct if name.startswith("image_") else pyarrow.array([rows[0][name]]).type)
        for name in rows[0]
    ]
    table = pyarrow.Table.from_pylist(list(rows), schema=pyarrow.schema(fields))
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)
    return path


def write_cmmmu_json(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes it as in the benchmark's repository: JSON lines, with the pictures beside them."""
    folder.mkdir(parents=True)
    lines = []
    for row in rows:
        plain = {key: value for key, value in row.items() if not key.startswith("image_")}
        name = f"q_{row['id']:05}_001.png"
        (folder / name).write_bytes(SAMPLE.read_bytes())
        lines.append(json.dumps(plain | {"img_list": [name]}, ensure_ascii=False))
    path = folder / "art_and_design.jsonl"
    path.write_text("\n".join(lines), "utf-8")
    return path
