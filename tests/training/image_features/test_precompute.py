"""Features computed before training: counted right, computed once, and shared out over processes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load, load_file

from instructblip_hf.training import load_recipe, prepare_run
from instructblip_hf.training.image_features.precompute import FeatureRun
from official_formats import write_dataset
from tiny_shapes import save_tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


def write_recipe(folder, checkpoint, data, **training):
    path = folder / "recipe.yaml"
    content = {
        "model": {"path": str(checkpoint)},
        "freezing": "instructblip",
        "data": data,
        "training": {
            "max_steps": 3,
            "per_device_train_batch_size": 4,
            "use_cpu": True,
            "disable_tqdm": True,
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "learning_rate": 0.01,
            **training,
        },
    }
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Six rows about four images, two of which are the same file by another name, one with two images, one with none."""
    monkeypatch.chdir(tmp_path)
    for index, color in enumerate(("red", "green", "blue")):
        Image.new("RGB", (30, 30), color).save(tmp_path / f"{index}.png")
    shutil.copy("0.png", "copy.png")
    images = [["0.png"], ["1.png"], ["0.png"], ["2.png", "copy.png"], [], ["copy.png"]]
    rows = [{"images": names, "prompt": "what color is this ?", "completion": "red"} for names in images]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_the_prediction_is_what_is_written(checkpoint, pictures):
    run = FeatureRun(load_recipe(write_recipe(pictures, checkpoint, {"train": "rows.jsonl"})), "kept")
    plan = run.plan()
    assert (plan.rows, plan.images, len(plan.missing)) == (6, 3, 3)
    assert not Path("kept").exists(), "nothing is written before"
    assert plan.shape == (17, 24)
    assert run.compute(plan, batch_size=2) == 3
    files = list(Path("kept").rglob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) == plan.missing_bytes
    assert plan.fits


def test_what_is_there_is_not_computed_again(checkpoint, pictures):
    recipe = load_recipe(write_recipe(pictures, checkpoint, {"train": "rows.jsonl", "image_features": "kept"}))
    run = FeatureRun(recipe)
    run.compute(run.plan())
    files = sorted(Path("kept").rglob("*.safetensors"))
    whole = [file.read_bytes() for file in files]
    files[0].unlink()
    files[1].write_bytes(whole[1][:-1])
    flipped = bytearray(whole[2])
    flipped[-1] ^= 1
    files[2].write_bytes(flipped)
    calls = []
    run = FeatureRun(recipe)
    run.features.tower.module.embeddings.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    assert {*run.plan().missing} == {files[0].stem, files[1].stem}
    plan = run.plan(check=True)
    assert {*plan.missing} == {file.stem for file in files}
    run.compute(plan)
    assert calls == [3]
    for file, before in zip(files, whole):
        assert len(file.read_bytes()) == len(before)
        torch.testing.assert_close(load_file(file)["features"], load(before)["features"], rtol=0, atol=1e-6)


def test_all_draws_of_a_mixture_are_covered_and_nothing_else(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("okvqa", "vqav2"):
        write_dataset(name, tmp_path / name)
    data = {"train": {"mixture": {"root": ".", "datasets": {"okvqa": {}, "vqav2": {}}}}, "image_features": "kept"}
    path = write_recipe(tmp_path, checkpoint, data, max_steps=1, per_device_train_batch_size=2)
    for processes in (1, 3):
        short = FeatureRun(load_recipe(path), processes=processes)
        draws = [short._datasets[0].mixture.draw(number) for number in range(2 * processes)]
        assert short.plan().rows == len({(draw.dataset, draw.row) for draw in draws})
    run = FeatureRun(load_recipe(path, ["training.max_steps=40"]))
    plan = run.plan()
    assert plan.rows == sum(run._datasets[0].mixture.sizes.values()), "every row, and each once"
    run.compute(plan)

    training = prepare_run(load_recipe(path, ["training.max_steps=40"]), tmp_path / "out")
    training.trainer.model.vision_model.embeddings.register_forward_pre_hook(lambda *_: pytest.fail("the tower ran"))
    training.run()


def test_frozen_weights_in_16_bits_are_those_of_the_training(checkpoint, pictures):
    recipe = write_recipe(pictures, checkpoint, {"train": "rows.jsonl", "image_features": "kept"})
    changes = ["model.frozen_dtype=bfloat16", "training.bf16=true"]
    run = FeatureRun(load_recipe(recipe, changes))
    run.compute(run.plan())
    losses = []
    for number, change in enumerate(("data.image_features=kept", "data.image_features=null")):
        training = prepare_run(load_recipe(recipe, [*changes, change]), pictures / f"out{number}")
        if not number:
            tower = training.trainer.model.vision_model
            tower.embeddings.register_forward_pre_hook(lambda _, inputs: pytest.fail("the tower ran"))
        training.run()
        losses.append([entry["loss"] for entry in training.trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_a_disk_without_room_is_known_before(checkpoint, pictures, monkeypatch):
    run = FeatureRun(load_recipe(write_recipe(pictures, checkpoint, {"train": "rows.jsonl"})), "kept")
    usage = shutil.disk_usage(pictures)
    for blocks, fits in ((2, False), (3, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=4096 * blocks: usage._replace(free=free))
        assert run.plan().fits == fits


def test_what_cannot_be_computed_before_is_told(checkpoint, pictures):
    path = write_recipe(pictures, checkpoint, {"train": "rows.jsonl"})
    with pytest.raises(ValueError, match="names no folder for features"):
        FeatureRun(load_recipe(path))
    with pytest.raises(ValueError, match=r"vision_model\.embeddings.* trains"):
        FeatureRun(load_recipe(path, ["freezing.preset=all"]), "kept")
    run = FeatureRun(load_recipe(path), "kept")
    Path("2.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"2\.png"):
        run.compute(run.plan())


def test_as_many_bad_rows_are_left_out_as_the_training_leaves_out(checkpoint, pictures):
    path = write_recipe(pictures, checkpoint, {"train": "rows.jsonl", "image_features": "kept"})
    run = FeatureRun(load_recipe(path, ["data.skip_bad_rows=1"]))
    Path("2.png").write_bytes(b"no image")
    assert run.compute(run.plan()) == 2
    Path("1.png").unlink()
    plan = run.plan()
    assert (plan.rows, plan.bad_rows, len(plan.missing)) == (6, 1, 1)
    Path("0.png").unlink()
    with pytest.raises(ValueError, match=r"[01]\.png.*2 such rows; data\.skip_bad_rows allows 1"):
        run.plan()


def test_streams_are_left_to_the_training(checkpoint, pictures, monkeypatch):
    monkeypatch.setattr("instructblip_hf.training.image_features.precompute.open_dataset", lambda *_: iter(()))
    path = write_recipe(pictures, checkpoint, {"train": "rows.jsonl", "image_features": "kept"})
    with pytest.raises(ValueError, match="is a stream"):
        FeatureRun(load_recipe(path))


SCRIPT = """
import json, sys
import torch
torch.set_num_threads(1)
from instructblip_hf.training import load_recipe, prepare_run
from instructblip_hf.training.image_features.precompute import FeatureRun

recipe = load_recipe(sys.argv[1])
run = FeatureRun(recipe, "before")
plan = run.plan()
computed = []
run.features.tower.module.embeddings.register_forward_pre_hook(lambda _, inputs: computed.append(len(inputs[0])))
total = run.compute(plan, 2)
run = prepare_run(recipe, "out")
run.run()
losses = [entry["loss"] for entry in run.trainer.state.log_history if "loss" in entry]
with open(f"out.{run.trainer.args.process_index}.json", "w") as file:
    json.dump({"losses": losses, "computed": sum(computed), "total": total}, file)
"""


def test_two_processes_share_the_work_and_the_features(checkpoint, pictures):
    rows = (pictures / "rows.jsonl").read_text().splitlines()
    (pictures / "rows.jsonl").write_text("\n".join([*rows, *rows[:2]]))
    data = {"train": "rows.jsonl", "image_features": "during"}
    path = write_recipe(pictures, checkpoint, data, per_device_train_batch_size=2, max_steps=4)
    Path("script.py").write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launcher, "script.py", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    both = [json.loads(Path(f"out.{rank}.json").read_text()) for rank in (0, 1)]
    assert sorted(rank["computed"] for rank in both) == [1, 2], "each its share"
    assert [rank["total"] for rank in both] == [3, 3]
    for folder in ("before", "during"):
        assert len(list(Path(folder).rglob("*.safetensors"))) == 3
    changes = ["data.image_features=null", "training.gradient_accumulation_steps=2"]
    one = prepare_run(load_recipe(path, changes), Path("one"))
    one.run()
    expected = [entry["loss"] for entry in one.trainer.state.log_history if "loss" in entry]
    assert both[0]["losses"] == pytest.approx(expected, rel=1e-5)
