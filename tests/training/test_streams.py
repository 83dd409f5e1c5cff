"""Mixtures of streams in recipes and under the trainer: their rows, exact resuming, every process its own rows."""

import io
import json
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from transformers import TrainerCallback

from instructblip_hf.data.sources.shapes_world import ShapesWorld
from instructblip_hf.data.streaming import IndexedSource, StreamMixture, StreamSource
from instructblip_hf.training import RecipeError, checkpoints, load_recipe, prepare_run
from instructblip_hf.training.streams import POSITION
from tiny_shapes import save_tiny_checkpoint


def write_tar(path, rows):
    """Rows of the shapes world as an archive: a picture and a training row each."""
    with tarfile.open(path, "w") as archive:
        for row in rows:
            picture = io.BytesIO()
            row["images"][0].save(picture, "PNG")
            content = {"prompt": row["prompt"], "completion": row["completion"]}
            files = {".png": picture.getvalue(), ".json": json.dumps(content).encode()}
            for suffix, data in files.items():
                member = tarfile.TarInfo(row["name"] + suffix)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    save_tiny_checkpoint(folder / "model")
    (folder / "tars").mkdir()
    world = ShapesWorld(0, tasks=["color", "shape"])
    for shard in range(4):
        rows = [{**world.example(6 * shard + number), "name": f"{shard}-{number}"} for number in range(6)]
        write_tar(folder / "tars" / f"{shard}.tar", rows)
    (folder / "own").mkdir()
    Image.new("RGB", (20, 20), "red").save(folder / "own" / "a.png")
    rows = [{"image": "a.png", "prompt": f"what is {number} ?", "completion": "red"} for number in range(5)]
    (folder / "own" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


DATASETS = {"tars": {"shards": "tars/*.tar", "rows": 24}, "mine": {"file": "own/rows.jsonl"}}


def write(folder, datasets=DATASETS, evaluation=None, seed=0, **training):
    options = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "save_strategy": "steps",
        "save_steps": 3,
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    data = {"train": {"mixture": {"datasets": datasets, "seed": seed}}}
    if evaluation is not None:
        data["evaluation"] = {"mixture": evaluation}
    path = folder / "recipe.yaml"
    content = {"model": {"path": "model"}, "data": data, "training": {**options, **training}}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


class Stop(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


def train(folder, out, stop=None, resume=False, **changes):
    """Runs the recipe; gives the trainer, and the words of each batch that was trained on."""
    run = prepare_run(load_recipe(write(folder, **changes)), out, resume, callbacks=[Stop(stop)])
    trainer, batches = run.trainer, []
    original = trainer.compute_loss

    def compute_loss(model, inputs, *args, **kwargs):
        assert POSITION in inputs
        batches.append(inputs["input_ids"].tolist())
        return original(model, inputs, *args, **kwargs)

    trainer.compute_loss = compute_loss
    run.run()
    return trainer, batches


def read_rows(monkeypatch):
    """Counts the rows that are opened and worded."""
    counts = Counter()
    for source in (StreamSource, IndexedSource):
        monkeypatch.setattr(source, "cursor", counted(source.cursor, counts))
    return counts


def counted(cursor_of, counts):
    def cursor(self, place, state):
        made = cursor_of(self, place, state)
        next_row = made.next_row

        def counting():
            counts[place.name] += 1
            return next_row()

        made.next_row = counting
        return made

    return cursor


@pytest.mark.parametrize("workers", [0, 2])
def test_stopped_in_the_middle_and_resumed_is_bitwise_the_uninterrupted_run(folder, tmp_path, monkeypatch, workers):
    changes = {"dataloader_num_workers": workers}
    whole, batches = train(folder, tmp_path / "whole", **changes)
    assert isinstance(whole.train_dataset, StreamMixture)
    _, first = train(folder, tmp_path / "parts", stop=3, **changes)
    counts = read_rows(monkeypatch)
    resumed, second = train(folder, tmp_path / "parts", resume=True, **changes)
    assert len(batches) == 12
    assert first == batches[:6]
    assert second == batches[6:]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    if workers == 0:  # of other processes nothing can be counted here
        assert sum(counts.values()) <= 6 * 2 + 2, "what was consumed was read again; the loader reads one batch ahead"


def test_rows_and_logs_of_a_recipe(folder, tmp_path):
    trainer, batches = train(folder, tmp_path / "out")
    again, same = train(folder, tmp_path / "again")
    other, different = train(folder, tmp_path / "other", seed=1)
    assert batches == same
    assert batches != different
    logged = {key for entry in trainer.state.log_history for key in entry}
    assert {"loss", "loss/tars", "loss/mine"} <= logged
    card = (tmp_path / "out" / "README.md").read_text()
    assert "mixture of 2 datasets" in card
    assert "24 draws" in card
    assert "| tars | 24 |" in card
    stream = trainer.train_dataset
    rows = iter(stream)
    seen = [next(rows) for _ in range(80)]
    # Every row of the source before one of them again, and what the archives hold.
    own = [row["prompt"] for row in seen if row["dataset"] == "mine"]
    assert sorted(own[:5]) == sorted(own[5:10]) == [f"what is {number} ?" for number in range(5)]
    world = ShapesWorld(0, tasks=["color", "shape"])
    expected = Counter((row["prompt"], row["images"][0].tobytes()) for row in world.examples(24))
    drawn = [(row["prompt"], row["images"][0].tobytes()) for row in seen if row["dataset"] == "tars"]
    assert Counter(drawn[:24]) == expected


def test_a_checkpoint_without_positions_reads_again(folder, tmp_path):
    _, batches = train(folder, tmp_path / "whole")
    train(folder, tmp_path / "parts", stop=3)
    for name in ("stream_positions_0.json", checkpoints.MANIFEST):
        (tmp_path / "parts" / "checkpoint-3" / name).unlink()
    _, second = train(folder, tmp_path / "parts", resume=True)
    assert second == batches[6:]


def test_kept_features_of_images_in_a_stream(folder, tmp_path):
    runs = []
    for features in (None, str(tmp_path / "features"), str(tmp_path / "features")):
        content = yaml.safe_load(write(folder).read_text())
        content["data"]["image_features"] = features
        path = folder / "features.yaml"
        path.write_text(yaml.safe_dump({**content, "freezing": "instructblip-strict"}, sort_keys=False))
        run = prepare_run(load_recipe(path), tmp_path / f"out{len(runs)}")
        run.run()
        runs.append([entry["loss"] for entry in run.trainer.state.log_history if "loss" in entry])
    assert len(list((tmp_path / "features").rglob("*"))) > 1
    assert runs[1] == pytest.approx(runs[0], rel=1e-6)
    assert runs[2] == pytest.approx(runs[0], rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataloader_num_workers": 1}, "dataloader_num_workers 0, now it is 1: rows would come twice or never"),
        (
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},
            "per_device_train_batch_size 2, now it is 4",
        ),
        ({"seed": 1}, "was trained on another mixture"),
        ({"per_device_train_batch_size": 4}, "was trained with 4 rows a step, now there are 8"),
    ],
)
def test_a_run_that_would_deal_out_otherwise_does_not_go_on(folder, tmp_path, changes, message):
    train(folder, tmp_path / "out", max_steps=3)
    with pytest.raises(ValueError, match=message):
        train(folder, tmp_path / "out", resume=True, **changes)


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({"x": {"shards": "tars/*.tar"}}, "datasets.x.rows: missing; say how many rows the archives have"),
        ({"x": {"shards": "none/*.tar", "rows": 3}}, "datasets.x.shards: there is no archive "),
        ({"x": {"shards": ["tars/0.tar", "tars/9.tar"], "rows": 3}}, "tars/9.tar"),
        ({"x": {"shards": "tars/*.tar", "rows": 0}}, "datasets.x: rows is 0; it must be at least 1"),
        ({"x": {"file": "own/rows.jsonl", "rows": 3}}, "datasets.x: rows says how many rows a stream has"),
        ({"x": {"file": "own/rows.jsonl", "streaming": True}}, "streaming is of a repository, and there is no hub"),
        ({"x": {"hub": "name"}}, "datasets.x: hub is 'name'; it must be a repository's name"),
        ({"x": {"hub": "a/b", "shards": "tars/*.tar"}}, "needs one of file, folder, shapes_world, shards, hub"),
        ({"okvqa": {"hub": "a/b", "shards": "tars/*.tar"}}, "datasets.okvqa: has both shards and hub"),
    ],
)
def test_bad_streams(folder, datasets, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, datasets))
    assert any(message in line for line in caught.value.problems), caught.value.problems
    assert len(caught.value.problems) == 1


def test_a_stream_is_nothing_to_evaluate_on(folder):
    with pytest.raises(RecipeError, match=r"evaluation.mixture.datasets.tars: is a stream, which has no end"):
        load_recipe(write(folder, evaluation={"datasets": DATASETS, "draws": 4}))


def test_datasets_of_the_catalog_may_be_archives(folder, tmp_path):
    """Their category and size are known, so that rows are worded and drawn as they should be."""
    (tmp_path / "web").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / "web" / f"{shard}.tar", "w") as archive:
            for number in range(3):
                picture = io.BytesIO()
                Image.new("RGB", (8, 8), (number, shard, 0)).save(picture, "PNG")
                for suffix, data in {".png": picture.getvalue(), ".txt": f"caption {shard} {number}".encode()}.items():
                    member = tarfile.TarInfo(f"{number}{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    datasets = {"web_capfilt": {"shards": str(Path("..") / "x" / "*.tar")}}
    with pytest.raises(RecipeError, match="there is no archive"):
        load_recipe(write(folder, datasets))
    run = prepare_run(
        load_recipe(write(folder, {"web_capfilt": {"shards": f"{tmp_path}/web/*.tar"}})), tmp_path / "out"
    )
    stream = run.trainer.train_dataset
    assert stream.mixture.sizes == {"web_capfilt": 13_873_136}
    rows = [row for _, row in zip(range(6), stream)]
    assert sorted(row["completion"] for row in rows) == [f"caption {s} {n}" for s in range(2) for n in range(3)]
    assert all(row["prompt"] and row["images"][0].size == (8, 8) for row in rows)


# --- several processes ------------------------------------------------------------------------------------------------

SCRIPT = """
import json, sys
from transformers import TrainerCallback
from instructblip_hf.training import load_recipe, prepare_run

class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == 2

batches = []
for callbacks in ([Stop()], []):
    run = prepare_run(load_recipe(sys.argv[1]), sys.argv[2], resume=True, callbacks=callbacks)
    original = run.trainer.compute_loss

    def compute_loss(model, inputs, *args, **kwargs):
        batches.append(inputs["input_ids"].tolist())
        return original(model, inputs, *args, **kwargs)

    run.trainer.compute_loss = compute_loss
    run.trainer.train(run.checkpoint)
    assert run.trainer.state.global_step == (2 if callbacks else 4)
with open(f"{sys.argv[2]}-{run.trainer.args.process_index}.json", "w") as file:
    json.dump(batches, file)
"""


def test_two_processes_have_rows_of_their_own_and_resume(folder, tmp_path):
    """Oracle: the stream of each rank, read without Trainer and accelerate."""
    (tmp_path / "train.py").write_text(SCRIPT)
    recipe = write(folder, max_steps=4, save_steps=2, dataloader_num_workers=1)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, str(tmp_path / "train.py"), str(recipe), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    trained = [json.loads((tmp_path / f"out-{rank}.json").read_text()) for rank in range(2)]

    run = prepare_run(load_recipe(recipe), tmp_path / "alone")
    seen = []
    for rank in range(2):
        stream = StreamMixture(run.trainer.train_dataset.sources, run.trainer.train_dataset.mixture, rank, 2)
        rows = [row for _, row in zip(range(16), stream)]
        batches = [run.trainer.data_collator(rows[start : start + 2]) for start in range(0, 16, 2)]
        assert trained[rank] == [batch["input_ids"].tolist() for batch in batches]
        seen.append({row["prompt"] + row["images"][0].tobytes().hex() for row in rows})
    assert not seen[0] & seen[1]
