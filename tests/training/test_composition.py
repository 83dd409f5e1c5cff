"""What stages begin with: models out of parts in folders."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from instructblip_hf import Blip2ForPreTraining, InstructBlipForConditionalGeneration, start_second_stage
from instructblip_hf.models.families import family_of
from instructblip_hf.models.vision_towers.resizing import resize_images
from instructblip_hf.training import RecipeError, load_recipe, prepare_run
from instructblip_hf.training.arguments import ModelArguments, PartsArguments
from instructblip_hf.training.composition import compose
from instructblip_hf.training.run import load_model
from tiny_blip_2 import save_stages
from tiny_models import our_blip_2, our_model
from tiny_shapes import tiny_model, tiny_processor


IMAGE = torch.zeros(3, 56, 56, dtype=torch.uint8).numpy()


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return save_stages(tmp_path_factory.mktemp("parts"))


def test_a_first_stage_of_tower_and_bert(parts):
    model, processor = compose(
        PartsArguments(vision=str(parts["vision"]), bert=str(parts["bert"]), num_query_tokens=5), torch.float32
    )
    assert isinstance(model, Blip2ForPreTraining)
    assert model.query_tokens.shape[1] == processor.num_query_tokens == 5
    assert processor.tokenizer.bos_token == "[DEC]"
    assert model.embeddings.word_embeddings.num_embeddings == len(processor.tokenizer)
    assert processor.image_processor.size["height"] == 56
    inputs = processor(images=IMAGE, text="red circle", return_tensors="pt")
    assert inputs["input_ids"].shape[1] > 5, "with placeholders in front"
    apart = processor(text="red circle", return_tensors="pt")
    with torch.no_grad():
        expected = model.get_text_features(**apart).text_embeds
        torch.testing.assert_close(
            model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).text_embeds, expected
        )
    tower = tiny_model().vision_model.state_dict()
    assert all(torch.equal(value, tower[name]) for name, value in model.vision_model.state_dict().items())


def test_a_tower_without_an_image_processor_is_said(parts, tmp_path, caplog):
    vision = tmp_path / "vision"
    tiny_model().vision_model.save_pretrained(vision)
    _, processor = compose(PartsArguments(vision=str(vision), bert=str(parts["bert"])), torch.float32)
    assert processor.image_processor.size == {"height": 56, "width": 56}
    expected = (
        f"no image processor was found for the vision tower {vision}, images are resized to 56 x 56 and normalised"
    )
    assert expected in caplog.text


def test_a_second_stage_says_what_it_took(parts, caplog):
    with caplog.at_level(logging.INFO):
        model, processor = compose(
            PartsArguments(first_stage=str(parts["first_stage"]), text=str(parts["causal"])), torch.float32
        )
    assert "taken from Blip2ForImageTextRetrieval: qformer" in caplog.text
    assert "new: language_projection (2 tensors)" in caplog.text
    assert model.config.image_token_id == processor.image_token_id
    assert processor.num_query_tokens == 4
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id


def test_instruction_tuning_of_both_stages(parts):
    chosen = PartsArguments(first_stage=str(parts["first_stage"]), second_stage=str(parts["second_stage"]))
    model, processor = compose(chosen, torch.float32)
    assert isinstance(model, InstructBlipForConditionalGeneration)
    inputs = processor(images=IMAGE, text="what color is it ?", return_tensors="pt")
    assert model(**inputs).logits.isfinite().all()


def test_published_models_with_opt_learn_the_end_that_they_stop_at(parts, tmp_path):
    """Their generation stops at a newline; their processors say nothing of it."""
    family, model_class = family_of(parts["second_stage"])
    model = model_class.from_pretrained(parts["second_stage"])
    processor = family.processor_class.from_pretrained(parts["second_stage"])
    comma = processor.tokenizer.convert_tokens_to_ids(",")
    model.generation_config.eos_token_id = comma
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    _, loaded = load_model(ModelArguments(path=str(tmp_path)))
    assert loaded.end_token_id == comma
    assert loaded.end_token == ","


def test_the_first_stage_with_kept_features_trains_as_with_pixels(parts, tmp_path):
    """Features of the frozen tower go in before its last layer norm, which trains."""
    losses = []
    for name in ("pixels", "features"):
        overrides = [
            *(f"model.parts.{part}={parts[part]}" for part in ("vision", "bert")),
            "model.parts.num_query_tokens=4", "model.frozen_dtype=null", "training.fp16=false",
            "data.train={shapes_world: {examples: 16, tasks: [caption]}}", "training.max_steps=3",
            "training.per_device_train_batch_size=8", "training.use_cpu=true", "training.disable_tqdm=true",
            "training.dataloader_num_workers=0", "training.save_strategy=no", "training.logging_steps=1",
            "training.warmup_steps=0", "data.augmentation=null",
        ]  # fmt: skip
        if name == "features":
            overrides.append(f"data.image_features={tmp_path / 'kept'}")
        run = prepare_run(load_recipe("blip2_stage1", overrides, data_files=False), tmp_path / name)
        run.trainer.train()
        losses.append([entry for entry in run.trainer.state.log_history if "loss_itc" in entry])
    assert len(losses[0]) == 3
    for pixels, features in zip(*losses):
        for part in ("loss", "loss_itc", "loss_itm", "loss_itg"):
            assert features[part] == pytest.approx(pixels[part], rel=1e-4), part
        assert pixels["loss"] == pytest.approx(sum(pixels[f"loss_{part}"] for part in ("itc", "itm", "itg")), rel=1e-4)


def test_two_processes_train_as_one_with_all_rows(parts, tmp_path):
    """Through Trainer and DDP: captions of one process are compared with images of the other."""
    script = Path(__file__).parent / "first_stage_run.py"
    starts = {
        "one": ([], "8"),
        "two": (["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"], "4"),
    }
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    losses = {}
    for name, (start, rows) in starts.items():
        arguments = [str(tmp_path / name), str(parts["vision"]), str(parts["bert"]), rows]
        command = [sys.executable, *start, str(script), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        losses[name] = json.loads((tmp_path / name / "losses.json").read_text())
    assert len(losses["one"]) == 3
    for one, two in zip(losses["one"], losses["two"]):
        for part in ("loss", "loss_itc", "loss_itg", "grad_norm"):
            assert two[part] == pytest.approx(one[part], rel=1e-4), part


def first_stage_run(parts, output, *changes):
    overrides = [
        *(f"model.parts.{part}={parts[part]}" for part in ("vision", "bert")),
        "model.parts.num_query_tokens=4", "model.frozen_dtype=null", "training.fp16=false", "data.augmentation=null",
        "data.train={shapes_world: {examples: 16, tasks: [caption]}}", "training.max_steps=1",
        "training.per_device_train_batch_size=8", "training.per_device_eval_batch_size=8", "training.use_cpu=true",
        "training.disable_tqdm=true", "training.dataloader_num_workers=0", "training.save_strategy=no",
        "training.logging_steps=1", *changes,
    ]  # fmt: skip
    return prepare_run(load_recipe("blip2_stage1", overrides, data_files=False), output)


def test_parts_of_the_evaluation_loss_are_metrics_and_sum_to_it(parts, tmp_path):
    """Nine rows in batches of eight, one of which has other rows to be compared with."""
    run = first_stage_run(
        parts, tmp_path, "data.evaluation={shapes_world: {examples: 9, tasks: [caption], split: test}}"
    )
    names = ("loss_itc", "loss_itm", "loss_itg")
    metrics = run.trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(sum(metrics[f"eval_{name}"] for name in names), rel=1e-5)
    other = run.trainer.evaluate(run.trainer.train_dataset, metric_key_prefix="test")
    assert other["test_loss"] == pytest.approx(sum(other[f"test_{name}"] for name in names), rel=1e-5)
    again = run.trainer.evaluate()
    assert again["eval_loss_itg"] == pytest.approx(metrics["eval_loss_itg"], rel=1e-6), "nothing of the other set"
    both = run.trainer.evaluate({"a": run.trainer.eval_dataset, "b": run.trainer.train_dataset})
    assert both["eval_a_loss_itg"] == pytest.approx(metrics["eval_loss_itg"], rel=1e-6)
    assert both["eval_b_loss_itg"] == pytest.approx(other["test_loss_itg"], rel=1e-6)


def test_a_mixture_trains_the_first_stage_without_generation(parts, tmp_path):
    mixture = "{mixture: {datasets: {shapes: {shapes_world: {examples: 16, tasks: [caption]}}}}}"
    run = first_stage_run(parts, tmp_path, f"data.train={mixture}", "first_stage.objectives=[itc, itm]")
    run.trainer.train()
    logged = next(entry for entry in run.trainer.state.log_history if "loss_itc" in entry)
    assert "loss_itg" not in logged


def test_what_does_not_suit_the_first_stage_is_refused_before_training(parts, tmp_path):
    evaluation = [
        "evaluation.tasks=[gqa]", f"evaluation.root={tmp_path}", "training.eval_strategy=steps",
        "data.evaluation={shapes_world: {examples: 4}}",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="the tasks need a language model"):
        first_stage_run(parts, tmp_path / "out", *evaluation)
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    row = json.dumps({"image": "a.png", "prompt": "", "completion": "red circle"})
    (tmp_path / "rows.jsonl").write_text(f"{row}\n{row}\n")
    mixture = f"{{mixture: {{group_by_image: 2, datasets: {{a: {{file: {tmp_path / 'rows.jsonl'}}}}}}}}}"
    with pytest.raises(ValueError, match="group_by_image puts captions of one image into a batch"):
        first_stage_run(parts, tmp_path / "out", f"data.train={mixture}")


def test_half_precision_keeps_the_qformer_as_loading_does(parts):
    chosen = PartsArguments(first_stage=str(parts["first_stage"]), text=str(parts["opt"]))
    model, _ = compose(chosen, torch.float16)
    dtypes = {name.split(".")[0]: parameter.dtype for name, parameter in model.named_parameters()}
    assert dtypes["qformer"] == dtypes["query_tokens"] == torch.float32
    assert dtypes["vision_model"] == dtypes["language_model"] == dtypes["language_projection"] == torch.float16


def test_an_adapter_of_a_changed_model_is_refused(parts):
    lora = [
        "freezing.components={language_model: lora}",
        "freezing.save=adapter",
        f"model.path={parts['second_stage']}",
    ]
    with pytest.raises(RecipeError, match="model.image_size: an adapter belongs to a checkpoint as it is"):
        load_recipe("blip2_caption_coco", lora, data_files=False)


# --- images of another size ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [our_model, our_blip_2])
def test_resized_images_are_interpolated_positions_for_good(build, tmp_path):
    kind = "llama"
    model, pixels = build(kind), torch.randn(1, 3, 42, 42)
    with torch.no_grad():
        expected = model.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
        processor = tiny_processor()
        resize_images(model, 42, processor)
        torch.testing.assert_close(model.vision_model(pixels).last_hidden_state, expected)
        assert processor.image_processor.size["height"] == 42
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path)
        assert again.config.vision_config.image_size == 42
        torch.testing.assert_close(again.vision_model(pixels).last_hidden_state, expected)
    with pytest.raises(ValueError, match="image_size is 50; it must be a multiple of the patches' side, 14x14"):
        resize_images(model, 50)


def test_towers_of_other_kinds_are_not_resized():
    model = our_blip_2("llama")
    model.vision_model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="the vision tower is a Linear"):
        resize_images(model, 42)


def test_a_section_for_another_model_is_refused(parts, tmp_path):
    overrides = [
        f"model.path={parts['second_stage']}", "first_stage.label_smoothing=0.2", "model.image_size=null",
        "data.train={shapes_world: {examples: 4}}", "data.evaluation=null", "training.use_cpu=true",
        "training.eval_strategy=no", "training.load_best_model_at_end=false", "training.save_strategy=no",
    ]  # fmt: skip
    recipe = load_recipe("blip2_caption_coco", overrides, data_files=False)
    with pytest.raises(ValueError, match="section first_stage, and the model is a Blip2ForConditionalGeneration"):
        prepare_run(recipe, tmp_path)


def test_stages_take_a_path_as_well(parts):
    model, _ = start_second_stage(str(parts["first_stage"]), str(parts["seq2seq"]), image_token_index=4)
    assert model.config.is_encoder_decoder
