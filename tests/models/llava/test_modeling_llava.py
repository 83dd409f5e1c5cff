"""LLaVA: same weights and inputs as transformers' own, the oracle; connectors that stock does not have against plain torch."""

from __future__ import annotations

import inspect
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from instructblip_hf.models.blip_2 import Blip2QFormerConfig, Blip2QFormerModel
from instructblip_hf.models.llava import LlavaConfig, LlavaForConditionalGeneration
from tiny_models import (
    IMAGE_SIZE,
    IMAGE_TOKEN_ID,
    batch,
    labels_for,
    llava_config_dict,
    our_llava,
    randomise,
    stock_llava,
    text_config,
)


BATCHES = {
    "one image a row": {},
    "left padding": {"text_lengths": (3, 11)},
    "right padding": {"text_lengths": (3, 11), "padding_side": "right"},
    "several images": {"images_per_row": (2, 1), "text_lengths": (4, 9)},
    "a row without an image": {"images_per_row": (0, 1), "text_lengths": (9, 5)},
    "text alone": {"images_per_row": (0, 0)},
}
GENERATION = {
    "greedy": {},
    "sampled": {"do_sample": True, "temperature": 1.3, "top_k": 20},
    "beam": {"num_beams": 4, "length_penalty": 0.5, "num_return_sequences": 2},
}
CONNECTORS = {
    "mlp": {},
    "several layers": {"vision_feature_layer": [-2, 0], "projector_hidden_act": "relu"},
    "class token": {"vision_feature_select_strategy": "full", "vision_feature_layer": -1, "image_seq_length": 5},
    "no bias": {"multimodal_projector_bias": False, "vision_feature_layer": 1},
}
QFORMER = {
    "projector_type": "qformer",
    "qformer_config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "num_query_tokens": 4,
}


def inputs_for(**shape):
    """A batch in reading order; LLaVA reads no instruction apart."""
    shape.setdefault("instruction_lengths", tuple(4 for _ in shape.get("images_per_row", (1, 1))))
    return {name: value for name, value in batch(**shape).items() if not name.startswith("qformer")}


def saved_by_stock(stock, folder, layout):
    """Stock's folder, in the layout of published checkpoints, of early transformers 5, or of its names in memory."""
    stock.save_pretrained(folder, save_original_format=layout != "in memory")
    file = folder / "model.safetensors"
    if layout == "published":
        tensors = load_file(file)
        renamed = {name.replace("vision_tower.", "vision_tower.vision_model.", 1): t for name, t in tensors.items()}
        assert len(renamed) == len(tensors)
        save_file(renamed, file, {"format": "pt"})
    return folder


@pytest.fixture(scope="module", params=["llama", "gemma"])
def pair(request, tmp_path_factory):
    stock = stock_llava(request.param)
    folder = tmp_path_factory.mktemp("stock")
    stock.save_pretrained(folder)
    return request.param, stock, LlavaForConditionalGeneration.from_pretrained(folder)


def gradients(model):
    """Gradients by the name that a tensor has on disk."""
    grads = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        name = name.removeprefix("model.") if "vision_tower" in name or "multi_modal" in name else name
        name = name.replace("model.language_model.", "language_model.model.")
        name = "language_model.lm_head.weight" if name == "lm_head.weight" else name
        grads[name] = parameter.grad.clone()
    return grads


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", BATCHES)
def test_logits_loss_and_gradients(pair, name, attn_implementation):
    kind, stock, ours = pair
    inputs = inputs_for(**BATCHES[name])
    inputs["labels"] = labels_for(kind, inputs)
    results = []
    for model in (stock, ours):
        model.set_attn_implementation(attn_implementation)
        model.zero_grad()
        outputs = model(**inputs)
        outputs.loss.backward()
        results.append((outputs, gradients(model)))
    (expected, expected_grads), (actual, actual_grads) = results
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual.loss, expected.loss, rtol=1e-5, atol=1e-6)
    assert actual_grads.keys() == expected_grads.keys()
    assert ("vision_tower.embeddings.patch_embedding.weight" in actual_grads) == ("pixel_values" in inputs)
    for parameter, gradient in expected_grads.items():
        scale = max(gradient.abs().max().item(), 1e-4)
        assert (actual_grads[parameter] - gradient).abs().max().item() < 1e-5 * scale, parameter


@pytest.mark.parametrize("how", GENERATION)
@pytest.mark.parametrize("name", [name for name in BATCHES if name != "right padding"])
def test_generated_tokens(pair, name, how):
    _, stock, ours = pair
    takes_encoded_images = "mm_encoder_outputs" in inspect.signature(type(stock).forward).parameters
    if name == "several images" and how == "beam" and not takes_encoded_images:
        pytest.skip("early stock 5.x repeats images, not rows of images, for beams and mixes them up")
    tokens = []
    for model in (stock, ours):
        torch.manual_seed(7)
        tokens.append(model.generate(**inputs_for(**BATCHES[name]), max_new_tokens=9, **GENERATION[how]))
    assert torch.equal(*tokens)


def test_batched_generation_equals_single(pair):
    _, _, ours = pair
    inputs = inputs_for(images_per_row=(2, 0, 1), text_lengths=(4, 9, 3))
    together = ours.generate(**inputs, max_new_tokens=8, return_full_text=False)
    images = iter(inputs["pixel_values"].split([2, 0, 1]))
    for row, tokens in enumerate(together):
        kept = inputs["attention_mask"][row].bool()
        single = {"input_ids": inputs["input_ids"][row][kept][None]}
        pixels = next(images)
        if len(pixels):
            single["pixel_values"] = pixels
        alone = ours.generate(**single, max_new_tokens=8, return_full_text=False)[0]
        assert torch.equal(alone, tokens[: len(alone)])


@pytest.mark.parametrize("layout", ["published", "saved by 5.x", "in memory"])
@pytest.mark.parametrize("name", CONNECTORS)
def test_folders_are_exchanged(tmp_path, name, layout):
    stock = stock_llava(**CONNECTORS[name])
    ours, info = LlavaForConditionalGeneration.from_pretrained(
        saved_by_stock(stock, tmp_path / "stock", layout), output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ours.save_pretrained(tmp_path / "ours")
    names = set(load_file(tmp_path / "ours" / "model.safetensors"))
    assert {name.partition(".")[0] for name in names} == {"vision_tower", "multi_modal_projector", "language_model"}
    assert any(name.startswith("vision_tower.vision_model.") for name in names) == (layout == "published")
    again, info = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(again) is type(stock)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens = CONNECTORS[name].get("image_seq_length", 4)
    ids = torch.tensor([[1, *[IMAGE_TOKEN_ID] * tokens, 5, 6, 7]])
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE)}
    with torch.no_grad():
        expected = stock(**inputs).logits
        assert torch.equal(ours(**inputs).logits, expected)
        assert torch.equal(again(**inputs).logits, expected)


def test_tied_language_model(tmp_path):
    config = llava_config_dict("qwen")
    config["text_config"]["tie_word_embeddings"] = True
    stock = randomise(transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(**config))).eval()
    stock.save_pretrained(tmp_path / "stock")
    ours = LlavaForConditionalGeneration.from_pretrained(tmp_path / "stock")
    assert ours.get_output_embeddings().weight is ours.get_input_embeddings().weight
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert torch.equal(again(**inputs_for()).logits, stock(**inputs_for()).logits)


def test_a_single_linear_layer_is_stocks_bit_for_bit(tmp_path):
    """The paper's connector: what is saved computes the same in stock, whose connectors have two layers."""
    ours = our_llava(projector_type="linear")
    inputs = inputs_for()
    named = [name for name, _ in ours.named_parameters() if name.startswith("multi_modal_projector")]
    assert named == ["multi_modal_projector.linear_1.weight", "multi_modal_projector.linear_1.bias"]
    features = ours.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
    linear = ours.multi_modal_projector.linear_1
    expected = features @ linear.weight.T + linear.bias
    torch.testing.assert_close(ours.get_image_features(inputs["pixel_values"]).pooler_output, expected)

    ours.save_pretrained(tmp_path / "ours")
    stock = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert torch.equal(stock(**inputs).logits, ours(**inputs).logits)
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert torch.equal(again(**inputs).logits, ours(**inputs).logits)


def test_a_linear_layer_that_stock_has_trained_on_is_no_longer_one(tmp_path):
    our_llava(projector_type="linear").save_pretrained(tmp_path / "ours")
    stock = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "ours")
    nn.init.normal_(stock.model.multi_modal_projector.linear_2.weight)
    stock.save_pretrained(tmp_path / "stock")
    with pytest.raises(ValueError, match=r"linear_2, is not the identity.*Set projector_type to 'mlp'"):
        LlavaForConditionalGeneration.from_pretrained(tmp_path / "stock")
    file = tmp_path / "stock" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "projector_type": "mlp"}))
    ours = LlavaForConditionalGeneration.from_pretrained(tmp_path / "stock")
    # Without "linear" in its configuration an MLP would get a GELU.
    assert ours.config.projector_hidden_act == "linear"
    torch.testing.assert_close(ours(**inputs_for()).logits, stock(**inputs_for()).logits)


def test_linear_layer_in_half_precision(tmp_path):
    our_llava(projector_type="linear").save_pretrained(tmp_path)
    ours = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert ours.multi_modal_projector.linear_2.weight.dtype == torch.bfloat16
    stock = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    inputs = inputs_for()
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    assert torch.equal(stock(**inputs).logits, ours(**inputs).logits)


def test_qformer_as_connector(tmp_path):
    """Against the Q-Former and the projection called by hand; stock, which has no such connector, says so."""
    ours = our_llava(**QFORMER)
    inputs = inputs_for()
    connector = ours.multi_modal_projector
    features = ours.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
    queries = connector.qformer(
        query_embeds=connector.query_tokens.expand(2, -1, -1), encoder_hidden_states=features
    ).last_hidden_state
    expected = connector.language_projection(queries)
    torch.testing.assert_close(ours.get_image_features(inputs["pixel_values"]).pooler_output, expected)

    ours.save_pretrained(tmp_path)
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again(**inputs).logits, ours(**inputs).logits)
    with pytest.raises(KeyError, match="qformer"):
        transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path)


@pytest.mark.parametrize("options", [{}, {"projector_type": "linear"}, QFORMER], ids=["mlp", "linear", "qformer"])
def test_rows_that_share_images(options):
    ours = our_llava(**options)
    inputs = inputs_for(images_per_row=(2, 1, 1), text_lengths=(5, 7, 3))
    index = torch.tensor([1, 0, 1, 1])
    shared = ours(**{**inputs, "pixel_values": inputs["pixel_values"][:2], "image_index": index}).logits
    repeated = ours(**{**inputs, "pixel_values": inputs["pixel_values"][:2][index]}).logits
    torch.testing.assert_close(shared, repeated, rtol=1e-5, atol=1e-5)


def test_features_in_place_of_pixels():
    ours = our_llava(vision_feature_layer=[-1, 1])
    inputs = inputs_for()
    states = ours.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
    features = torch.cat([states[-1][:, 1:], states[1][:, 1:]], dim=-1)
    assert features.shape[-1] == ours.config.image_features_size == ours.image_embeds_size
    expected = ours(**inputs).logits
    pixels = inputs.pop("pixel_values")
    assert torch.equal(ours(**inputs, image_embeds=features).logits, expected)
    with pytest.raises(ValueError, match="either pixel_values or image_embeds"):
        ours(**inputs, pixel_values=pixels, image_embeds=features)


def test_ranking_against_scoring_each_candidate():
    ours = our_llava().double()
    inputs = inputs_for(text_lengths=(3, 6))
    inputs["pixel_values"] = inputs["pixel_values"].double()
    candidates = [[5, 6, 7], [5, 6], [9], [11, 12]]
    scores = ours.rank_candidates(candidates, **inputs).scores
    features = ours.get_image_features(inputs["pixel_values"]).pooler_output
    for row in range(2):
        kept = inputs["attention_mask"][row].bool()
        prompt = inputs["input_ids"][row][kept]
        for column, candidate in enumerate(candidates):
            ids = torch.cat([prompt, torch.tensor(candidate)])[None]
            embeds = ours.get_input_embeddings()(ids).clone()
            embeds[0, (ids[0] == IMAGE_TOKEN_ID).nonzero()[:, 0]] = features[row]
            logits = ours.language_model(inputs_embeds=embeds).logits[0].log_softmax(-1)
            total = sum(logits[len(prompt) - 1 + i, token] for i, token in enumerate(candidate))
            torch.testing.assert_close(scores[row, column].double(), total, rtol=1e-6, atol=1e-5)


def test_text_rows_alone_reach_the_connector_in_training():
    """Processes that train together must agree on what has gradients; these are zero."""
    ours = our_llava().train()
    ours.vision_tower.requires_grad_(False)
    inputs = inputs_for(images_per_row=(0, 0))
    loss = ours(**inputs, labels=inputs["input_ids"]).loss
    loss.backward()
    assert all(not p.grad.any() for p in ours.multi_modal_projector.parameters())
    torch.testing.assert_close(loss, ours.eval()(**inputs, labels=inputs["input_ids"]).loss)


def test_tuple_is_stocks():
    stock, ours = stock_llava(), our_llava()
    inputs = inputs_for()
    theirs = stock(**inputs, return_dict=False)
    mine = ours(**inputs, return_dict=False)
    assert len(mine) == len(theirs)
    assert mine[0].shape == theirs[0].shape


# --- composing ----------------------------------------------------------------------------------------------------


def tower(kind):
    common = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    common.update(image_size=IMAGE_SIZE, patch_size=14)
    config = {
        "clip": lambda: transformers.CLIPVisionConfig(**common),
        "siglip": lambda: transformers.SiglipVisionConfig(**common),
        "dinov2": lambda: transformers.Dinov2Config(**common),
    }[kind]()
    return randomise(transformers.AutoModel.from_config(config)).eval()


@pytest.mark.parametrize("projector_type", ["mlp", "linear", "qformer"])
@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
def test_composed_of_any_tower(tmp_path, kind, projector_type):
    vision, text = tower(kind), transformers.AutoModelForCausalLM.from_config(text_config("qwen"))
    qformer = None
    if projector_type == "qformer":
        qformer = Blip2QFormerModel(Blip2QFormerConfig(**QFORMER["qformer_config"], encoder_hidden_size=32))
    model = LlavaForConditionalGeneration.from_vision_text_pretrained(
        vision,
        text,
        projector_type,
        qformer=qformer,
        num_query_tokens=3 if qformer is not None else None,
        vision_feature_select_strategy="full" if kind == "siglip" else "default",
    )
    tokens = 3 if projector_type == "qformer" else 4
    assert model.config.image_seq_length == tokens
    assert model.vision_tower is vision
    image_token = model.config.image_token_id
    assert image_token == 99  # a new row
    assert model.get_input_embeddings().weight.shape[0] == 100
    ids = torch.tensor([[1, *[image_token] * tokens, 5]])
    pixels = torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    expected = model(input_ids=ids, pixel_values=pixels).logits
    model.save_pretrained(tmp_path)
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again(input_ids=ids, pixel_values=pixels).logits, expected)


def test_new_connector_is_initialised():
    model = LlavaForConditionalGeneration.from_vision_text_pretrained(
        tower("clip"), transformers.AutoModelForCausalLM.from_config(text_config("llama")), "linear"
    )
    connector = model.multi_modal_projector
    assert 0.01 < connector.linear_1.weight.std() < 0.03
    assert connector.linear_2.is_unchanged()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projector_type": "mlp2x"}, "projector_type is 'mlp2x'; it must be one of mlp, linear, qformer"),
        ({"vision_feature_select_strategy": "cls"}, "vision_feature_select_strategy is 'cls'"),
        ({"num_query_tokens": 4}, "for projector_type='qformer', and it is 'mlp'"),
        ({"text_config": {"model_type": "t5"}}, "needs a causal language model"),
    ],
)
def test_configurations_that_cannot_be(options, message):
    # transformers wraps what a configuration's checks raise in an error of its own.
    with pytest.raises(Exception, match=message):
        LlavaConfig(**llava_config_dict(**options) if "text_config" not in options else options)


def test_layers_that_the_tower_lacks():
    model = our_llava(vision_feature_layer=7)
    with pytest.raises(ValueError, match=r"names 7, and the vision tower has states -4 to 3"):
        model(**inputs_for())


def test_seq2seq_models_are_turned_away_in_composing():
    t5 = transformers.AutoModelForSeq2SeqLM.from_config(text_config("t5"))
    with pytest.raises(Exception, match="needs a causal language model"):
        LlavaForConditionalGeneration.from_vision_text_pretrained(tower("clip"), t5)
