"""Training on a mixture whose draws are grouped by image and by length: same losses, exact resuming, recipes."""

import json

import pytest
import torch
from PIL import Image
from transformers import TrainerCallback, TrainingArguments

from instructblip_hf.data.image_groups import image_order
from instructblip_hf.data.jsonl import RowFileDataset
from instructblip_hf.data.mixture import Mixture, MixtureDataset
from instructblip_hf.training.mixture import MixtureArguments, open_mixture, resolve_mixture
from instructblip_hf.training.recipe import load_recipe
from instructblip_hf.training.run import prepare_run
from instructblip_hf.training.trainer import VisionLanguageTrainer
from tiny_shapes import save_tiny_checkpoint, tiny_model, tiny_processor


STEPS = 6


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory):
    """24 rows: three questions each on 8 images, of 1 to 12 words."""
    folder = tmp_path_factory.mktemp("rows")
    for number in range(8):
        Image.new("RGB", (20, 20), (30 * number, 200 - 20 * number, 90)).save(folder / f"{number}.png")
    lines = [
        {
            "image": f"{row % 8}.png",
            "prompt": "what color " * (1 + row * 5 % 12) + "?",
            "completion": "red " * (row % 3 + 1),
        }
        for row in range(24)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder / "rows.jsonl"


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def dataset(rows_file, **options):
    rows = RowFileDataset(rows_file)
    orders = {"rows": image_order(rows, options.get("group_by_image", 1))}
    return MixtureDataset({"rows": rows}, Mixture({"rows": len(rows)}, image_orders=orders, **options), STEPS * 8)


def run(rows_file, folder, dropout=0.0, callbacks=(), checkpoint=None, changes=(), **options):
    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 3,
    }
    model = tiny_model(dropout=dropout)
    trainer = VisionLanguageTrainer(
        model,
        TrainingArguments(output_dir=str(folder), **{**settings, **dict(changes)}),
        processing_class=tiny_processor(),
        train_dataset=dataset(rows_file, **options),
        callbacks=list(callbacks),
    )
    sizes = []

    def count(module, positional, named):
        if module.training:
            sizes.append((named["input_ids"].numel(), len(named["pixel_values"])))

    model.register_forward_pre_hook(count, with_kwargs=True)
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer, sizes


def test_a_window_of_one_step_keeps_the_losses_and_saves_padding(rows_file, tmp_path):
    plain, plain_sizes = run(rows_file, tmp_path)
    grouped, sizes = run(rows_file, tmp_path, group_by_length=1)
    assert losses(grouped) == pytest.approx(losses(plain), rel=2e-5)
    weights = [trainer.model.language_projection.weight.detach() for trainer in (plain, grouped)]
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-5)
    assert sum(tokens for tokens, _ in sizes) < 0.95 * sum(tokens for tokens, _ in plain_sizes)


def test_rows_on_one_image_have_it_encoded_once(rows_file, tmp_path):
    _, plain = run(rows_file, tmp_path)
    _, grouped = run(rows_file, tmp_path, group_by_image=2, group_by_length=1)
    # Of 24 rows 8 pairs are on one image and 4 pairs of what is left over on two: 16 images an epoch, in 2 epochs.
    assert sum(images for _, images in grouped) <= 32 < 36 < sum(images for _, images in plain)


@pytest.mark.parametrize(
    "options", [{"group_by_image": 2}, {"group_by_length": 1}, {"group_by_image": 2, "group_by_length": 4}]
)
def test_resuming_inside_of_a_window_ends_with_the_weights_of_an_uninterrupted_run(options, rows_file, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    whole, _ = run(rows_file, tmp_path / "whole", dropout=0.1, **options)
    saving = {"save_strategy": "steps", "save_steps": 3}
    run(rows_file, tmp_path / "parts", 0.1, [Stop()], changes=saving, **options)
    checkpoint = str(tmp_path / "parts" / "checkpoint-3")
    resumed, _ = run(rows_file, tmp_path / "parts", 0.1, checkpoint=checkpoint, changes=saving, **options)
    assert losses(resumed)[3:] == losses(whole)[3:]
    for (name, own), (_, expected) in zip(resumed.model.named_parameters(), whole.model.named_parameters()):
        assert torch.equal(own, expected), name

    other = {**options, "group_by_length": 2}
    with pytest.raises(ValueError, match="trained on another mixture"):
        run(rows_file, tmp_path / "parts", 0.1, checkpoint=checkpoint, changes=saving, **other)


def test_windows_of_several_steps_need_the_same_micro_batches(rows_file, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 3}
    run(rows_file, tmp_path, changes=saving, group_by_length=2)
    other = {**saving, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    with pytest.raises(ValueError, match="trained on another mixture"):
        run(rows_file, tmp_path, checkpoint=str(tmp_path / "checkpoint-3"), changes=other, group_by_length=2)


def test_in_a_recipe(rows_file, tmp_path):
    checkpoint = save_tiny_checkpoint(tmp_path / "model")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
model: {{path: {checkpoint}}}
data:
  train:
    mixture:
      datasets: {{rows: {{file: {rows_file}}}}}
      group_by_image: 3
      group_by_length: 2
training: {{max_steps: 2, per_device_train_batch_size: 6, save_strategy: "no", report_to: none, use_cpu: true}}
""",
        encoding="utf-8",
    )
    prepared = prepare_run(load_recipe(recipe), tmp_path / "out")
    mixture = prepared.trainer.train_dataset.mixture
    assert (mixture.group_by_image, mixture.group_by_length, mixture.draws_per_choice) == (3, 2, 3)
    images = [prepared.trainer.train_dataset.datasets["rows"].peek(mixture.draw(n).row)["images"] for n in range(24)]
    assert all(images[place] == images[place + 1] == images[place + 2] for place in range(0, 24, 3))
    prepared.run()


def test_problems_in_recipes_and_datasets(rows_file, tmp_path):
    section = {"datasets": {"rows": {"file": str(rows_file)}}, "draws_per_choice": 4, "group_by_image": 3}
    _, problems = resolve_mixture(section, tmp_path, "data.train.mixture")
    assert any("draws_per_choice is 4; it must be a multiple of group_by_image" in problem for problem in problems)
    arguments_of_mixture = MixtureArguments(datasets={"rows": {"file": str(rows_file)}}, group_by_length=1)
    assert open_mixture(arguments_of_mixture, 8).mixture.group_by_length == 1
