"""Same weights, same inputs: this package against transformers' own InstructBLIP and BLIP-2, the oracle."""

from __future__ import annotations

import pytest
import torch
import transformers

from tiny_models import batch, labels_for, our_blip_2, our_model, stock_blip_2, stock_model


MODELS = {
    "instructblip-llama": (stock_model, our_model, "llama"),
    "instructblip-t5": (stock_model, our_model, "t5"),
    "blip-2-opt": (stock_blip_2, our_blip_2, "opt"),
    "blip-2-t5": (stock_blip_2, our_blip_2, "t5"),
    "blip-2-llama": (stock_blip_2, our_blip_2, "llama"),
}


BATCHES = {
    "one image a row": {},
    "left padding": {"text_lengths": (3, 11)},
    "right padding": {"text_lengths": (3, 11), "padding_side": "right"},
    "very different instructions": {"instruction_lengths": (38, 1)},
    "several images": {"images_per_row": (2, 1), "text_lengths": (4, 9)},
    "four frames": {"images_per_row": (4,), "text_lengths": (5,), "instruction_lengths": (6,)},
}
GENERATION = {
    "greedy": {},
    "sampled": {"do_sample": True, "temperature": 1.3, "top_k": 20},
    "beam": {"num_beams": 4, "length_penalty": 0.5, "num_return_sequences": 2},
    "repetition penalty": {"repetition_penalty": 1.5, "num_beams": 2},
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request):
    """Kind of language model, stock's model and ours with its weights."""
    build_stock, build_ours, kind = MODELS[request.param]
    stock, ours = build_stock(kind), build_ours(kind, seed=1)
    ours.load_state_dict(stock.state_dict())
    return kind, stock, ours


def inputs_for(model, **shape):
    """A batch; BLIP-2's Q-Former reads no instruction."""
    inputs = batch(**shape)
    if model.config.model_type == "blip-2":
        inputs = {name: value for name, value in inputs.items() if not name.startswith("qformer")}
    return inputs


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def test_parameters_have_the_published_names(pair):
    _, stock, ours = pair
    assert {name: p.shape for name, p in ours.state_dict().items()} == {
        name: p.shape for name, p in stock.state_dict().items()
    }


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", BATCHES)
def test_logits_loss_and_gradients(pair, name, attn_implementation):
    kind, stock, ours = pair
    inputs = inputs_for(ours, **BATCHES[name])
    inputs["labels"] = labels_for(kind, inputs)
    results = []
    for model in (stock, ours):
        model.set_attn_implementation(attn_implementation)
        model.zero_grad()
        outputs = model(**inputs)
        outputs.loss.backward()
        results.append((outputs, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (expected, expected_grads), (actual, actual_grads) = results
    assert relative(actual.logits, expected.logits) < 1e-5
    assert relative(actual.loss, expected.loss) < 1e-5
    assert actual_grads.keys() == expected_grads.keys()
    assert "vision_model.embeddings.patch_embedding.weight" in actual_grads
    for parameter, gradient in expected_grads.items():
        # A gradient that is zero but for rounding, such as the key bias's, has no relative error of its own.
        scale = max(gradient.abs().max().item(), 1e-4)
        assert (actual_grads[parameter] - gradient).abs().max().item() < 1e-5 * scale, parameter


@pytest.mark.parametrize("how", GENERATION)
@pytest.mark.parametrize("name", [name for name in BATCHES if name != "right padding"])
def test_generated_tokens(pair, name, how):
    _, stock, ours = pair
    inputs = inputs_for(ours, **BATCHES[name])
    tokens = []
    for model in (stock, ours):
        torch.manual_seed(7)
        tokens.append(model.generate(**inputs, max_new_tokens=9, **GENERATION[how]))
    assert torch.equal(*tokens)


def test_vision_and_qformer_outputs(pair):
    _, stock, ours = pair
    inputs = inputs_for(ours)
    expected = stock.vision_model(inputs["pixel_values"], output_hidden_states=True)
    actual = ours.vision_model(inputs["pixel_values"], output_hidden_states=True)
    torch.testing.assert_close(actual.last_hidden_state, expected.last_hidden_state)
    torch.testing.assert_close(actual.pooler_output, expected.pooler_output)
    assert len(actual.hidden_states) == len(expected.hidden_states)
    for ours_state, stock_state in zip(actual.hidden_states, expected.hidden_states):
        torch.testing.assert_close(ours_state, stock_state)


@pytest.mark.parametrize("size", [(42, 28), (14, 56)])
def test_interpolated_positions(pair, size):
    _, stock, ours = pair
    images = torch.randn(2, 3, *size)
    expected = stock.vision_model(images, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(ours.vision_model(images, interpolate_pos_encoding=True).last_hidden_state, expected)


def test_video_equals_stocks_video_model():
    """5-D pixels, one instruction a video, against transformers' InstructBlipVideo on the same weights."""
    stock_image = stock_model("llama")
    config = transformers.InstructBlipVideoConfig(
        **{
            key: value
            for key, value in stock_image.config.to_dict().items()
            if key in ("vision_config", "qformer_config", "text_config", "num_query_tokens")
        },
        video_token_index=stock_image.config.image_token_index,
    )
    for part in (config.vision_config, config.qformer_config):
        part.model_type = part.model_type.replace("instructblip_", "instructblipvideo_")
    video = transformers.InstructBlipVideoForConditionalGeneration(config).eval()
    video.load_state_dict(stock_image.state_dict())
    ours = our_model("llama")
    inputs = batch(images_per_row=(4, 4), text_lengths=(5, 5))
    pixels = inputs["pixel_values"].unflatten(0, (2, 4))
    instructions = {
        "qformer_input_ids": inputs["qformer_input_ids"][::4],
        "qformer_attention_mask": inputs["qformer_attention_mask"][::4],
    }
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = video(pixel_values=pixels, **instructions, **text).logits
        torch.testing.assert_close(ours(pixel_values=pixels, **instructions, **text).logits, expected)
        torch.testing.assert_close(ours(**inputs).logits, expected)


@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_saved_folders_are_exchanged(pair, tmp_path, max_shard_size):
    kind, stock, ours = pair
    inputs = inputs_for(ours)
    inputs["labels"] = labels_for(kind, inputs)
    stock.save_pretrained(tmp_path / "stock", max_shard_size=max_shard_size)
    ours.save_pretrained(tmp_path / "ours", max_shard_size=max_shard_size)
    shards = len(list((tmp_path / "ours").glob("*.safetensors")))
    assert shards == 1 if max_shard_size == "5GB" else shards > 3

    from_stock, info = type(ours).from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    into_stock, info = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert type(into_stock) is type(stock)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    stock.set_attn_implementation("eager")
    with torch.no_grad():
        expected = stock(**inputs)
        for model in (from_stock, into_stock):
            model.set_attn_implementation("eager")
            actual = model(**inputs)
            assert torch.equal(actual.logits, expected.logits)
            assert torch.equal(actual.loss, expected.loss)
