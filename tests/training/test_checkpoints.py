"""Checkpoint folders: which are whole, which one is taken, what is deleted; and what a full disk leaves behind."""

import contextlib
import json
import resource
import shutil

import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from instructblip_hf.data.procedural import ShapesWorldDataset
from instructblip_hf.data.sources.shapes_world import ShapesWorld
from instructblip_hf.training import VisionLanguageTrainer
from instructblip_hf.training import saving as saving_module
from instructblip_hf.training.checkpoints import MANIFEST, newest_whole, problem_with, publish, recover, remove, rotate
from instructblip_hf.training.errors import SavingError
from tiny_shapes import tiny_model, tiny_processor


def trainer_of(folder, max_steps=3, examples=20, **changes):
    callbacks, freezing = changes.pop("callbacks", []), changes.pop("freezing", "instructblip")
    options = {
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return VisionLanguageTrainer(
        tiny_model(dropout=0.1),
        TrainingArguments(output_dir=str(folder), max_steps=max_steps, **{**options, **changes}),
        processing_class=tiny_processor(),
        freezing=freezing,
        train_dataset=ShapesWorldDataset(ShapesWorld(0), examples),
        eval_dataset=ShapesWorldDataset(ShapesWorld(1), 4),
        callbacks=callbacks,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "out"
    trainer = trainer_of(folder)
    trainer.train()
    return folder, {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


@pytest.fixture
def out(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "out")
    return tmp_path / "out"


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- whole or damaged ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listed", [True, False], ids=["with the list of sizes", "as stock transformers writes it"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
def test_a_damaged_checkpoint_is_named_left_alone_and_the_one_before_is_taken(out, trained, name, listed, caplog):
    newest = out / "checkpoint-3"
    assert problem_with(newest) is None
    if not listed:
        (newest / MANIFEST).unlink()
        assert problem_with(newest) is None
    truncate(newest / name)
    assert name in problem_with(newest)
    with caplog.at_level("WARNING"):
        assert newest_whole(out) == out / "checkpoint-2"
    assert f"checkpoint-3 is damaged ({name}" in caplog.text
    assert newest.is_dir()


def test_resuming_skips_what_is_damaged_and_refuses_it_by_name(out, trained):
    truncate(out / "checkpoint-3" / "optimizer.pt")
    trainer = trainer_of(out)
    with pytest.raises(
        ValueError, match=r"checkpoint-3 is no checkpoint to go on from: optimizer.pt has [\d,]+ bytes"
    ):
        trainer.train(resume_from_checkpoint=str(out / "checkpoint-3"))
    trainer.train(resume_from_checkpoint=True)
    assert all(torch.equal(tensor, trained[1][name]) for name, tensor in trainer.model.state_dict().items())
    assert problem_with(out / "checkpoint-3") is None, "written again by the run that went on from the one before"


def test_all_damaged_is_an_error_and_not_a_fresh_start(out):
    for checkpoint in out.glob("checkpoint-*"):
        (checkpoint / "rng_state.pth").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-1 is damaged \(rng_state.pth is missing\); there is no whole"):
        newest_whole(out)


def test_resuming_at_the_last_step_takes_no_step_more(out, trained):
    # Three steps are in the middle of an epoch, where stock Trainer would take a fourth.
    trainer = trainer_of(out)
    result = trainer.train(resume_from_checkpoint=True)
    assert result.global_step == 3
    assert all(torch.equal(tensor, trained[1][name]) for name, tensor in trainer.model.state_dict().items())


# --- leftovers, replacing, deleting -------------------------------------------------------------------------------------


def test_leftovers_of_a_killed_run_go_and_a_checkpoint_without_its_name_gets_it_back(out):
    shutil.copytree(out / "checkpoint-1", out / "_saving-checkpoint-4")
    shutil.copytree(out / "checkpoint-1", out / "_deleting-checkpoint-0")
    shutil.copytree(out / "checkpoint-1", out / "_replaced-checkpoint-1")
    (out / "checkpoint-3").rename(out / "_replaced-checkpoint-3")
    (out / "_mine").mkdir()
    assert newest_whole(out) == out / "checkpoint-2"
    recover(out)
    assert names(out) == ["_mine", "checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert problem_with(out / "checkpoint-3") is None


def test_publishing_replaces(tmp_path):
    for name, text in (("checkpoint-1", "old"), ("_saving-checkpoint-1", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text)
    publish(tmp_path / "checkpoint-1")
    assert names(tmp_path) == ["checkpoint-1"]
    assert (tmp_path / "checkpoint-1" / "file").read_text() == "new"


def test_deleting_takes_the_name_first(tmp_path, monkeypatch):
    (tmp_path / "checkpoint-1").mkdir()
    seen = []
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: seen.append((path.name, path.exists())))
    remove(tmp_path / "checkpoint-1")
    assert seen[-1] == ("_deleting-checkpoint-1", True)
    assert names(tmp_path) == ["_deleting-checkpoint-1"]


@pytest.mark.parametrize(
    ("steps", "newest", "limit", "best", "left"),
    [
        ([1, 2, 10], 10, 2, None, [2, 10]),
        ([1, 2, 3], 3, 1, 1, [1, 3]),
        ([1, 2, 3, 4], 4, 2, 1, [1, 4]),
        ([1, 2], 2, None, None, [1, 2]),
        ([1, 2], 2, 0, None, [1, 2]),
        # Gone on from 2 because 8 was damaged: the new 3 is kept, and 8 is the first to go.
        ([1, 2, 8, 3], 3, 3, None, [1, 2, 3]),
        ([2, 8, 3], 3, 1, None, [3]),
    ],
)
def test_rotation(tmp_path, steps, newest, limit, best, left):
    for step in steps:
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-last").mkdir()
    rotate(tmp_path / f"checkpoint-{newest}", limit, tmp_path / f"checkpoint-{best}" if best else None)
    assert names(tmp_path) == sorted([*(f"checkpoint-{step}" for step in left), "checkpoint-last"])


class Observer(TrainerCallback):
    """What a callback finds in the output folder when it is told of a checkpoint."""

    def __init__(self):
        self.problems, self.folders = [], []

    def on_save(self, args, state, control, **kwargs):
        from pathlib import Path

        folder = Path(args.output_dir)
        self.problems.append(problem_with(folder / f"checkpoint-{state.global_step}"))
        self.folders.append(names(folder))


def test_callbacks_find_whole_checkpoints_and_the_best_one_is_kept(tmp_path):
    observer = Observer()
    options = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "save_total_limit": 1}
    # Growing rates: the first checkpoint is the best one.
    trainer = trainer_of(tmp_path, callbacks=[observer], learning_rate=3.0, **options)
    trainer.train()
    assert observer.problems == [None] * 3
    best = trainer.state.best_model_checkpoint
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    assert best == str(tmp_path / f"checkpoint-{min(losses, key=losses.get)}")
    assert names(tmp_path) == [best.rpartition("/")[2]], "only the best one is left, as with stock Trainer"
    state = json.loads((tmp_path / best / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == best


def test_lora_checkpoints_resume(tmp_path):
    pytest.importorskip("peft")
    freezing = {"language_model": "lora"}
    whole = trainer_of(tmp_path / "whole", freezing=freezing)
    whole.train()
    parts = trainer_of(tmp_path / "parts", freezing=freezing, max_steps=3)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "parts" / "checkpoint-2")
    parts.train(resume_from_checkpoint=True)
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in parts.model.state_dict().items())


# --- a full disk --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_file_above(size):
    """The operating system refuses to let files grow larger, as it refuses to write to a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class Fill(TrainerCallback):
    """Lets the disk be full from a step on."""

    def __init__(self, stack, size):
        self.stack, self.size = stack, size

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            self.stack.enter_context(no_file_above(self.size))


# The sizes of the files, largest first: weights, optimizer.
@pytest.mark.parametrize(("size", "save_only_model"), [(100_000, False), (500, False), (100_000, True)])
def test_a_full_disk_is_one_clear_error_and_earlier_checkpoints_are_whole(tmp_path, trained, size, save_only_model):
    with contextlib.ExitStack() as stack:
        trainer = trainer_of(tmp_path, callbacks=[Fill(stack, size)], save_only_model=save_only_model)
        with pytest.raises(
            SavingError, match=r"could not write .*checkpoint-3: .*MB, and .* are free there"
        ) as caught:
            trainer.train()
    assert str(caught.value).count("\n") == 0
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    if save_only_model:
        return
    trainer = trainer_of(tmp_path)
    trainer.train(resume_from_checkpoint=True)
    assert all(torch.equal(tensor, trained[1][name]) for name, tensor in trainer.model.state_dict().items())


def test_a_disk_full_while_the_optimizer_is_written(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=1)
    write = trainer._save_optimizer_and_scheduler

    def in_little_space(folder):
        with no_file_above(1000):
            write(folder)

    trainer._save_optimizer_and_scheduler = in_little_space
    with pytest.raises(SavingError, match="checkpoint-1: the disk is full"):
        trainer.train()
    assert names(tmp_path) == []


def test_a_disk_full_at_the_final_model_leaves_the_old_one(tmp_path):
    trainer = trainer_of(tmp_path, save_strategy="no")
    trainer.save_model()
    before = (tmp_path / "model.safetensors").read_bytes()
    with no_file_above(1000), pytest.raises(SavingError, match="could not write"):
        trainer.save_model()
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert not [name for name in names(tmp_path) if name.startswith("_")]


@pytest.mark.parametrize(
    ("free", "options", "said"),
    [
        (10**5, {}, "refused"),
        (10**6, {}, "3 checkpoint(s)"),
        (10**6, {"save_total_limit": 1}, "2 checkpoint(s)"),
        (10**9, {}, None),
        (10**6, {"save_strategy": "no"}, None),
    ],
)
def test_little_room_is_said_before_the_training(tmp_path, monkeypatch, caplog, free, options, said):
    monkeypatch.setattr(saving_module, "_free", lambda folder: free)
    trainer = trainer_of(tmp_path, **options)
    trainer.optimizer = None
    with caplog.at_level("WARNING"):
        if said == "refused":
            with pytest.raises(SavingError, match=r"the trained model takes about [\d.]+ MB, and .* has 0.1 MB free"):
                trainer._check_space(tmp_path)
            return
        trainer._check_space(tmp_path)
    assert (said in caplog.text) if said else not caplog.text


def test_the_size_foreseen_is_the_size_written(trained):
    trainer = trainer_of(trained[0])
    written = sum(
        file.stat().st_size
        for file in (trained[0] / "checkpoint-3").glob("*.[sp]*t*")
        if file.stem in ("model", "optimizer")
    )
    assert trainer._checkpoint_bytes() == pytest.approx(written, rel=0.25)
