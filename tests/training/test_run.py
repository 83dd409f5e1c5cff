"""Recipes as they run: the shipped ones and the examples', found by glob, and what a run leaves behind."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import get_scheduler

import instructblip_hf
from instructblip_hf.data.catalog import DATASETS
from instructblip_hf.models.families import family_of
from instructblip_hf.training import (
    load_recipe,
    prepare_run,
    read_recipe,
    reinitialize,
    run_recipe,
    shipped_recipes,
)
from instructblip_hf.training.adapters import load_adapter
from instructblip_hf.training.arguments import ModelArguments
from instructblip_hf.training.run import load_model
from official_formats import write_dataset
from tiny_blip_2 import save_stages
from tiny_llava_parts import save_conversations, save_llava_parts
from tiny_shapes import save_tiny_checkpoint, tiny_model


ROOT = Path(__file__).parents[2]
RECIPES = sorted((Path(instructblip_hf.__file__).parent / "recipes").glob("*.yaml")) + sorted(
    ROOT.glob("examples/**/*recipe*.yaml")
)
OWN_IMAGES = ROOT / "examples" / "own_images" / "recipe.yaml"
SMALL = [
    "training.max_steps=2",
    "training.per_device_train_batch_size=2",
    "training.per_device_eval_batch_size=2",
    "training.use_cpu=true",
    "training.disable_tqdm=true",
    "training.eval_strategy=no",
    "training.save_strategy=no",
    "training.dataloader_num_workers=0",
    "training.load_best_model_at_end=false",
]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def seq2seq_checkpoint(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "seq2seq", "seq2seq")


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    return save_stages(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="session")
def datasets(tmp_path_factory):
    """Copies of the recipes' datasets in their official formats, as the recipes want them: shared images in coco."""
    root = tmp_path_factory.mktemp("datasets")
    for name, spec in DATASETS.items():
        if spec.role == "held-in" or name == "scienceqa":
            own = "llava" if name.startswith("llava_") else name
            write_dataset(name, root / own)
            if any(images.startswith("train20") for images in spec.images):
                write_dataset(name, root / "coco")
    for annotations in (root / "coco").glob("*.json"):
        annotations.unlink()
    return root


@pytest.fixture(scope="session")
def llava(tmp_path_factory):
    """Parts of a LLaVA, the whole of it, its two kinds of connector, and conversations."""
    folder = tmp_path_factory.mktemp("llava")
    found = save_llava_parts(folder)
    for kind in ("linear", "mlp"):
        chosen = {"vision": str(found["vision"]), "text": str(found["text"]), "projector_type": kind}
        load_model(ModelArguments(parts=chosen))[0].save_projector(folder / kind)
        found[kind] = folder / kind
    return {**found, "rows": save_conversations(folder / "data")}


def llava_changes(content, model, llava):
    rows = llava["rows"].with_name("captions.json") if model.get("chat_template") == "plain" else llava["rows"]
    changes = ["training.gradient_checkpointing=false"]
    if "path" in model:
        changes.append(f"model.path={llava['llava']}")
    else:
        changes += [f"model.parts.{name}={llava[name]}" for name in ("vision", "text")]
    if "projector" in model:
        changes.append(f"model.projector={llava[model['parts']['projector_type']]}")
    for name, part in content["train"]["mixture"]["datasets"].items():
        where = f"data.train.mixture.datasets.{name}"
        if "file" in part:
            changes += [f"{where}.file={rows}", f"{where}.image_root={rows.parent / 'images'}"]
    return changes


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_recipe_runs(path, checkpoint, seq2seq_checkpoint, parts, llava, datasets, tmp_path):
    content, model = read_recipe(path).content["data"], read_recipe(path).content["model"]
    changes = [*SMALL]
    if path.stem.startswith("llava"):
        changes += llava_changes(content, model, llava)
    elif model.get("parts"):
        texts = {"opt": "opt", "flant5": "seq2seq", "vicuna": "causal"}
        folders = {**parts, "text": parts[next((texts[name] for name in texts if name in path.stem), "opt")]}
        changes += [f"model.parts.{name}={folders[name]}" for name in model["parts"] if name in folders]
        changes += ["model.parts.num_query_tokens=4"] if "vision" in model["parts"] else []
        # The tokenizer of the shapes world has no newline.
        changes += ["model.parts.end_token=null"] if "end_token" in model["parts"] else []
    elif path.stem.startswith("blip2"):
        changes.append(f"model.path={parts['second_stage' if 'caption' in path.stem else 'first_stage']}")
    else:
        changes.append(f"model.path={seq2seq_checkpoint if 't5' in path.stem else checkpoint}")
    if "mixture" in content["train"]:
        changes.append("training.per_device_train_batch_size=32")
        changes += [f"data.train.mixture.root={datasets}"] if "root" in content["train"]["mixture"] else []
    if "mixture" in (content.get("evaluation") or ()):
        changes.append("data.evaluation.mixture.draws=3")
    elif "shapes_world" in (content.get("evaluation") or ()):
        changes.append("data.evaluation.shapes_world.examples=3")
    recipe = load_recipe(path, changes)
    if recipe.model.quantization is not None:
        pytest.importorskip("bitsandbytes", reason="the extra quant is not installed")
    run = prepare_run(recipe, tmp_path / "out")
    if "mixture" in content["train"]:
        assert all(run.trainer.train_dataset.mixture.counts(64).values()), "each dataset is read"
    result = run.run()
    assert result.train_metrics["train_loss"] > 0
    assert (result.eval_metrics.get("eval_loss", 0) > 0) == (recipe.data.evaluation is not None)
    if run.trainer.saves_adapter:
        saved = load_adapter(result.output_dir).get_base_model()
    else:
        saved = family_of(result.output_dir)[1].from_pretrained(result.output_dir)
    assert type(saved) is type(run.trainer.model)
    if recipe.model.image_size is not None:
        assert saved.config.vision_config.image_size == recipe.model.image_size
    is_first_stage = recipe.freezing.preset == "llava-stage1"
    assert (result.output_dir / "projector" / "projector_config.json").is_file() is is_first_stage
    if path.stem.startswith(("blip2", "llava")):
        return
    assert saved.config.qformer_config.use_qformer_text_input is recipe.model.qformer_instruction


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_recipe_opens_with_the_command_that_runs_it(path):
    name = path.stem if path.stem in shipped_recipes() else path.relative_to(ROOT).as_posix()
    assert path.read_text().splitlines()[0] == f"# instructblip train {name}"


PAPER = {"flant5_xl": 192, "flant5_xxl": 64, "vicuna_7b": 128, "vicuna_13b": 64}
"""Batch sizes of section 3.1, on 16 GPUs."""


@pytest.mark.parametrize("name", PAPER)
def test_the_recipes_of_the_paper_have_its_settings(name):
    recipe = load_recipe(f"instructblip_{name}", data_files=False)
    arguments = recipe.training_arguments("out")
    assert 16 * arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps == PAPER[name]
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.weight_decay) == (0.9, 0.999, 0.05)
    assert (arguments.learning_rate, arguments.warmup_steps, arguments.max_steps) == (1e-5, 1000, 60_000)
    assert (arguments.eval_steps, arguments.save_steps, arguments.load_best_model_at_end) == (3000, 3000, True)
    mixture = recipe.data.train["mixture"]
    assert [*mixture["datasets"]] == [name for name, spec in DATASETS.items() if spec.role == "held-in"]
    assert (mixture["balance"], mixture["form"]) == ("sqrt", "instruction")

    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    schedule = get_scheduler(arguments.lr_scheduler_type, optimizer, arguments.warmup_steps, arguments.max_steps)
    rates = []
    for _ in range(60_001):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    paper = [1e-8 + (1e-5 - 1e-8) * step / 1000 for step in range(1000)]
    assert rates[:1000] == pytest.approx(paper, abs=1.001e-8), "what the recipes say of the start"
    assert rates[1000] == pytest.approx(1e-5)
    assert rates[30_500] == pytest.approx(5e-6)
    assert rates[60_000] == pytest.approx(0, abs=1e-15)


FINETUNING = {
    "scienceqa": ("scienceqa", "train_image"),
    "ocr_vqa": ("ocr_vqa", "train"),
    "okvqa": ("okvqa", "train"),
    "aokvqa": ("aokvqa", "train"),
}


@pytest.mark.parametrize("name", FINETUNING)
def test_the_finetuning_recipes_hold_their_one_dataset(name):
    recipe = load_recipe(f"finetune_{name}", data_files=False)
    dataset, split = FINETUNING[name]
    parts = recipe.data.train["mixture"]["datasets"]
    assert {key: part["split"] for key, part in parts.items()} == {dataset: split}
    if recipe.data.evaluation is not None:
        assert [*recipe.data.evaluation["mixture"]["datasets"]] == [dataset]
    arguments = recipe.training_arguments("out")
    assert 16 * arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps == 128


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("no_instruction", ("model", "qformer_instruction"), False),
        ("no_balancing", ("data", "train", "mixture", "balance"), "uniform"),
        ("plain_inputs", ("data", "train", "mixture", "form"), "plain"),
        ("dataset_identifiers", ("data", "train", "mixture", "form"), "identifier"),
    ],
)
def test_an_ablation_differs_from_the_paper_in_one_thing(name, place, value):
    def flat(content, prefix=()):
        if not isinstance(content, dict):
            return {prefix: content}
        return {key: leaf for name, item in content.items() for key, leaf in flat(item, (*prefix, name)).items()}

    paper, ablation = (flat(read_recipe(name).content) for name in ("instructblip_vicuna_7b", f"ablation_{name}"))
    different = {key for key in paper | ablation if paper.get(key) != ablation.get(key)}
    training = {key for key in different if key[:2] != ("data", "evaluation")}
    assert training == {place}
    assert ablation[place] == value
    assert {key[-1] for key in different} == {place[-1]}


def test_own_images_end_to_end(checkpoint, tmp_path):
    recipe = load_recipe(OWN_IMAGES, [*SMALL, f"model.path={checkpoint}"])
    run = prepare_run(recipe, tmp_path / "out")
    assert len(run.trainer.train_dataset) == 24
    assert len(run.trainer.eval_dataset) == 6
    run.run()
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "README.md", "trainer_state.json", "eval_results.json"} <= written
    card = (tmp_path / "out" / "README.md").read_text()
    assert "train.jsonl" in card
    assert str(ROOT) not in card
    before, after = load_file(checkpoint / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in before.items():
        if name.startswith(("language_model.", "vision_model.encoder.")):
            assert torch.equal(after[name], tensor), name
    assert not torch.equal(before["query_tokens"], after["query_tokens"])


def test_resume_goes_on_from_the_newest_checkpoint(checkpoint, tmp_path):
    changes = [*SMALL, f"model.path={checkpoint}", "training.save_strategy=steps", "training.save_steps=1"]
    out = tmp_path / "out"
    run_recipe(load_recipe(OWN_IMAGES, changes), out)
    recipe = load_recipe(OWN_IMAGES, [*changes, "training.max_steps=3"])
    with pytest.raises(FileExistsError, match="--resume"):
        prepare_run(recipe, out)
    run = prepare_run(recipe, out, resume=True)
    assert run.checkpoint.endswith("checkpoint-2")
    run.run()
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 3


def test_resume_starts_where_there_is_nothing_yet(checkpoint, tmp_path):
    recipe = load_recipe(OWN_IMAGES, [*SMALL, f"model.path={checkpoint}"])
    assert prepare_run(recipe, tmp_path / "out", resume=True).checkpoint is None


def test_reinitialize_draws_anew_from_the_seed_and_leaves_the_rest():
    parts = ["qformer", "query_tokens", "language_projection"]

    def fresh(seed):
        model = tiny_model()
        state = torch.random.get_rng_state()
        reinitialize(model, parts, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        return model.state_dict()

    original, first, again, other = tiny_model().state_dict(), fresh(1), fresh(1), fresh(2)
    for name, tensor in original.items():
        assert torch.equal(first[name], again[name]), name
        if not name.startswith(tuple(parts)):
            assert torch.equal(first[name], tensor), name
        elif tensor.std() > 0 and name.endswith("weight") and "orm" not in name:
            assert not torch.equal(first[name], tensor), name
            assert not torch.equal(first[name], other[name]), name
            assert first[name].std() == pytest.approx(tensor.std(), rel=0.25), name
    assert not torch.equal(first["query_tokens"], original["query_tokens"])


def test_reinitialize_one_part_does_not_depend_on_the_others():
    one, several = tiny_model(), tiny_model()
    reinitialize(one, ["language_projection"], seed=4)
    reinitialize(several, ["qformer", "language_projection"], seed=4)
    assert torch.equal(one.language_projection.weight, several.language_projection.weight)


def test_reinitialize_an_unknown_part():
    with pytest.raises(ValueError, match="no component 'projection'"):
        reinitialize(tiny_model(), ["projection"])
