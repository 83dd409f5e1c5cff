"""Repositories on the Hub as datasets of a mixture: downloaded and streamed, by the code that talks to the real Hub."""

import io
import json
import os
import subprocess
import sys

import datasets
import pytest
import yaml

from hub_server import HubServer
from instructblip_hf.data.sources.shapes_world import ShapesWorld
from tiny_shapes import save_tiny_checkpoint


SCRIPT = """
import json
from itertools import islice
from instructblip_hf.training import load_recipe, prepare_run
from instructblip_hf.utils.images import load_image

results = []
for kind in ("downloaded", "streamed"):
    run = prepare_run(load_recipe(f"{kind}.yaml"), kind)
    dataset = run.trainer.train_dataset
    drawn = islice(dataset, 60) if kind == "streamed" else map(dataset.__getitem__, range(60))
    rows = [
        [row["dataset"], row["prompt"], row["completion"], load_image(row["images"][0]).tobytes().hex()]
        for row in drawn
    ]
    run.run()
    logged = sorted({key for entry in run.trainer.state.log_history for key in entry})
    results.append([type(dataset).__name__, dataset.mixture.sizes, rows, logged])
with open("results.json", "w") as file:
    json.dump(results, file)
"""

WORLD = ShapesWorld(0, tasks=["color", "shape"])


def parquet(rows):
    file = io.BytesIO()
    features = datasets.Features({key: datasets.Value("string") for key in rows[0]} | {"image": datasets.Image()})
    table = datasets.Dataset.from_list(rows, features=features)
    table.to_parquet(file)
    return file.getvalue()


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        own = [WORLD.example(number) for number in range(8)]
        own = [{"prompt": row["prompt"], "completion": row["completion"], "image": row["images"][0]} for row in own]
        questions = [WORLD.example(number) for number in range(20, 25)]
        okvqa = [
            {"question": row["prompt"], "answer": row["completion"], "qid": str(number), "image": row["images"][0]}
            for number, row in enumerate(questions)
        ]
        for name, parts in {"someone/shapes": [own[:4], own[4:]], "someone/questions": [okvqa]}.items():
            server.repos[name] = {"private": False, "branches": {}, "trees": {}}
            files = {f"data/train-{n:05}-of-{len(parts):05}.parquet": parquet(rows) for n, rows in enumerate(parts)}
            server.commit(name, "main", files)
        yield server


def test_repositories_are_datasets_of_a_mixture(hub, tmp_path):
    save_tiny_checkpoint(tmp_path / "model")
    training = {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none"}
    shapes, asked = {"hub": "someone/shapes"}, {"hub": "someone/questions", "category": "image_qa"}
    streamed = {"streaming": True}
    for kind, datasets_ in {
        "downloaded": {"shapes": shapes, "asked": asked},
        "streamed": {"shapes": {**shapes, **streamed, "rows": 8}, "asked": {**asked, **streamed, "rows": 5}},
    }.items():
        recipe = {
            "model": {"path": "model"},
            "data": {"train": {"mixture": {"datasets": datasets_, "form": "plain"}}},
            "training": {**training, "logging_steps": 1},
        }
        (tmp_path / f"{kind}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (tmp_path / "train.py").write_text(SCRIPT)
    environment = {**os.environ, **hub.environment(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "train.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert [kind for kind, *_ in results] == ["MixtureDataset", "StreamMixture"]
    for _, sizes, drawn, logged in results:
        assert sizes == {"shapes": 8, "asked": 5}
        assert {"loss/shapes", "loss/asked"} <= {*logged}
        for name, numbers in {"shapes": range(8), "asked": range(20, 25)}.items():
            examples = [WORLD.example(number) for number in numbers]
            rows = {(row["prompt"], row["completion"], row["images"][0].tobytes().hex()) for row in examples}
            of_it = [tuple(content) for dataset, *content in drawn if dataset == name]
            assert len(of_it) > len(numbers)
            assert {*of_it[: len(numbers)]} == rows
