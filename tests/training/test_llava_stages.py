"""LLaVA's stages as recipes: what the first leaves and the second takes, what trains, resuming, adapters, lengths."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    CLIPImageProcessorPil,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    TrainerCallback,
)

from instructblip_hf.models.chat_templates import CHAT_TEMPLATES
from instructblip_hf.models.llava import LlavaForConditionalGeneration, LlavaProcessor
from instructblip_hf.training import RecipeError, load_recipe, prepare_run
from instructblip_hf.training.arguments import ModelArguments, PartsArguments
from instructblip_hf.training.composition import compose
from instructblip_hf.training.run import load_model
from tiny_llava_parts import save_conversations, save_llava_parts
from tiny_shapes import save_tiny_checkpoint


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return save_llava_parts(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return save_conversations(tmp_path_factory.mktemp("data") / "data")


def recipe_of(folder, parts, rows, model=None, mixture=None, training=None, data=None, **sections):
    """A recipe of the second stage, with changes."""
    content = {
        "model": {
            "parts": {"vision": str(parts["vision"]), "text": str(parts["text"])},
            "chat_template": "v1",
            **(model or {}),
        },
        "freezing": "llava-stage2",
        "data": {
            "train": {
                "mixture": {
                    "datasets": {"rows": {"file": str(rows), "image_root": str(rows.parent / "images")}},
                    **(mixture or {}),
                }
            },
            **(data or {}),
        },
        "training": {
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "report_to": "none",
            **(training or {}),
        },
        **sections,
    }
    if "path" in (model or {}):
        del content["model"]["parts"]
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_recipe(path)


def losses(run):
    return [entry["loss"] for entry in run.trainer.state.log_history if "loss" in entry]


def test_the_first_stage_leaves_a_projector_that_the_second_begins_with(parts, rows, tmp_path):
    captions = rows.with_name("captions.json")
    first = prepare_run(
        recipe_of(tmp_path, parts, captions, {"chat_template": "plain"}, freezing="llava-stage1"), tmp_path / "first"
    )
    before = {name: tensor.clone() for name, tensor in first.trainer.model.state_dict().items()}
    first.run()
    trained = first.trainer.model.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, trained[name])}
    assert changed == {name for name in before if name.startswith("multi_modal_projector.")}
    saved = load_file(tmp_path / "first" / "projector" / "projector.safetensors")
    assert {f"multi_modal_projector.{name}" for name in saved} == changed

    for model in ({"projector": str(tmp_path / "first" / "projector")}, {"path": str(tmp_path / "first")}):
        out = tmp_path / f"second {next(iter(model))}"
        second = prepare_run(recipe_of(tmp_path, parts, rows, model), out)
        begins = second.trainer.model.state_dict()
        assert all(torch.equal(begins[name], trained[name]) for name in changed)
        second.run()
        assert not (out / "projector").exists(), "the language model has changed with it"
        model = LlavaForConditionalGeneration.from_pretrained(out)
        ends = model.state_dict()
        towers = [name for name in ends if name.startswith("vision_tower.")]
        assert all(torch.equal(ends[name], before[name]) for name in towers)
        assert not torch.equal(ends["language_model.lm_head.weight"], before["language_model.lm_head.weight"])
        assert LlavaProcessor.from_pretrained(out).chat_template == CHAT_TEMPLATES["v1"]


def test_the_loss_is_that_of_the_answers(parts, rows, tmp_path):
    """Of the first step, against the mean over the labels of its rows, each alone."""
    recipe = recipe_of(tmp_path, parts, rows, mixture={"image_order": "random", "seed": 3})
    run = prepare_run(recipe, tmp_path / "out")
    model, processor = load_model(recipe.model)
    total, count = 0.0, 0
    for number in range(4):
        inputs = processor.encode_examples([run.trainer.train_dataset[number]])
        labels = inputs.pop("labels")[0, 1:]
        with torch.no_grad():
            logits = model(**inputs).logits[0, :-1]
        chosen = labels != -100
        total += torch.nn.functional.cross_entropy(logits[chosen], labels[chosen], reduction="sum").item()
        count += int(chosen.sum())
    run.run()
    assert losses(run)[0] == pytest.approx(total / count, rel=1e-5)


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def test_a_run_that_was_stopped_goes_on_with_the_very_next_row(parts, rows, tmp_path):
    mixture = {"image_order": "random", "group_by_length": 2, "group_by_modality": True}
    training = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    recipe = recipe_of(tmp_path, parts, rows, mixture=mixture, training=training, freezing="llava-stage1")
    whole = prepare_run(recipe, tmp_path / "whole")
    whole.run()
    prepare_run(recipe, tmp_path / "stopped", callbacks=[StopAt(2)]).trainer.train()
    resumed = prepare_run(recipe, tmp_path / "stopped", resume=True)
    assert resumed.checkpoint is not None
    resumed.run()
    assert losses(resumed) == losses(whole)
    for file in ("model.safetensors", "projector/projector.safetensors"):
        ours, theirs = load_file(tmp_path / "stopped" / file), load_file(tmp_path / "whole" / file)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_lora_with_a_projector_that_trains_as_a_whole(parts, rows, tmp_path):
    """One adapter has both, and PEFT alone opens it."""
    peft = pytest.importorskip("peft")
    recipe = recipe_of(
        tmp_path,
        parts,
        rows,
        {"path": str(parts["llava"])},
        freezing={
            "preset": "llava-stage2",
            "components": {"language_model": "lora"},
            "lora_rank": 4,
            "lora_alpha": 8,
            "save": "adapter",
        },
        optimization={"learning_rates": {"^multi_modal_projector": 1e-3}},
        training={"learning_rate": 1e-2, "lr_scheduler_type": "constant"},
    )
    run = prepare_run(recipe, tmp_path / "out")
    run.run()
    rates = {group["lr"] for group in run.trainer.optimizer.param_groups}
    assert rates == {1e-2, 1e-3}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["multi_modal_projector"]
    base = LlavaForConditionalGeneration.from_pretrained(parts["llava"])
    untrained = base.state_dict()["multi_modal_projector.linear_1.weight"].clone()
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    inputs = run.trainer.processing_class.encode_examples([run.trainer.train_dataset[0]])
    with torch.no_grad():
        expected = run.trainer.model.eval()(**inputs).logits
        torch.testing.assert_close(loaded(**inputs).logits, expected, rtol=1e-5, atol=1e-5)
    merged = loaded.merge_and_unload().state_dict()
    assert not torch.equal(merged["multi_modal_projector.linear_1.weight"], untrained)


def test_rows_are_cut_to_max_length(parts, rows, tmp_path):
    run = prepare_run(recipe_of(tmp_path, parts, rows, data={"max_length": 60}), tmp_path / "out")
    row = run.trainer.train_dataset[0]
    whole = run.trainer.processing_class.encode_examples([row])
    batch = run.trainer.data_collator([row])
    assert batch["input_ids"].tolist() == whole["input_ids"][:, :60].tolist()
    assert batch["labels"].tolist() == whole["labels"][:, :60].tolist()


def test_a_file_of_conversations_without_a_mixture(parts, rows, tmp_path):
    data = {"train": str(rows), "evaluation": str(rows), "image_root": str(rows.parent / "images")}
    run = prepare_run(recipe_of(tmp_path, parts, rows, data=data), tmp_path / "out")
    assert run.train_examples == 16
    assert run.run().eval_metrics["eval_loss"] > 0


@pytest.mark.parametrize("kind", ["linear", "mlp", "qformer"])
def test_connectors_out_of_parts(kind, parts):
    chosen = PartsArguments(
        vision=str(parts["vision"]), text=str(parts["text"]), projector_type=kind, num_query_tokens=5
    )
    model, processor = compose(chosen, torch.float32)
    assert model.config.projector_type == kind
    assert processor.tokens_per_image == (5 if kind == "qformer" else 4)
    assert processor.tokenizer.padding_side == "left"
    assert processor.tokenizer.pad_token == "<unk>"
    assert model.get_input_embeddings().weight.shape[0] > processor.image_token_id
    image = torch.zeros(3, 28, 28, dtype=torch.uint8).numpy()
    inputs = processor(images=image, text="What is it?", return_tensors="pt")
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("registers", [0, 4])
def test_towers_with_other_tokens_and_sizes(registers, parts, tmp_path):
    """DINOv2 was made at 518 pixels and gets images of 224, and may have registers beside its class token."""
    shape = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 14, "image_size": 56}
    config = Dinov2WithRegistersConfig(**shape, num_register_tokens=4) if registers else Dinov2Config(**shape)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    size = {"height": 28, "width": 28}
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=size).save_pretrained(tmp_path)
    model, processor = compose(PartsArguments(vision=str(tmp_path), text=str(parts["text"])), torch.float32)
    assert processor.tokens_per_image == model.config.image_seq_length == 4 + registers
    image = torch.zeros(3, 28, 28, dtype=torch.uint8).numpy()
    with torch.no_grad():
        assert model(**processor(images=image, text="What is it?", return_tensors="pt")).logits.isfinite().all()


def test_parts_out_of_whole_models(parts):
    """Of a model of this package the tower, or the language model with its tokenizer."""
    source = LlavaForConditionalGeneration.from_pretrained(parts["llava"]).state_dict()
    chosen = PartsArguments(vision=str(parts["llava"]), text=str(parts["llava"]), vision_feature_layer=-1)
    model, processor = compose(chosen, torch.float32)
    assert model.config.vision_feature_layer == -1
    assert len(processor.tokenizer) == source["language_model.lm_head.weight"].shape[0]
    for name, value in model.state_dict().items():
        is_new = name.startswith("multi_modal_projector.") and name.endswith(".weight")
        assert torch.equal(value, source[name]) is not is_new, name


def test_images_that_are_padded(parts, tmp_path):
    _, processor = load_model(ModelArguments(path=str(parts["llava"]), pad_images=True))
    wide = torch.full((3, 14, 56), 255, dtype=torch.uint8).numpy()
    pixels = processor(images=wide, text="What is it?", return_tensors="pt")["pixel_values"][0]
    assert pixels.shape == (3, 28, 28)
    assert pixels[:, 14, 14].min() > 1.5, "the image is in the middle"
    assert pixels[:, 1, 14].abs().max() < 0.05, "above it is the mean colour, which is zero"
    processor.save_pretrained(tmp_path)
    again = LlavaProcessor.from_pretrained(tmp_path)(images=wide, text="What is it?", return_tensors="pt")
    assert torch.equal(again["pixel_values"][0], pixels)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"projector": "nowhere"}, "model.projector: .*nowhere holds no connector"),
        ({"chat_template": "v7"}, "chat_template is 'v7'"),
        ({"parts": {"vision": "a/b", "text": "c/d", "projector_type": "mlp3"}}, "projector_type is 'mlp3'"),
        ({"parts": {"vision": "a/b", "text": "c/d", "end_token": "x"}}, "end_token is for BLIP-2's second stage"),
        ({"parts": {"vision": "a/b", "bert": "c/d", "projector_type": "linear"}}, "projector_type is LLaVA's"),
        ({"parts": {"vision": "a/b", "bert": "c/d", "vision_feature_layer": -1}}, "vision_feature_layer is LLaVA's"),
    ],
)
def test_settings_that_do_not_fit(model, message, parts, rows, tmp_path):
    with pytest.raises(RecipeError, match=message):
        recipe_of(tmp_path, parts, rows, model)


def test_settings_of_another_model(parts, rows, tmp_path):
    path = str(save_tiny_checkpoint(tmp_path / "instructblip"))
    with pytest.raises(ValueError, match="model.pad_images is for LLaVA, and the model is a InstructBlip"):
        load_model(ModelArguments(path=path, pad_images=True))
    folder = tmp_path / "projector"
    load_model(ModelArguments(path=str(parts["llava"])))[0].save_projector(folder)
    with pytest.raises(ValueError, match="model.projector is a connector of LLaVA's, and the model is a InstructBlip"):
        load_model(ModelArguments(path=path, projector=str(folder)))
    shutil.rmtree(folder)


# Rows of the data, epochs, rows of a step on 8 GPUs, learning rate, connector, template (Liu et al. 2023, and the scripts of
# haotian-liu/LLaVA: scripts/v1_5/{pretrain,finetune,finetune_lora}.sh).
PUBLISHED = {
    "llava_stage1": (595_375, 1, 128, 2e-3, "linear", "v0"),
    "llava_stage2": (157_712, 3, 32, 2e-5, "linear", "v0"),
    "llava_scienceqa": (12_726, 12, 32, 2e-5, "linear", "llava_v1"),
    "llava_v1_5_stage1": (558_128, 1, 256, 1e-3, "mlp", "plain"),
    "llava_v1_5_stage2": (665_298, 1, 128, 2e-5, "mlp", "v1"),
    "llava_v1_5_lora": (665_298, 1, 128, 2e-4, None, "v1"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_have_the_published_settings(name):
    rows, epochs, batch, rate, connector, template = PUBLISHED[name]
    recipe = load_recipe(name, data_files=False)
    args = recipe.training_arguments("out")
    assert 8 * args.per_device_train_batch_size * args.gradient_accumulation_steps == batch
    assert args.max_steps == -(-rows * epochs // batch)
    assert (args.learning_rate, args.weight_decay, args.max_grad_norm) == (rate, 0.0, 1.0)
    assert (str(args.lr_scheduler_type.value), args.get_warmup_steps(1000), args.bf16) == ("cosine", 30, True)
    assert (args.adam_beta1, args.adam_beta2) == (0.9, 0.999)
    assert (recipe.model.parts or {}).get("projector_type") == connector
    assert recipe.model.chat_template == template
    assert recipe.data.max_length == 2048
    # In 16 bits small steps are lost.
    assert (recipe.model.dtype, recipe.model.frozen_dtype) == ("float32", "bfloat16")
    assert recipe.freezing.preset == ("llava-stage1" if name.endswith("stage1") else "llava-stage2")
    if name == "llava_v1_5_lora":
        assert (recipe.freezing.lora_rank, recipe.freezing.lora_alpha) == (128, 256)
        assert recipe.optimization.learning_rates == {"^multi_modal_projector": 2e-5}
