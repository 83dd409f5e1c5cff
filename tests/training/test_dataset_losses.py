"""Losses by dataset in the logs, against the model's own loss on each row."""

import pytest
import torch
from transformers import TrainingArguments

from instructblip_hf.data.mixture import Mixture, MixtureDataset
from instructblip_hf.data.procedural import ShapesWorldDataset
from instructblip_hf.data.sources.shapes_world import ShapesWorld
from instructblip_hf.training import VisionLanguageTrainer
from tiny_shapes import tiny_model, tiny_processor


def mixture_dataset(length):
    datasets = {"a": ShapesWorldDataset(ShapesWorld(0), 9), "b": ShapesWorldDataset(ShapesWorld(1), 5)}
    return MixtureDataset(datasets, Mixture({name: len(rows) for name, rows in datasets.items()}), length)


def expected(model, dataset, numbers):
    """Mean loss over label tokens by dataset, row by row and without padding."""
    sums = {}
    for number in numbers:
        row = dataset[number]
        batch = tiny_processor().encode_examples([row], is_encoder_decoder=model.config.is_encoder_decoder)
        with torch.no_grad():
            loss = model.eval()(**batch).loss.item()
        tokens = int((batch["labels"] != -100).sum())
        total, count = sums.get(row["dataset"], (0.0, 0))
        sums[row["dataset"]] = (total + loss * tokens, count + tokens)
    return {name: total / count for name, (total, count) in sums.items()}


@pytest.mark.parametrize(("kind", "at_labels"), [("causal", True), ("causal", False), ("seq2seq", True)])
def test_logs_have_the_mean_over_each_dataset_s_tokens(kind, at_labels, tmp_path):
    model, dataset = tiny_model(kind), mixture_dataset(32)
    args = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=0.0,
        weight_decay=0.0,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    evaluation = mixture_dataset(10)
    trainer = VisionLanguageTrainer(
        model,
        args,
        processing_class=tiny_processor(),
        train_dataset=dataset,
        eval_dataset=evaluation,
        logits_at_labels=at_labels,
    )
    trainer.train()
    first, second = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry, numbers in ((first, range(16)), (second, range(16, 32))):
        for name, loss in expected(model, dataset, numbers).items():
            assert entry[f"loss/{name}"] == pytest.approx(loss, rel=1e-4)
    (evaluated,) = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    for name, loss in expected(model, evaluation, range(10)).items():
        assert evaluated[f"eval_loss/{name}"] == pytest.approx(loss, rel=1e-4)
    assert not any(key.startswith("loss/") for key in evaluated)


def test_rows_of_no_mixture_are_logged_as_ever(tmp_path):
    args = TrainingArguments(
        str(tmp_path), max_steps=1, logging_steps=1, report_to="none", use_cpu=True, save_strategy="no"
    )
    rows = ShapesWorldDataset(ShapesWorld(0), 8)
    trainer = VisionLanguageTrainer(tiny_model(), args, processing_class=tiny_processor(), train_dataset=rows)
    trainer.train()
    assert not any("/" in key for entry in trainer.state.log_history for key in entry)
