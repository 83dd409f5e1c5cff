"""What stock transformers lacks or gets wrong, and what a model is expected to do in the library around it."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from instructblip_hf.models.instructblip import (
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipQFormerModel,
    InstructBlipVisionModel,
)
from tiny_models import (
    IMAGE_SIZE,
    IMAGE_TOKEN_ID,
    LANGUAGE_MODELS,
    NUM_QUERY_TOKENS,
    batch,
    config_dict,
    labels_for,
    our_model,
)


def without_dropout(model):
    """Set every dropout to 0, so that training mode has nothing random in it."""
    for config in (model.qformer.config, model.language_model.config):
        for name in ("attention_probs_dropout_prob", "dropout_rate"):
            if hasattr(config, name):
                setattr(config, name, 0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


def logits_of(model, inputs, **kwargs):
    with torch.no_grad():
        return model(**inputs, **kwargs).logits


# --- configuration -----------------------------------------------------------------------------------------------


def test_configuration_round_trip_and_stocks_objects(tmp_path):
    stock = transformers.InstructBlipConfig(**config_dict("t5"))
    ours = InstructBlipConfig(
        vision_config=stock.vision_config, qformer_config=stock.qformer_config, text_config=stock.text_config
    )
    assert ours.vision_config.hidden_size == 32
    assert type(ours.qformer_config).__module__.startswith("instructblip_hf")
    ours.save_pretrained(tmp_path)
    assert InstructBlipConfig.from_pretrained(tmp_path).to_dict() == ours.to_dict()
    assert type(transformers.AutoConfig.from_pretrained(tmp_path)) is transformers.InstructBlipConfig


@pytest.mark.parametrize(("kind", "encoder_decoder"), [("llama", False), ("opt", False), ("t5", True)])
def test_is_encoder_decoder(kind, encoder_decoder):
    config = InstructBlipConfig(**config_dict(kind))
    assert config.is_encoder_decoder is encoder_decoder
    assert config.use_decoder_only_language_model is not encoder_decoder


def test_unknown_part_is_named():
    with pytest.raises(ValueError, match="text_config has model_type 'no-such-model'"):
        InstructBlipConfig(text_config={"model_type": "no-such-model"})


# --- what stock lacks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_qformer_without_instruction(kind, tmp_path):
    model = our_model(kind, use_qformer_text_input=False)
    names = [name for name, _ in model.qformer.named_parameters()]
    assert not any("word_embeddings" in name or "position_embeddings" in name for name in names)
    assert not any(".intermediate." in name or name.split(".")[3:4] == ["output"] for name in names)
    assert any(".output_query." in name for name in names)
    inputs = batch()
    labels = labels_for(kind, inputs)
    seen = logits_of(model, inputs, labels=labels)
    blind = {name: value for name, value in inputs.items() if not name.startswith("qformer")}
    assert torch.equal(logits_of(model, blind, labels=labels), seen)
    model.save_pretrained(tmp_path)
    again = InstructBlipForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(logits_of(again, blind, labels=labels), seen)


def test_qformer_text_input_of_lavis_is_the_same_switch():
    config = InstructBlipConfig(qformer_text_input=False)
    assert config.qformer_config.use_qformer_text_input is False


def test_ablation_equals_the_queries_alone_in_stock():
    """Without text, the Q-Former's answer is stock's with the instruction left out and the same query weights."""
    stock = transformers.InstructBlipQFormerModel(
        transformers.InstructBlipQFormerConfig(**config_dict("llama")["qformer_config"], encoder_hidden_size=32)
    ).eval()
    ours = our_model("llama", use_qformer_text_input=False).qformer
    missing, unexpected = ours.load_state_dict(stock.state_dict(), strict=False)
    assert not missing
    assert unexpected
    queries, image = torch.randn(2, 4, 32), torch.randn(2, 5, 32)
    expected = stock(input_ids=None, query_embeds=queries, encoder_hidden_states=image).last_hidden_state
    actual = ours(query_embeds=queries, encoder_hidden_states=image).last_hidden_state
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_rows_without_an_image(kind):
    """A text-only row beside an image row answers as it does alone, and as the language model itself does."""
    model = our_model(kind)
    mixed = batch(images_per_row=(1, 0), text_lengths=(5, 9))
    labels = labels_for(kind, mixed) if kind == "t5" else None
    together = logits_of(model, mixed, labels=labels)
    text = {name: mixed[name][1:] for name in ("input_ids", "attention_mask")}
    alone = logits_of(model, text, labels=labels[1:] if kind == "t5" else None)
    direct = model.language_model(**text, labels=labels[1:] if kind == "t5" else None).logits
    torch.testing.assert_close(alone, direct)
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-5)
    generated = model.generate(**text, max_new_tokens=5)
    assert torch.equal(generated, model.language_model.generate(**text, max_new_tokens=5))


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_batched_generation_equals_single(kind):
    model = our_model(kind)
    rows = {"images_per_row": (1, 2, 1), "text_lengths": (3, 12, 7), "instruction_lengths": (9, 2, 20)}
    inputs = batch(**rows)
    together = model.generate(**inputs, max_new_tokens=8, return_full_text=False, eos_token_id=None)
    first_image = 0
    for row, images in enumerate(rows["images_per_row"]):
        of_row = slice(first_image, first_image + images)
        first_image += images
        real = inputs["attention_mask"][row].bool()
        single = {
            "input_ids": inputs["input_ids"][row, real][None],
            "pixel_values": inputs["pixel_values"][of_row],
            "qformer_input_ids": inputs["qformer_input_ids"][of_row, : rows["instruction_lengths"][row]],
        }
        alone = model.generate(**single, max_new_tokens=8, return_full_text=False, eos_token_id=None)
        assert torch.equal(together[row], alone[0])


def test_completion_without_the_prompt():
    model = our_model("llama")
    inputs = batch(text_lengths=(3, 8))
    full = model.generate(**inputs, max_new_tokens=6)
    completion = model.generate(**inputs, max_new_tokens=6, return_full_text=False)
    prompt_length = inputs["input_ids"].shape[1]
    assert torch.equal(full[:, :prompt_length], inputs["input_ids"])
    assert torch.equal(full[:, prompt_length:], completion)
    as_output = model.generate(**inputs, max_new_tokens=6, return_full_text=False, return_dict_in_generate=True)
    assert torch.equal(as_output.sequences, completion)


def test_images_are_encoded_once_for_all_beams(monkeypatch):
    model = our_model("llama")
    calls = []
    forward = model.vision_model.forward
    monkeypatch.setattr(model.vision_model, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    model.generate(**batch(), num_beams=3, num_return_sequences=3, max_new_tokens=4)
    assert len(calls) == 1


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_image_alone(kind):
    """Without input_ids the prompt is what an empty text comes down to."""
    model = our_model(kind)
    inputs = batch()
    last = 1 if kind == "llama" else model.generation_config.eos_token_id
    prompt = torch.tensor([[IMAGE_TOKEN_ID] * NUM_QUERY_TOKENS + [last]] * 2)
    image_side = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    expected = model.generate(**image_side, input_ids=prompt, max_new_tokens=5)
    assert torch.equal(model.generate(**image_side, max_new_tokens=5), expected)


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_precomputed_vision_features(kind):
    model = our_model(kind)
    inputs = batch()
    labels = labels_for(kind, inputs)
    expected = logits_of(model, inputs, labels=labels)
    tokens = model.generate(**inputs, max_new_tokens=4)
    pixels = inputs.pop("pixel_values")
    with torch.no_grad():
        inputs["image_embeds"] = model.vision_model(pixels).last_hidden_state
    assert torch.equal(logits_of(model, inputs, labels=labels), expected)
    assert torch.equal(model.generate(**inputs, max_new_tokens=4), tokens)


def test_outer_generation_config_counts(tmp_path):
    model = our_model("llama")
    model.generation_config.max_new_tokens = 3
    model.generation_config.num_beams = 2
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert saved["max_new_tokens"] == 3
    again = InstructBlipForConditionalGeneration.from_pretrained(tmp_path)
    inputs = batch()
    assert again.generate(**inputs, return_full_text=False).shape[1] <= 3
    expected = model.generate(**inputs, num_beams=2, max_new_tokens=3)
    assert torch.equal(again.generate(**inputs), expected)
    again.generation_config = transformers.GenerationConfig(max_new_tokens=1)
    assert again.generate(**inputs, return_full_text=False).shape[1] == 1
    assert again.generation_config.eos_token_id == 2


def test_attentions_and_hidden_states_reach_every_part():
    model = our_model("llama")
    model.set_attn_implementation("eager")
    inputs = batch(instruction_lengths=(7, 4))
    outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
    text = inputs["qformer_input_ids"].shape[1]
    patches = (IMAGE_SIZE // 14) ** 2 + 1
    assert [a.shape for a in outputs.vision_outputs.attentions] == [(2, 4, patches, patches)] * 2
    assert len(outputs.vision_outputs.hidden_states) == 3
    states = NUM_QUERY_TOKENS + text
    assert [a.shape for a in outputs.qformer_outputs.attentions] == [(2, 4, states, states)] * 2
    assert [a.shape for a in outputs.qformer_outputs.cross_attentions] == [(2, 4, NUM_QUERY_TOKENS, patches)]
    assert len(outputs.qformer_outputs.hidden_states) == 3
    for attention in (*outputs.vision_outputs.attentions, *outputs.qformer_outputs.cross_attentions):
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
    padded = outputs.qformer_outputs.attentions[0][1, :, :, NUM_QUERY_TOKENS + 4 :]
    assert (padded == 0).all()
    assert len(outputs.language_model_outputs.attentions) == 2
    with pytest.raises(ValueError, match="needs attn_implementation='eager'"):
        our_model("llama").vision_model(inputs["pixel_values"], output_attentions=True)


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [1, -1, NUM_QUERY_TOKENS])
@pytest.mark.parametrize("method", ["forward", "generate"])
def test_wrong_number_of_placeholders(change, method):
    model = our_model("llama")
    inputs = batch()
    ids = inputs["input_ids"]
    if change < 0:
        ids[0, 0] = 5
    else:
        ids[0, NUM_QUERY_TOKENS : NUM_QUERY_TOKENS + change] = IMAGE_TOKEN_ID
    with pytest.raises(ValueError, match="Image features and image tokens do not match"):
        getattr(model, method)(**inputs)


def test_placeholders_moved_to_another_row():
    inputs = batch()
    inputs["input_ids"][0, 0] = 5
    inputs["input_ids"][1, NUM_QUERY_TOKENS] = IMAGE_TOKEN_ID
    with pytest.raises(ValueError, match="row 0 holds 3 image placeholders"):
        our_model("llama")(**inputs)


def test_placeholders_without_images():
    inputs = batch()
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match="Image features and image tokens do not match"):
        our_model("llama")(**text)


def test_instruction_missing_or_of_another_number():
    model = our_model("llama")
    inputs = batch()
    without = {name: value for name, value in inputs.items() if not name.startswith("qformer")}
    with pytest.raises(ValueError, match="qformer_input_ids are needed"):
        model(**without)
    inputs["qformer_input_ids"] = inputs["qformer_input_ids"][:1]
    inputs["qformer_attention_mask"] = inputs["qformer_attention_mask"][:1]
    with pytest.raises(ValueError, match="1 rows for 2 images"):
        model(**inputs)


def test_instruction_longer_than_the_positions():
    with pytest.raises(ValueError, match="41 tokens, the Q-Former at most 40"):
        our_model("llama")(**batch(instruction_lengths=(41, 3)))


def test_image_of_another_size():
    with pytest.raises(ValueError, match="42x28 pixels do not fit a tower made for 28x28"):
        our_model("llama").vision_model(torch.randn(1, 3, 42, 28))


def test_missing_and_unexpected_keys_raise(tmp_path):
    model = our_model("llama")
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    key = "qformer.encoder.layer.0.crossattention.attention.key.weight"
    save_file({name: value for name, value in whole.items() if name != key}, file, metadata={"format": "pt"})
    with pytest.raises(KeyError, match=rf"1 missing keys: {re.escape(key)}\."):
        InstructBlipForConditionalGeneration.from_pretrained(tmp_path)
    save_file({**whole, "qformer.somewhere.else": torch.zeros(2)}, file, metadata={"format": "pt"})
    with pytest.raises(KeyError, match=r"1 unexpected keys: qformer\.somewhere\.else"):
        InstructBlipForConditionalGeneration.from_pretrained(tmp_path)
    again = InstructBlipForConditionalGeneration.from_pretrained(tmp_path, strict=False)
    assert torch.equal(again.query_tokens, model.query_tokens)


# --- parts on their own ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [("vision_model", InstructBlipVisionModel), ("qformer", InstructBlipQFormerModel)])
def test_a_part_on_its_own_and_out_of_a_full_checkpoint(part, tmp_path):
    name, part_class = part
    model = our_model("llama")
    module = getattr(model, name)
    model.save_pretrained(tmp_path / "full")
    module.save_pretrained(tmp_path / "part")
    out_of_full = part_class.from_pretrained(tmp_path / "full", config=module.config)
    mapped = part_class.from_pretrained(tmp_path / "full", config=module.config, key_mapping={rf"^{name}\.": ""})
    mapped.save_pretrained(tmp_path / "mapped")
    on_its_own = part_class.from_pretrained(tmp_path / "part")
    resaved = part_class.from_pretrained(tmp_path / "mapped")
    for loaded in (out_of_full, mapped, on_its_own, resaved):
        for key, value in module.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value), key


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_language_model_out_of_a_full_checkpoint(kind, tmp_path):
    model = our_model(kind)
    model.save_pretrained(tmp_path / "full")
    auto = transformers.AutoModelForSeq2SeqLM if kind == "t5" else transformers.AutoModelForCausalLM
    alone, info = auto.from_pretrained(
        tmp_path / "full",
        config=model.config.text_config,
        key_mapping={r"^language_model\.": ""},
        output_loading_info=True,
    )
    assert not info["missing_keys"]
    for name, value in model.language_model.state_dict().items():
        assert torch.equal(alone.state_dict()[name], value), name


# --- the library around it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["sdpa", "flex_attention"])
def test_attention_implementations_agree(implementation):
    model = our_model("llama")
    inputs = batch(instruction_lengths=(9, 2), text_lengths=(3, 8))
    model.set_attn_implementation("eager")
    expected = logits_of(model, inputs)
    model.set_attn_implementation({"qformer_config": implementation, "vision_config": implementation})
    assert model.qformer.config._attn_implementation == implementation
    assert model.language_model.config._attn_implementation == "eager"
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(logits_of(model, inputs)[real], expected[real], atol=2e-5, rtol=1e-5)


def test_attention_implementation_for_each_part_at_loading(tmp_path):
    our_model("t5").save_pretrained(tmp_path)
    model = InstructBlipForConditionalGeneration.from_pretrained(
        tmp_path, attn_implementation={"vision_config": "eager", "qformer_config": "sdpa"}
    )
    assert model.vision_model.config._attn_implementation == "eager"
    assert model.qformer.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_gradient_checkpointing(kind):
    model = without_dropout(our_model(kind)).train()
    inputs = batch()
    inputs["labels"] = labels_for(kind, inputs)
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.vision_model.encoder.layers[0].gradient_checkpointing
            assert model.qformer.encoder.layer[0].gradient_checkpointing
        model(**inputs).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("part", ["vision_model", "qformer"])
def test_parts_compile_whole(part):
    torch._dynamo.reset()
    model = our_model("llama")
    inputs = batch(instruction_lengths=(9, 2))
    if part == "vision_model":
        arguments = {"pixel_values": inputs["pixel_values"]}
    else:
        mask = torch.cat([torch.ones(2, 4, dtype=torch.long), inputs["qformer_attention_mask"]], 1)
        arguments = {
            "input_ids": inputs["qformer_input_ids"],
            "attention_mask": mask,
            "query_embeds": model.query_tokens.expand(2, -1, -1),
            "encoder_hidden_states": torch.randn(2, 5, 32),
        }
    module = getattr(model, part)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected = module(**arguments).last_hidden_state
        torch.testing.assert_close(compiled(**arguments).last_hidden_state, expected)


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(kind, dtype, tmp_path):
    reference = our_model(kind)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(parameter.to(dtype).float())
    reference.save_pretrained(tmp_path)
    model = InstructBlipForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    assert model.vision_model.dtype == dtype
    if dtype == torch.float16:
        assert model.query_tokens.dtype == torch.float32
        if kind == "t5":
            feed_forward = model.language_model.encoder.block[0].layer[-1].DenseReluDense
            assert feed_forward.wo.weight.dtype == torch.float32
    inputs = batch()
    labels = labels_for(kind, inputs)
    actual, expected = logits_of(model, inputs, labels=labels).float(), logits_of(reference, inputs, labels=labels)
    assert (actual - expected).abs().max() < 0.1 * expected.abs().max()
    assert model.generate(**inputs, max_new_tokens=3).shape[0] == 2


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_resized_embeddings_survive_saving(kind, tmp_path):
    model = our_model(kind)
    inputs = batch()
    labels = labels_for(kind, inputs)
    model.resize_token_embeddings(120)
    assert model.config.text_config.vocab_size == 120
    assert model.language_model.config.vocab_size == 120
    expected = logits_of(model, inputs, labels=labels)
    assert expected.shape[-1] == 120
    model.save_pretrained(tmp_path)
    again = InstructBlipForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(logits_of(again, inputs, labels=labels), expected)
    assert model.get_input_embeddings() is model.language_model.get_input_embeddings()


@pytest.mark.parametrize(
    "device_map",
    [
        {"": "cpu"},
        {
            "vision_model": "cpu",
            "query_tokens": "cpu",
            "qformer": "cpu",
            "language_projection": "cpu",
            "language_model": "disk",
        },
    ],
)
def test_device_map(device_map, tmp_path):
    model = our_model("llama")
    model.save_pretrained(tmp_path / "model")
    placed = InstructBlipForConditionalGeneration.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    inputs = batch()
    torch.testing.assert_close(logits_of(placed, inputs), logits_of(model, inputs))
    assert torch.equal(placed.generate(**inputs, max_new_tokens=4), model.generate(**inputs, max_new_tokens=4))


@pytest.mark.parametrize(
    ("kind", "targets"),
    [("llama", r"language_model\..*q_proj"), ("llama", r"qformer\..*\.query"), ("t5", r"language_model\..*\.q")],
)
def test_lora(kind, targets, tmp_path):
    peft = pytest.importorskip("peft")
    model = our_model(kind)
    inputs = batch()
    labels = labels_for(kind, inputs)
    adapted = peft.get_peft_model(
        copy.deepcopy(model), peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    )
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    loss = adapted(**inputs, labels=labels).loss
    loss.backward()
    expected = logits_of(adapted.eval(), inputs, labels=labels)
    assert not torch.allclose(expected, logits_of(model, inputs, labels=labels))
    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    torch.testing.assert_close(logits_of(again, inputs, labels=labels), expected)
    merged = again.merge_and_unload()
    torch.testing.assert_close(logits_of(merged, inputs, labels=labels), expected, atol=1e-5, rtol=1e-4)
    assert adapted.generate(**inputs, max_new_tokens=3).shape[0] == 2


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_loss_over_accumulated_batches(kind):
    """`num_items_in_batch` makes the losses of two halves add up to the loss of the whole, for T5 too."""
    model = our_model(kind)
    inputs = batch()
    inputs["labels"] = labels_for(kind, inputs)
    targets = inputs["labels"] if kind == "t5" else inputs["labels"][:, 1:]
    items = (targets != -100).sum()
    whole = model(**inputs).loss
    halves = [model(**{k: v[i : i + 1] for k, v in inputs.items()}, num_items_in_batch=items).loss for i in (0, 1)]
    torch.testing.assert_close(sum(halves), whole)


def test_new_models_have_distinct_queries():
    queries = InstructBlipForConditionalGeneration(InstructBlipConfig(**config_dict("llama"))).query_tokens[0]
    assert torch.unique(queries, dim=0).shape[0] == NUM_QUERY_TOKENS
