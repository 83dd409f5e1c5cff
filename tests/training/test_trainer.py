"""`VisionLanguageTrainer`: what changes and what does not, losses under accumulation, checkpoints and resuming."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from instructblip_hf import InstructBlipForConditionalGeneration, InstructBlipProcessor
from instructblip_hf.data.collators import VisionLanguageCollator
from instructblip_hf.data.procedural import ShapesWorldDataset
from instructblip_hf.data.sources.shapes_world import ShapesWorld
from instructblip_hf.training import FreezingPolicy, VisionLanguageTrainer
from tiny_shapes import tiny_model, tiny_processor
from tiny_training import arguments, losses, trainer_for


KINDS = ["causal", "seq2seq"]


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_weights_stay_bitwise_and_trained_ones_move(kind, tmp_path):
    model = tiny_model(kind, dropout=0.1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    modes = []

    def watch(module, *_):
        modes.append({name: m.training for name, m in module.named_modules()})

    model.register_forward_pre_hook(watch)
    trainer = trainer_for(model, arguments(tmp_path))
    trainer.train()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert changed <= trained
    # Text embeddings of words that did not occur have no gradient, and decay does not move a zero.
    assert {"query_tokens", "language_projection.weight", "vision_model.post_layernorm.weight"} <= changed
    assert any(name.startswith("qformer.encoder") for name in changed)
    for mode in modes:
        assert mode["qformer.encoder"]
        assert not any(on for name, on in mode.items() if name.startswith(("language_model", "vision_model.encoder")))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", [(4, 2), (2, 4), (1, 8)])
def test_splitting_a_batch_does_not_change_the_losses(kind, split, tmp_path):
    """Rows differ much in their numbers of label tokens, so a mean of means would be another loss."""
    size, accumulation = split
    runs = []
    for batch, steps in ((8, 1), (size, accumulation)):
        args = arguments(tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=steps)
        trainer = trainer_for(tiny_model(kind), args)
        trainer.train()
        runs.append((losses(trainer), trainer.model.language_projection.weight.detach()))
    (whole, weights), (parts, split_weights) = runs
    assert len(whole) == 2
    assert parts == pytest.approx(whole, rel=2e-5)
    torch.testing.assert_close(split_weights, weights, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_mean_over_label_tokens(tmp_path):
    model = tiny_model()
    trainer = trainer_for(model, arguments(tmp_path), examples=4)
    rows = [trainer.train_dataset[index] for index in range(4)]
    batch = tiny_processor().encode_examples(rows)
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    chosen = labels[:, 1:] != -100
    expected = torch.nn.functional.cross_entropy(logits[:, :-1][chosen], labels[:, 1:][chosen])
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_without_images_leave_a_frozen_language_model_s_connector_as_it_is(kind, tmp_path):
    rows = [{"images": [], "prompt": "what color is red ?", "completion": "red"}] * 8
    model = tiny_model(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = trainer_for(model, arguments(tmp_path, gradient_accumulation_steps=2), train_dataset=rows)
    trainer.train()
    assert all(loss > 0 for loss in losses(trainer))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_rows_without_images_train_too(tmp_path):
    rows = [{"images": [], "prompt": "what color is red ?", "completion": "red"}] * 4
    trainer = trainer_for(tiny_model(), arguments(tmp_path), train_dataset=rows, freezing="all")
    trainer.train()
    assert len(losses(trainer)) == 2


def test_no_decay_on_vectors(tmp_path):
    trainer = trainer_for(tiny_model(), arguments(tmp_path, weight_decay=0.1), freezing="all")
    trainer.create_optimizer()
    groups = {group["weight_decay"]: {id(p) for p in group["params"]} for group in trainer.optimizer.param_groups}
    for name, parameter in trainer.model.named_parameters():
        expected = 0.0 if parameter.ndim < 2 else 0.1
        assert id(parameter) in groups[expected], name


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_hold_model_and_processor_and_resume_exactly(kind, tmp_path):
    whole = trainer_for(tiny_model(kind, dropout=0.1), arguments(tmp_path / "whole", max_steps=4))
    whole.train()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    folder = tmp_path / "parts"
    trainer_for(tiny_model(kind, dropout=0.1), arguments(folder, **options), callbacks=[Stop()]).train()
    checkpoint = folder / "checkpoint-2"
    reloaded = InstructBlipForConditionalGeneration.from_pretrained(checkpoint)
    assert reloaded.config.is_encoder_decoder == (kind == "seq2seq")
    assert InstructBlipProcessor.from_pretrained(checkpoint).num_query_tokens == 4
    resumed = trainer_for(tiny_model(kind, dropout=0.1, seed=9), arguments(folder, **options))
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_training_knobs_do_not_reach_the_configuration(tmp_path):
    model = tiny_model()
    trainer = trainer_for(model, arguments(tmp_path))
    trainer.save_model()
    written = json.loads((tmp_path / "config.json").read_text())
    assert "use_cache" not in written
    assert not any("freez" in key for key in written)


def test_evaluation_loss(tmp_path):
    trainer = trainer_for(tiny_model(dropout=0.3), arguments(tmp_path))
    first, second = trainer.evaluate(), trainer.evaluate()
    assert first["eval_loss"] > 0
    assert first["eval_loss"] == second["eval_loss"], "nothing is dropped in evaluation"


def test_lora_checkpoints_resume_and_the_saved_model_is_merged(tmp_path):
    policy = FreezingPolicy(components={"language_model": "lora"}, lora_rank=2)
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer = trainer_for(tiny_model(), arguments(tmp_path, **options), freezing=policy)
    trainer.train()
    trainer.save_model()
    assert any("lora_A" in key for key in load_file(tmp_path / "checkpoint-2" / "model.safetensors"))
    saved = InstructBlipForConditionalGeneration.from_pretrained(tmp_path)
    batch = tiny_processor().encode_examples([trainer.eval_dataset[0]])
    with torch.no_grad():
        torch.testing.assert_close(saved.eval()(**batch).loss, trainer.model.eval()(**batch).loss)
    resumed = trainer_for(tiny_model(), arguments(tmp_path, **options), freezing=policy)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_model_card_says_what_trained(tmp_path):
    trainer = trainer_for(tiny_model(), arguments(tmp_path))
    trainer.train()
    trainer.create_model_card(description="Flags.", command="instructblip train flags.yaml")
    card = (tmp_path / "README.md").read_text()
    assert "instructblip train flags.yaml" in card
    assert "2 steps" in card
    assert "| `language_model` | llama |" in card


def test_without_processor_or_collator():
    with pytest.raises(ValueError, match="processing_class is missing"):
        VisionLanguageTrainer(tiny_model())


@pytest.mark.parametrize("kind", KINDS)
def test_shared_images_give_the_losses_of_repeated_ones(kind, tmp_path):
    world = ShapesWorldDataset(ShapesWorld(0), 16)
    rows = [{**world[index], "images": world[index // 2 * 2]["images"]} for index in range(16)]
    processor, runs, towers = tiny_processor(), [], []
    for collator in (VisionLanguageCollator(processor, is_encoder_decoder=kind == "seq2seq"), None):
        model = tiny_model(kind)
        args = arguments(tmp_path, train_sampling_strategy="sequential")
        trainer = trainer_for(model, args, train_dataset=rows, data_collator=collator)
        sizes = []
        model.vision_model.register_forward_pre_hook(
            lambda module, args, kwargs, sizes=sizes: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
        )
        trainer.train()
        runs.append((losses(trainer), model.language_projection.weight.detach()))
        towers.append(sizes)
    assert towers == [[4, 4], [2, 2]]
    assert runs[1][0] == pytest.approx(runs[0][0], rel=1e-5)
    torch.testing.assert_close(runs[1][1], runs[0][1], rtol=1e-4, atol=1e-5)


def logits_formed(model):
    """Numbers of logits rows that the head of the language model gives from here on."""
    sizes = []
    head = model.language_model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: sizes.append(output[..., 0].numel()))
    return sizes


@pytest.mark.parametrize("kind", KINDS)
def test_losses_at_labels_are_those_of_full_logits(kind, tmp_path):
    runs = []
    for at_labels in (True, False):
        model = tiny_model(kind)
        options = {"gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
        trainer = trainer_for(model, arguments(tmp_path, **options), logits_at_labels=at_labels)
        sizes = logits_formed(model)
        trainer.train()
        evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        runs.append((losses(trainer) + evaluated, model.language_projection.weight.detach(), sum(sizes)))
    (own, weights, few), (full, expected, many) = runs
    assert own == pytest.approx(full, rel=1e-5)
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)
    assert few < (0.5 if kind == "causal" else 1) * many


@pytest.mark.parametrize("reader", ["metrics", "prediction", "smoothing", "loss function"])
def test_full_logits_where_something_reads_them(reader, tmp_path):
    model, seen = tiny_model(), []

    def metrics(prediction):
        seen.append(prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions)
        return {}

    def loss_function(outputs, labels, num_items_in_batch=None):
        seen.append(outputs.logits)
        return outputs.logits.float().mean()

    args = arguments(tmp_path, max_steps=1, label_smoothing_factor=0.1 if reader == "smoothing" else 0.0)
    options = {"compute_metrics": metrics} if reader == "metrics" else {}
    if reader == "loss function":
        options["compute_loss_func"] = loss_function
    trainer = trainer_for(model, args, **options)
    if reader == "metrics":
        trainer.evaluate()
    elif reader == "prediction":
        predictions = trainer.predict(trainer.eval_dataset).predictions
        seen.append(predictions[0] if isinstance(predictions, tuple) else predictions)
    else:
        sizes = logits_formed(model)
        trainer.train()
        assert min(sizes) > 4 * 8  # all positions of 4 rows
        return
    assert seen[0].shape[::2] == (6, model.config.text_config.vocab_size)


def test_a_language_model_that_needs_full_logits_trains_with_them_and_a_warning(tmp_path, caplog):
    model = tiny_model()
    own = type(model.language_model).forward

    def forward(*arguments, **options):
        outputs = own(model.language_model, *arguments, **options)
        outputs.logits = outputs.logits + outputs.logits.roll(1, dims=1)
        return outputs

    model.language_model.forward = forward
    with caplog.at_level("WARNING"):
        trainer = trainer_for(model, arguments(tmp_path, max_steps=1))
    assert "full logits are formed in training" in caplog.text
    trainer.train()
    assert losses(trainer)[0] > 0
