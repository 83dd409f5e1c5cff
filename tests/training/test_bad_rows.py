"""Rows that cannot be read, and losses that are not finite: named, counted, and nothing spoilt."""

import json
import math

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from instructblip_hf.data.mixture import Mixture, MixtureDataset
from instructblip_hf.data.sources.shapes_world import ShapesWorld
from instructblip_hf.training import VisionLanguageTrainer
from instructblip_hf.training.bad_rows import BadRows
from instructblip_hf.training.checkpoints import problem_with
from instructblip_hf.training.errors import BadRowsError, NonFiniteError
from killable_training import run_processes
from tiny_shapes import save_tiny_checkpoint, tiny_model, tiny_processor


class Rows:
    """Rows of which some cannot be read."""

    def __init__(self, size, bad=(), seed=0):
        self.size, self.bad, self.seed, self.read = size, set(bad), seed, []
        self.world = ShapesWorld(seed)

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index in self.bad:
            raise ValueError(f"cannot open images/{self.seed}-{index}.jpg: no such file")
        self.read.append(index)
        return self.world.example(index)


class Stop(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def trainer_of(folder, rows, max_steps=4, skip_bad_rows=0, evaluation=None, model=None, callbacks=(), **changes):
    options = {
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "train_sampling_strategy": "sequential",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return VisionLanguageTrainer(
        model if model is not None else tiny_model(dropout=0.1),
        TrainingArguments(output_dir=str(folder), max_steps=max_steps, **{**options, **changes}),
        processing_class=tiny_processor(),
        train_dataset=rows,
        eval_dataset=evaluation,
        callbacks=list(callbacks),
        skip_bad_rows=skip_bad_rows,
    )


def assert_same_weights(one, other):
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name]), name


def mixture_of(bad_a=(), bad_b=(), **options):
    datasets = {"a": Rows(9, bad_a), "b": Rows(4, bad_b, seed=1)}
    return MixtureDataset(datasets, Mixture({"a": 9, "b": 4}, seed=5, **options), 8)


# --- unreadable rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_row_stops_at_its_step_with_one_line_that_names_it(tmp_path, workers):
    trainer = trainer_of(tmp_path, Rows(8, bad=[5]), dataloader_num_workers=workers)
    with pytest.raises(BadRowsError) as caught:
        trainer.train()
    message = str(caught.value)
    assert message.startswith("row 5: cannot open images/0-5.jpg: no such file. Repair it and run"), message
    assert "\n" not in message
    assert "Traceback" not in message
    # Rows 4 and 5 are the third step's, however far ahead workers read.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]
    assert problem_with(tmp_path / "checkpoint-2") is None


def test_the_next_row_stands_in_and_a_row_counts_once(tmp_path, caplog):
    # Two epochs: the bad rows come twice.
    trainer = trainer_of(tmp_path / "a", Rows(6, bad=[2, 3]), max_steps=6, skip_bad_rows=2)
    with caplog.at_level("WARNING"):
        trainer.train()
    good = Rows(6)
    in_place = [good[index] for index in (0, 1, 4, 4, 4, 5)]
    plain = trainer_of(tmp_path / "b", in_place, max_steps=6)
    plain.train()
    assert_same_weights(trainer, plain)
    assert list(trainer.bad_rows.rows) == ["row 2", "row 3"]
    assert trainer.bad_rows.summary() == "2 unreadable rows were left out: row 2; row 3"
    assert caplog.text.count("left out: row 2: cannot open images/0-2.jpg") == 1
    assert trainer.state.log_history[-2]["bad_rows"] == 2


def test_one_more_than_allowed_stops(tmp_path):
    trainer = trainer_of(tmp_path, Rows(8, bad=[1, 4]), skip_bad_rows=1)
    with pytest.raises(BadRowsError, match=r"row 4: .* \(1 left out before it\).*allow more than 1"):
        trainer.train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]


def test_in_a_mixture_the_next_row_of_the_same_dataset_stands_in(tmp_path):
    broken = mixture_of(bad_a=[3, 7], bad_b=[0])
    trainer = trainer_of(tmp_path / "a", broken, max_steps=8, skip_bad_rows=3)
    trainer.train()
    whole, expected = mixture_of(), []
    for number in range(16):
        place, draw = number, whole.mixture.draw(number)
        while (draw.dataset, draw.row) in (("a", 3), ("a", 7), ("b", 0)):
            place += 1
            while whole.mixture.draw(place).dataset != draw.dataset:
                place += 1
            draw = whole.mixture.draw(place)
        expected.append(whole[place])
    plain = trainer_of(tmp_path / "b", expected, max_steps=8)
    plain.train()
    assert_same_weights(trainer, plain)
    assert sorted(trainer.bad_rows.rows) == ["a, row 3", "a, row 7", "b, row 0"]


def test_resumed_it_leaves_out_the_same_rows_and_goes_on_counting(tmp_path):
    def trainer(folder, **options):
        return trainer_of(folder, mixture_of(bad_a=[3, 7], bad_b=[0]), max_steps=8, **{"skip_bad_rows": 3, **options})

    whole = trainer(tmp_path / "whole")
    whole.train()
    found_by_step_5 = trainer(tmp_path / "parts", callbacks=[Stop(5)], dataloader_num_workers=2)
    found_by_step_5.train()
    before = dict(found_by_step_5.bad_rows.rows)
    assert 0 < len(before) < 3
    resumed = trainer(tmp_path / "parts")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.bad_rows.rows == whole.bad_rows.rows
    assert_same_weights(resumed, whole)
    strict = trainer(tmp_path / "parts", skip_bad_rows=2)
    with pytest.raises(BadRowsError, match="2 left out before it"):
        strict.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-5"))


def test_a_dataset_of_which_nothing_can_be_read(tmp_path):
    trainer = trainer_of(tmp_path, mixture_of(bad_b=range(4)), skip_bad_rows=10)
    with pytest.raises(BadRowsError, match="b, row .*none of these rows can be read"):
        trainer.train()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_row_of_which_no_batch_can_be_made_is_named(tmp_path, workers):
    rows = [dict(Rows(4)[index]) for index in range(4)]
    del rows[3]["completion"]
    trainer = trainer_of(tmp_path, rows, dataloader_num_workers=workers)
    with pytest.raises(BadRowsError, match=r"^row 3: ") as caught:
        trainer.train()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_row_of_the_evaluation_is_named(tmp_path, workers):
    trainer = trainer_of(tmp_path, Rows(4), evaluation=Rows(3, bad=[2]), dataloader_num_workers=workers)
    with pytest.raises(BadRowsError, match=r"^evaluation: row 2: cannot open images/0-2.jpg: no such file$"):
        trainer.evaluate()


def test_what_several_processes_found_counts_together():
    found = BadRows(2)
    found.add([("row 1", "gone")])
    found.share(lambda rows: [*rows, ("row 1", "gone"), ("row 9", "gone")])
    assert list(found.rows) == ["row 1", "row 9"]
    with pytest.raises(BadRowsError, match="row 12"):
        found.share(lambda rows: [*rows, ("row 12", "gone")])


def test_a_negative_number_is_refused():
    with pytest.raises(ValueError, match="skip_bad_rows is -1"):
        BadRows(-1)


def test_streams_have_no_rows_to_leave_out(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([Rows(1)[0]])

    with pytest.raises(ValueError, match="skip_bad_rows is 2; .* not of streams"):
        trainer_of(tmp_path, Stream(), skip_bad_rows=2)


@pytest.fixture
def recipe(tmp_path):
    """A recipe whose files are all there when it is checked."""
    save_tiny_checkpoint(tmp_path / "model")
    for name in ("a", "b", "c", "d"):
        Image.new("RGB", (60, 60), "red").save(tmp_path / f"{name}.png")
    rows = [{"image": f"{name}.png", "prompt": "what color ?", "completion": "red"} for name in "abcd"]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {"max_steps": 4, "per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none"}
    content = {
        "model": {"path": "model"},
        "data": {"train": {"mixture": {"datasets": {"mine": {"file": "rows.jsonl"}}}}},
        "training": {**options, "save_strategy": "steps", "save_steps": 1, "disable_tqdm": True},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    # Still an image file by its name, and found when rows are checked.
    (tmp_path / "c.png").write_bytes(b"not an image")
    return tmp_path / "recipe.yaml"


def test_the_command(recipe, tmp_path):
    from typer.testing import CliRunner

    from instructblip_hf.cli.app import app

    def run(*options):
        return CliRunner().invoke(app, ["train", str(recipe), "--output", str(tmp_path / "out"), *options])

    stopped = run()
    assert stopped.exit_code == 1
    assert "error: mine, row 2 (rows.jsonl:3): " in stopped.stderr
    assert "c.png" in stopped.stderr
    assert "Traceback" not in stopped.output
    done = run("--resume", "--skip-bad-rows", "1")
    assert done.exit_code == 0, done.output
    assert "bad rows   1 unreadable row was left out: mine, row 2 (rows.jsonl:3)" in done.stdout
    card = (tmp_path / "out" / "README.md").read_text()
    assert "1 unreadable row was left out: mine, row 2 (rows.jsonl:3)" in card
    assert run("--skip-bad-rows", "-1").exit_code == 2


def test_two_processes_count_together(recipe, tmp_path):
    changes = ["data.skip_bad_rows=1", "training.logging_steps=1", "training.max_steps=2"]
    assert run_processes(recipe, tmp_path / "out", changes=changes) == [0, 0]
    state = json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())
    assert list(state["stateful_callbacks"]["BadRows"]["attributes"]["rows"]) == ["mine, row 2 (rows.jsonl:3)"]


# --- losses that are not finite -----------------------------------------------------------------------------------------


class Marked(Rows):
    """Rows that know whether they are poisoned."""

    def __init__(self, size, poisoned):
        super().__init__(size)
        self.poisoned = poisoned

    def __getitem__(self, index):
        return {**super().__getitem__(index), "poisoned": index == self.poisoned}


def poisoned_trainer(folder, poisoned, **options):
    """Training where the image of a row has pixels that are not numbers."""
    trainer = trainer_of(folder, Marked(8, poisoned), **options)
    collate = trainer.data_collator

    def collator(rows):
        rows = [dict(row) for row in rows]
        places = [place for place, row in enumerate(rows) if row.pop("poisoned")]
        batch = collate(rows)
        batch["pixel_values"][places] = math.nan
        return batch

    trainer.data_collator = collator
    return trainer


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("logging_steps", [1, 100])
def test_a_loss_that_is_not_a_number_stops_before_the_step_and_names_the_row(tmp_path, accumulation, logging_steps):
    row = 5
    trainer = poisoned_trainer(tmp_path, row, gradient_accumulation_steps=accumulation, logging_steps=logging_steps)
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    step = row // (2 * accumulation) + 1
    assert str(caught.value).startswith(
        f"step {step}: the loss is nan. By itself, it is not finite for row {row}. No step"
    )
    assert f"the newest checkpoint is {tmp_path}/checkpoint-{step - 1}" in str(caught.value)
    assert len(list(tmp_path.glob("checkpoint-*"))) == step - 1
    saved = load_file(tmp_path / f"checkpoint-{step - 1}" / "model.safetensors")
    for name, tensor in saved.items():
        assert torch.isfinite(tensor).all(), name
        assert torch.equal(trainer.model.state_dict()[name], tensor), "no step was taken with it"


def test_an_infinite_gradient_of_a_finite_loss_stops_as_well(tmp_path):
    trainer = trainer_of(tmp_path, Rows(8))
    inner = trainer.training_step

    def training_step(model, inputs, num_items_in_batch=None):
        loss = inner(model, inputs, num_items_in_batch)
        if trainer.state.global_step == 1:
            trainer.model.query_tokens.grad.fill_(math.inf)
        return loss

    trainer.training_step = training_step
    with pytest.raises(
        NonFiniteError, match=r"step 2: the gradient's norm is (inf|nan)\. No row .* rows are row 2; row 3"
    ):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_weights_that_are_not_numbers_blame_every_row(tmp_path):
    model = tiny_model()
    nn.init.constant_(model.language_projection.weight, math.nan)
    trainer = trainer_of(tmp_path, mixture_of(), model=model)
    draws = [trainer.train_dataset.mixture.draw(number) for number in range(2)]
    names = "; ".join(f"{draw.dataset}, row {draw.row}" for draw in draws)
    with pytest.raises(
        NonFiniteError, match=f"step 1: the loss is nan. By itself, it is not finite for {names}. .*no checkp"
    ):
        trainer.train()
