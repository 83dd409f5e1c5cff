"""Batches without images in training: the image side runs, has gradients of zero, and changes nothing."""

from __future__ import annotations

import pytest
import torch

from instructblip_hf.training import apply_freezing
from tiny_models import LANGUAGE_MODELS, batch, labels_for, our_model


def text_batch(kind):
    inputs = batch(images_per_row=(0, 0), text_lengths=(6, 4))
    assert "pixel_values" not in inputs
    return {**inputs, "labels": labels_for(kind, inputs)}


def calls_of(model):
    """Numbers of forward passes of the parts, counted from now on."""
    calls = {"vision_model": 0, "qformer": 0, "language_projection": 0}

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    for name in calls:
        model.get_submodule(name).register_forward_pre_hook(count(name))
    return calls


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_gradients_are_there_and_zero_and_the_loss_is_the_same(kind):
    model = our_model(kind, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    prompts = []
    model.language_model.register_forward_pre_hook(
        lambda _, __, arguments: prompts.append(arguments["inputs_embeds"].detach()), with_kwargs=True
    )
    inputs = text_batch(kind)
    plain = model.eval()(**inputs)
    report = apply_freezing(model, "instructblip")
    model.train()
    report.hold_frozen_modules_in_eval()
    outputs = model(**inputs)
    assert torch.equal(*prompts)
    # Attention takes another of torch's kernels where its inputs have gradients.
    torch.testing.assert_close(outputs.logits, plain.logits)
    torch.testing.assert_close(outputs.loss, plain.loss)
    assert outputs.vision_outputs is None
    assert outputs.qformer_outputs is None
    outputs.loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {"query_tokens", "vision_model.post_layernorm.weight", "language_projection.bias"} <= set(trained)
    for name, parameter in trained.items():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter)), name


def test_the_gradient_of_accumulated_batches_is_that_of_the_rows_with_images():
    model = our_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    apply_freezing(model, "instructblip")
    model.train()
    inputs = batch(images_per_row=(2, 1), text_lengths=(3, 8))
    model(**inputs, labels=labels_for("llama", inputs)).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model(**text_batch("llama")).loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(expected)
    for name, parameter in model.named_parameters():
        if name in expected:
            assert torch.equal(parameter.grad, expected[name]), name


@pytest.mark.parametrize("case", ["eval", "no_grad", "frozen"])
def test_nothing_runs_where_nothing_trains(case):
    model = our_model()
    words = {"language_model": "train"} if case == "frozen" else "all"
    apply_freezing(model, words)
    model.train(case != "eval")
    calls = calls_of(model)
    with torch.set_grad_enabled(case != "no_grad"):
        model(**text_batch("llama"))
    assert calls == {"vision_model": 0, "qformer": 0, "language_projection": 0}
    model.eval().generate(**batch(images_per_row=(0, 0)), max_new_tokens=2)
    assert calls["vision_model"] == calls["qformer"] == 0


@pytest.mark.parametrize(("preset", "passes"), [("instructblip", 1), ("instructblip-strict", 0)])
def test_a_tower_that_is_frozen_as_a_whole_does_not_run(preset, passes):
    model = our_model()
    apply_freezing(model, preset)
    model.train()
    calls = calls_of(model)
    model(**text_batch("llama")).loss.backward()
    assert calls == {"vision_model": passes, "qformer": 1, "language_projection": 1}
    assert model.qformer.encoder.layer[0].crossattention.attention.key.weight.grad is not None


def test_a_qformer_without_text():
    model = our_model(use_qformer_text_input=False)
    apply_freezing(model, "instructblip")
    model.train()
    model(**text_batch("llama")).loss.backward()
    assert not model.query_tokens.grad.any()
