"""Mixtures in recipes: checked as a whole, read from official files, drawn in order, and resumed exactly."""

import json

import pytest
import torch
import yaml
from PIL import Image
from transformers import TrainerCallback, TrainingArguments

from instructblip_hf.data.mixture import Mixture, MixtureDataset, MixtureSampler
from instructblip_hf.data.sources.shapes_world import ShapesWorld
from instructblip_hf.training import RecipeError, VisionLanguageTrainer, load_recipe, prepare_run
from official_formats import write_dataset
from tiny_shapes import save_tiny_checkpoint, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    save_tiny_checkpoint(folder / "model")
    for name in ("okvqa", "vqav2", "coco_caption"):
        write_dataset(name, folder / "datasets" / name)
    (folder / "own").mkdir()
    Image.new("RGB", (20, 20), "red").save(folder / "own" / "a.png")
    (folder / "own" / "a.txt").write_text("A red square.")
    row = {"image": "a.png", "prompt": "what color ?", "completion": "red"}
    (folder / "own" / "rows.jsonl").write_text("\n".join([json.dumps(row)] * 3))
    return folder


def recipe_of(mixture, evaluation=None, **training):
    data = {"train": {"mixture": mixture}}
    if evaluation is not None:
        data["evaluation"] = {"mixture": evaluation}
    options = {"max_steps": 4, "per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none"}
    return {"model": {"path": "model"}, "data": data, "training": {**options, **training}}


def write(folder, content):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


GOOD = {
    "root": "datasets",
    "seed": 3,
    "datasets": {
        "okvqa": {"factor": 2},
        "vqav2": {"split": "train+val"},
        "coco_caption": None,
        "mine": {"file": "own/rows.jsonl"},
        "album": {"folder": "own", "factor": 0.5},
    },
}


def test_a_recipe_becomes_its_mixture(folder, tmp_path):
    # The folder of images holds a file of rows too, which it leaves alone: only a metadata file has its content.
    recipe = load_recipe(write(folder, recipe_of(GOOD, {**GOOD, "draws": 6, "balance": "uniform"})))
    run = prepare_run(recipe, tmp_path / "out")
    dataset, evaluation = run.trainer.train_dataset, run.trainer.eval_dataset
    assert len(dataset) == 4 * 2
    assert len(evaluation) == 6
    assert evaluation.mixture.balance == "uniform"
    assert dataset.mixture.names == ("okvqa", "vqav2", "coco_caption", "mine", "album")
    assert dataset.mixture.factors == {"okvqa": 2, "album": 0.5}
    assert dataset.mixture.seed == 3
    assert dataset.mixture.sizes["mine"] == 3
    sizes = {name: len(rows) for name, rows in dataset.datasets.items()}
    probabilities = dataset.mixture.probabilities
    ratio = 2 * (sizes["okvqa"] / sizes["mine"]) ** 0.5
    assert probabilities["okvqa"] / probabilities["mine"] == pytest.approx(ratio)
    rows = [dataset[number] for number in range(60)]
    assert {row["dataset"] for row in rows} == set(dataset.mixture.names)
    assert all(isinstance(image, Image.Image) for row in rows for image in row["images"])
    run.run()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "mixture of 5 datasets" in card
    assert "| okvqa |" in card
    assert str(folder) not in card


def test_forms_and_slots_reach_the_rows(folder, tmp_path):
    mixture = {"root": "datasets", "datasets": {"okvqa": {}}, "form": "identifier", "without": ["options"]}
    run = prepare_run(load_recipe(write(folder, recipe_of(mixture))), tmp_path / "out")
    assert run.trainer.train_dataset[0]["prompt"].startswith("[Knowledge-grounded image question answering:okvqa] ")


def test_the_shapes_world_is_a_dataset_like_any_other(folder, tmp_path):
    world = {"examples": 16, "tasks": ["color", "count"], "seed": 3, "templates": "held_out"}
    mixture = {"datasets": {"shapes": {"shapes_world": world}, "mine": {"file": "own/rows.jsonl"}}, "seed": 5}
    run = prepare_run(load_recipe(write(folder, recipe_of(mixture, logging_steps=1))), tmp_path / "out")
    dataset = run.trainer.train_dataset
    assert dataset.mixture.sizes == {"shapes": 16, "mine": 3}
    expected = ShapesWorld(3, tasks=["color", "count"], templates="held_out")
    draws = [dataset.mixture.draw(number) for number in range(20)]
    assert {draw.dataset for draw in draws} == {"shapes", "mine"}
    for number, draw in enumerate(draws):
        if draw.dataset == "shapes":
            row = expected.example(draw.row)
            assert (dataset[number]["prompt"], dataset[number]["completion"]) == (row["prompt"], row["completion"])
            assert dataset[number]["images"][0].tobytes() == row["images"][0].tobytes()
    run.run()
    logged = [key for entry in run.trainer.state.log_history for key in entry]
    assert {"loss/shapes", "loss/mine"} <= {*logged}


def changed(**changes):
    return {**GOOD, **changes}


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({}, "data.train.mixture.datasets: missing"),
        (changed(datasets={}), "data.train.mixture: datasets is empty"),
        (changed(balance="cubic"), "data.train.mixture: balance is 'cubic'; allowed are sqrt, uniform, size"),
        (changed(form="poem"), "data.train.mixture: form is 'poem'; allowed are"),
        (changed(without=["hints"]), "without: 'hints' is no slot"),
        (changed(draws_per_choice=0), "draws_per_choice is 0"),
        (changed(draws=5), "data.train.mixture.draws: may not be set"),
        (changed(seeds=5), "data.train.mixture.seeds: unknown key; did you mean 'seed'?"),
        (changed(root="nowhere"), "data.train.mixture.root: there is no folder"),
        (changed(datasets={"okvqaa": {}}), "datasets.okvqaa: is no dataset of the catalog; did you mean 'okvqa'?"),
        (changed(datasets={"zzz": {}}), "is no dataset of the catalog (instructblip data list)"),
        (
            changed(datasets={"x": {"file": "a", "folder": "b"}}),
            "needs one of file, folder, shapes_world, shards, hub",
        ),
        (changed(datasets={"x": {"file": "none.jsonl"}}), "datasets.x.file: there is no file"),
        (changed(datasets={"x": {"file": "recipe.yaml"}}), "recipe.yaml is neither of .jsonl, .csv"),
        (changed(datasets={"x": {"folder": "none"}}), "datasets.x.folder: there is no folder"),
        (changed(datasets={"x": {"folder": "own", "category": "art"}}), "category is 'art'"),
        (changed(datasets={"x": {"shapes_world": {"tasks": ["color"]}}}), "x.shapes_world.examples: missing"),
        (changed(datasets={"x": {"shapes_world": {"examples": 3, "tasks": ["x"]}}}), "x.shapes_world: task='x'"),
        (changed(datasets={"okvqa": {"shapes_world": {"examples": 3}}}), "okvqa is a dataset of the catalog; give"),
        (changed(datasets={"okvqa": {"file": "own/rows.jsonl"}}), "okvqa is a dataset of the catalog; give data"),
        (changed(datasets={"okvqa": {"factor": 0}}), "datasets.okvqa: factor is 0.0; it must be positive"),
        (changed(datasets={"okvqa": {"answer_choice": "best"}}), "answer_choice is 'best'; allowed are draw, "),
        (
            changed(datasets={"own": {"file": "a.jsonl", "answer_choice": "first_two"}}),
            "answer_choice is of rows with",
        ),
        (changed(datasets={"okvqa": {"factor": "much"}}), "datasets.okvqa.factor: must be a number, not 'much'"),
        (changed(datasets={"okvqa": {"split": "trian"}}), "okvqa has no split 'trian'; it has train, val"),
        (changed(datasets={"aokvqa": {"split": "test"}}, root="own"), "no folder"),
        (changed(datasets={"textcaps": {}}), "datasets.textcaps.root: there is no folder"),
        (changed(datasets={"textcaps": {"root": "okvqa"}}), "datasets.textcaps.root: "),
        ({"datasets": {"okvqa": {}}}, "datasets.okvqa.root: missing; give the folder"),
        (changed(datasets={"okvqa": {"image_root": "none"}}), "datasets.okvqa.image_root: there is no folder"),
        (changed(datasets={"okvqa": "datasets/okvqa"}), "datasets.okvqa: must be a mapping"),
    ],
)
def test_bad_mixtures(folder, mixture, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, recipe_of(mixture)))
    assert any(message in line for line in caught.value.problems), caught.value.problems
    assert len(caught.value.problems) <= 2


def test_everything_that_is_wrong_with_a_mixture_is_told_at_once(folder):
    datasets = {"okvqaa": {}, "okvqa": {"factor": -1}, "vqav2": {"splt": "val"}, "mine": {"file": "gone.csv"}}
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, recipe_of(changed(balance="x", datasets=datasets), max_stepz=3)))
    for part in ("balance", "okvqaa", "factor", "vqav2.splt", "gone.csv", "max_stepz"):
        assert any(part in line for line in caught.value.problems), part


def test_what_a_mixture_needs_beside_it(folder):
    with pytest.raises(RecipeError, match="max_steps: missing; a mixture has no end"):
        load_recipe(write(folder, recipe_of(GOOD)), ["training.max_steps=-1"])
    with pytest.raises(RecipeError, match=r"data.evaluation.mixture.draws: missing"):
        load_recipe(write(folder, recipe_of(GOOD, GOOD)))


def test_malformed_rows_are_told_with_their_dataset(folder, tmp_path):
    (folder / "bad.jsonl").write_text('{"prompt": "p"}\n')
    recipe = load_recipe(write(folder, recipe_of({"datasets": {"worse": {"file": "bad.jsonl"}}})))
    with pytest.raises(ValueError, match=r"worse: bad.jsonl:1: has neither image nor images"):
        prepare_run(recipe, tmp_path / "out")


# --- under the trainer --------------------------------------------------------------------------------------------------


class Stop(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


class Rows:
    """Questions about shapes; their words depend on the epoch, as instructions do."""

    def __init__(self, seed, size, seen):
        self.world, self.size, self.seed, self.seen = ShapesWorld(seed), size, seed, seen

    def __len__(self):
        return self.size

    def at(self, row, epoch):
        self.seen.append((self.seed, row, epoch))
        return self.world.example(row + 100 * epoch)


def trainer_of(folder, max_steps=6, seed=7, **changes):
    seen = []
    datasets = {"a": Rows(0, 9, seen), "b": Rows(1, 2, seen)}
    mixture = Mixture({name: len(rows) for name, rows in datasets.items()}, seed=seed)
    callbacks = changes.pop("callbacks", [])
    options = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "save_strategy": "steps",
        "save_steps": 3,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    args = TrainingArguments(output_dir=str(folder), max_steps=max_steps, **{**options, **changes})
    trainer = VisionLanguageTrainer(
        tiny_model(dropout=0.1),
        args,
        processing_class=tiny_processor(),
        # Fewer than the training needs: the sampler goes by the steps.
        train_dataset=MixtureDataset(datasets, mixture, 8),
        callbacks=callbacks,
    )
    return trainer, seen


def test_stopped_in_the_middle_and_resumed_is_bitwise_the_uninterrupted_run(tmp_path):
    whole, seen = trainer_of(tmp_path / "whole")
    whole.train()
    numbers = [whole.train_dataset.mixture.draw(number) for number in range(24)]
    drawn = [("ab".index(draw.dataset), draw.row, draw.epoch) for draw in numbers]
    assert seen == drawn
    stopped, first = trainer_of(tmp_path / "parts", callbacks=[Stop(3)])
    stopped.train()
    resumed, second = trainer_of(tmp_path / "parts")
    resumed.train(resume_from_checkpoint=True)
    assert first[:12] == drawn[:12], "the loader may have read a batch ahead"
    assert second == drawn[12:]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_the_sampler_covers_the_training_and_other_data_keeps_trainer_s(tmp_path):
    trainer, _ = trainer_of(tmp_path)
    sampler = trainer._get_train_sampler()
    assert isinstance(sampler, MixtureSampler)
    assert list(sampler) == list(range(6 * 2 * 2))
    assert not isinstance(trainer._get_train_sampler([1, 2, 3]), MixtureSampler)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 8}, "was trained on another mixture"),
        ({"per_device_train_batch_size": 4}, "was trained with 4 rows a step, now there are 8"),
    ],
)
def test_another_mixture_does_not_go_on(tmp_path, changes, message):
    trainer, _ = trainer_of(tmp_path, max_steps=3)
    trainer.train()
    other, seen = trainer_of(tmp_path, **changes)
    for checkpoint in (True, str(tmp_path / "checkpoint-3")):
        with pytest.raises(ValueError, match=message):
            other.train(resume_from_checkpoint=checkpoint)
    assert not seen


def test_the_same_rows_a_step_in_other_batches_go_on(tmp_path):
    trainer, _ = trainer_of(tmp_path, max_steps=3)
    trainer.train()
    other, seen = trainer_of(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=1)
    other.train(resume_from_checkpoint=True)
    draws = [other.train_dataset.mixture.draw(number) for number in range(12, 24)]
    assert seen == [("ab".index(draw.dataset), draw.row, draw.epoch) for draw in draws]


def test_a_recipe_of_another_mixture_is_refused_before_the_model_is_loaded(folder, tmp_path):
    path = write(folder, recipe_of(GOOD, save_strategy="steps", save_steps=2))
    prepare_run(load_recipe(path, ["training.max_steps=2"]), tmp_path / "out").run()
    assert prepare_run(load_recipe(path), tmp_path / "out", resume=True).checkpoint.endswith("checkpoint-2")
    changed_recipe = load_recipe(path, ["data.train.mixture.seed=4", "model.path=nobody/nothing"])
    with pytest.raises(ValueError, match="another mixture"):
        prepare_run(changed_recipe, tmp_path / "out", resume=True)
