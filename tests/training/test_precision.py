"""Weights that do not train in 16 bits: which ones, what is computed, and what is saved."""

import copy
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from instructblip_hf import InstructBlipForConditionalGeneration
from instructblip_hf.data.procedural import ShapesWorldDataset
from instructblip_hf.data.sources.shapes_world import ShapesWorld
from instructblip_hf.training import (
    FreezingPolicy,
    apply_freezing,
    cast_frozen,
    load_recipe,
    prepare_run,
)
from tiny_shapes import save_tiny_checkpoint, tiny_model, tiny_processor
from tiny_stock_models import blip2, llava


KINDS = ["causal", "opt", "seq2seq"]
BF16 = torch.bfloat16


def tiny_batch(kind):
    rows = [ShapesWorldDataset(ShapesWorld(0), 3)[index] for index in range(3)]
    return tiny_processor().encode_examples(rows, is_encoder_decoder=kind == "seq2seq")


def dtypes(model):
    return {name: parameter.dtype for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_train_is_cast_and_nothing_else(kind):
    model = tiny_model(kind)
    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    cast_frozen(model, "instructblip", BF16)
    apply_freezing(model, "instructblip")
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else BF16), name
        assert torch.equal(parameter, original[name].to(parameter.dtype)), name
    for name, buffer in model.named_buffers():
        assert buffer.dtype == buffers[name].dtype, name
        assert torch.equal(buffer, buffers[name]), name


@pytest.mark.parametrize("dtype", [torch.float16, BF16])
@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_float32_is_kept_where_loading_in_16_bits_keeps_it(kind, dtype, tmp_path):
    """With a policy that trains hardly anything, the dtypes are those of `from_pretrained`: T5's wo in float16.

    It finds the letters "wo" in "word_embeddings" too, and keeps those of the Q-Former; they are meant by no one.
    """
    tiny_model(kind).save_pretrained(tmp_path)
    loaded = InstructBlipForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    model = tiny_model(kind)
    cast_frozen(model, {"language_projection": "train"}, dtype)
    expected = {
        name: kind for name, kind in dtypes(loaded).items() if "projection" not in name and "word_emb" not in name
    }
    assert {name: dtypes(model)[name] for name in expected} == expected
    if (kind, dtype) == ("seq2seq", torch.float16):
        assert torch.float32 in {value for name, value in expected.items() if name.endswith("wo.weight")}


def by_hand(model, batch):
    """InstructBLIP's forward pass, step by step, with a cast wherever parts of different dtypes meet."""
    tower, qformer = model.vision_model, model.qformer
    states = tower.embeddings(batch["pixel_values"].to(BF16))
    for layer in tower.encoder.layers:
        states = layer(states)[0]
    features = tower.post_layernorm(states.float()).to(BF16)
    queries = model.query_tokens.expand(len(features), -1, -1)
    text = batch["qformer_attention_mask"]
    mask = torch.cat([text.new_ones(queries.shape[:2]), text], dim=1)
    positions = (text.cumsum(-1) - 1).clamp(min=0)
    output = qformer(
        input_ids=batch["qformer_input_ids"],
        attention_mask=mask,
        position_ids=positions,
        query_embeds=queries,
        encoder_hidden_states=features.float(),
    ).last_hidden_state[:, : queries.shape[1]]
    projected = model.language_projection(output).to(BF16)
    embedded = model.get_input_embeddings()(batch["input_ids"]).clone()
    embedded[batch["input_ids"] == model.config.image_token_id] = projected.flatten(0, 1)
    labels = batch["labels"]
    options = {"inputs_embeds": embedded, "attention_mask": batch["attention_mask"]}
    if model.config.is_encoder_decoder:
        options["decoder_input_ids"] = model.language_model.prepare_decoder_input_ids_from_labels(labels)
        logits = model.language_model(**options).logits
    else:
        logits, labels = model.language_model(**options).logits[:, :-1], labels[:, 1:]
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


@pytest.mark.parametrize("kind", KINDS)
def test_without_autocast_the_parts_compute_in_their_own_dtype(kind):
    model, batch = tiny_model(kind), tiny_batch(kind)
    reference = copy.deepcopy(model)
    apply_freezing(reference, "instructblip")
    for parameter in reference.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(BF16)
    cast_frozen(model, "instructblip", BF16)
    apply_freezing(model, "instructblip")
    loss, expected = model(**batch).loss, by_hand(reference, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    loss.backward()
    expected.backward()
    for (name, parameter), other in zip(model.named_parameters(), reference.parameters()):
        if other.grad is not None:
            assert parameter.grad.dtype == torch.float32
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-5, atol=1e-7, msg=name)
    assert model.vision_model.post_layernorm.weight.grad.abs().sum() > 0
    assert model.query_tokens.grad.abs().sum() > 0


POLICIES = [
    "instructblip",
    "instructblip-strict",
    "blip2-finetuning",
    {"language_projection": "train"},
    {"query_tokens": "train"},
    {"qformer": "train"},
    {"vision_model.encoder.layers.1": "train"},
    {"vision_model.embeddings.position_embedding": "train"},
    {"vision_model": "train", "vision_model.encoder": "frozen"},
    {"language_model": "train", "vision_model.encoder.layers.0.mlp.fc1.bias": "train"},
]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_any_policy_computes_close_to_float32(policy, autocast):
    model, batch = tiny_model(), tiny_batch("causal")
    reference = copy.deepcopy(model)
    cast_frozen(model, policy, BF16)
    losses = []
    for tested in (model, reference):
        apply_freezing(tested, policy)
        with torch.autocast("cpu", BF16) if autocast and tested is model else nullcontext():
            losses.append(tested(**batch).loss)
        losses[-1].backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-2, atol=0)
    for (name, parameter), other in zip(model.named_parameters(), reference.parameters()):
        if parameter.requires_grad and other.grad is not None:
            difference = (parameter.grad - other.grad).norm()
            assert difference <= 0.15 * other.grad.norm() + 2e-3, f"{name}: {difference} of {other.grad.norm()}"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_generation_evaluation_and_gradient_checkpointing(checkpointing):
    model, batch = tiny_model(), tiny_batch("causal")
    cast_frozen(model, {"vision_model.encoder.layers.1": "train", "qformer": "train"}, BF16)
    report = apply_freezing(model, {"vision_model.encoder.layers.1": "train", "qformer": "train"})
    expected = model.eval()(**batch).loss
    (gradient,) = torch.autograd.grad(expected, model.qformer.encoder.layer[0].intermediate_query.dense.weight)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
        report.hold_frozen_modules_in_eval()
        loss = model(**batch).loss
        assert torch.equal(loss, expected)
        (again,) = torch.autograd.grad(loss, model.qformer.encoder.layer[0].intermediate_query.dense.weight)
        torch.testing.assert_close(again, gradient)
    else:
        batch.pop("labels")
        assert model.generate(**batch, max_new_tokens=3, do_sample=False).shape[0] == 3


def test_lora_s_own_weights_stay_in_float32():
    model, batch = tiny_model(), tiny_batch("causal")
    policy = FreezingPolicy(components={"language_model": "lora"}, lora_rank=2)
    cast_frozen(model, policy, BF16)
    apply_freezing(model, policy)
    for name, parameter in model.named_parameters():
        if name.startswith("language_model."):
            assert parameter.dtype == (torch.float32 if parameter.requires_grad else BF16), name
    model(**batch).loss.backward()
    updates = [p for n, p in model.named_parameters() if "lora_B" in n]
    assert updates
    assert all(update.grad is not None and update.grad.abs().sum() > 0 for update in updates)
    again = {name: parameter.dtype for name, parameter in model.named_parameters()}
    cast_frozen(model, policy, BF16)
    assert dtypes(model) == again


@pytest.mark.parametrize(("build", "preset"), [(blip2, "blip2-stage2"), (llava, "llava-stage1")])
def test_stock_models(build, preset):
    torch.manual_seed(0)
    model = build().eval()
    model.config.image_token_id = model.config.image_token_index = 49
    images = 1 if preset.startswith("blip2") else 2
    tokens = model.config.num_query_tokens if preset.startswith("blip2") else 4
    inputs = {
        "pixel_values": torch.randn(images, 3, 28, 28),
        "input_ids": torch.cat([torch.full((images, tokens), 49), torch.randint(3, 40, (images, 5))], dim=1),
    }
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    expected = model(**inputs).logits
    cast_frozen(model, preset, BF16)
    apply_freezing(model, preset)
    logits = model(**inputs).logits
    assert logits.dtype == BF16
    torch.testing.assert_close(logits.float(), expected, rtol=0.02, atol=0.02)
    logits.float().square().sum().backward()
    trained = [parameter for name, parameter in model.named_parameters() if parameter.requires_grad and "proj" in name]
    assert trained
    assert all(parameter.grad.abs().sum() > 0 for parameter in trained)


def test_bad_dtypes():
    with pytest.raises(ValueError, match=r"dtype is torch.int8; .* floating-point"):
        cast_frozen(tiny_model(), "instructblip", torch.int8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("precision") / "model")


def recipe_in(folder, model, *changes):
    path = folder / "recipe.yaml"
    path.write_text(
        f"model: {{path: {model}, frozen_dtype: bfloat16}}\n"
        "data: {train: {shapes_world: {examples: 8}}}\n"
        "training: {max_steps: 4, per_device_train_batch_size: 4, learning_rate: 1e-2, use_cpu: true,\n"
        "  save_strategy: steps, save_steps: 2, report_to: none, disable_tqdm: true, logging_steps: 1}\n"
    )
    return load_recipe(path, changes)


@pytest.mark.parametrize("bf16", ["true", "false"])
def test_what_a_run_saves(bf16, folder, tmp_path):
    """Files hold each weight in its dtype; the saved model opens with the trained weights whole, and answers alike."""
    recipe = recipe_in(tmp_path, folder, f"training.bf16={bf16}")
    run = prepare_run(recipe, tmp_path / "out")
    run.run()
    trained = run.trainer.model
    before = load_file(folder / "model.safetensors")
    for place in (tmp_path / "out", tmp_path / "out" / "checkpoint-2"):
        saved = load_file(place / "model.safetensors")
        for name, parameter in trained.named_parameters():
            assert saved[name].dtype == (torch.float32 if parameter.requires_grad else BF16), name
            if not parameter.requires_grad:
                assert torch.equal(saved[name], before[name].to(BF16)), name
    opened = InstructBlipForConditionalGeneration.from_pretrained(tmp_path / "out")
    automatic = InstructBlipForConditionalGeneration.from_pretrained(tmp_path / "out", dtype="auto")
    for name, parameter in trained.named_parameters():
        assert opened.get_parameter(name).dtype == automatic.get_parameter(name).dtype == torch.float32
        assert torch.equal(opened.get_parameter(name), parameter.float()), name
        assert torch.equal(automatic.get_parameter(name), parameter.float()), name
    batch = tiny_batch("causal")
    with torch.no_grad():
        # Trainer wraps the forward pass of its model with autocast.
        expected = trained.eval()(**batch).logits.float()
        torch.testing.assert_close(opened(**batch).logits, expected, rtol=0.05, atol=0.05)
        cast_frozen(opened, "instructblip", BF16)
        with torch.autocast("cpu", BF16, enabled=bf16 == "true"):
            assert torch.equal(opened(**batch).logits.float(), expected)

    resumed = prepare_run(recipe_in(tmp_path, folder, f"training.bf16={bf16}"), tmp_path / "again")
    resumed.trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    for name, tensor in trained.state_dict().items():
        assert torch.equal(resumed.trainer.model.state_dict()[name], tensor), name


@pytest.mark.parametrize("bf16", ["true", "false"])
def test_kept_image_features_are_those_of_the_cast_tower(bf16, folder, tmp_path):
    weights = []
    for changes in ([], [f"data.image_features={tmp_path / 'features'}"]):
        run = prepare_run(recipe_in(tmp_path, folder, f"training.bf16={bf16}", *changes), tmp_path / f"{len(changes)}")
        run.trainer.train()
        weights.append(run.trainer.model.state_dict())
    for name, tensor in weights[0].items():
        assert torch.equal(weights[1][name], tensor), name
