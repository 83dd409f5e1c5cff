"""BLIP-2 that compares images and texts, against transformers' own on the same weights."""

from __future__ import annotations

import pytest
import torch
import transformers

from instructblip_hf.models.blip_2 import Blip2Config, Blip2ForImageTextRetrieval, Blip2QFormerModel, Blip2VisionModel
from tiny_models import IMAGE_SIZE, NUM_QUERY_TOKENS, first_stage_config, our_retrieval_model, randomise


PLACEHOLDER = 59


def stock_retrieval_model(**options):
    config = transformers.Blip2Config(**first_stage_config(**options))
    return randomise(transformers.Blip2ForImageTextRetrieval(config)).eval()


def pairs(lengths=(6, 3, 9), placeholders=False):
    """Images and as many texts of these lengths, padded on the right."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(3, 58, (length,), generator=generator)
        mask[row, :length] = 1
    if placeholders:
        ids = torch.cat([torch.full((len(ids), NUM_QUERY_TOKENS), PLACEHOLDER), ids], dim=1)
        mask = torch.cat([torch.ones(len(mask), NUM_QUERY_TOKENS, dtype=torch.long), mask], dim=1)
    pixels = torch.randn(len(lengths), 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}


@pytest.fixture(params=[PLACEHOLDER, None], ids=["placeholders", "no placeholders"])
def pair(request):
    stock = stock_retrieval_model(image_token_index=request.param)
    ours = our_retrieval_model(seed=1, image_token_index=request.param)
    ours.load_state_dict(stock.state_dict())
    return stock, ours, pairs(placeholders=request.param is not None)


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("matching", [True, False])
def test_logits_and_gradients_are_stocks(pair, matching, attn_implementation):
    stock, ours, inputs = pair
    results = []
    for model in (stock, ours):
        model.set_attn_implementation(attn_implementation)
        model.zero_grad()
        outputs = model(**inputs, use_image_text_matching_head=matching)
        outputs.logits_per_image.square().sum().backward()
        results.append((outputs, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (expected, expected_gradients), (actual, gradients) = results
    for name in ("logits_per_image", "logits_per_text", "image_embeds"):
        torch.testing.assert_close(actual[name], expected[name], atol=1e-5, rtol=1e-5)
    # States of padding, which nothing reads, are stock's as well.
    torch.testing.assert_close(actual.text_embeds, expected.text_embeds, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_features_are_what_forward_compares(pair):
    _, ours, inputs = pair
    images = ours.get_image_features(inputs["pixel_values"])
    texts = ours.get_text_features(inputs["input_ids"], inputs["attention_mask"])
    assert images.image_embeds.shape == (3, NUM_QUERY_TOKENS, 16)
    assert texts.text_embeds.shape == (3, 16)
    for vectors in (images.image_embeds, texts.text_embeds):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:-1]))
    by_hand = torch.stack(
        [torch.stack([(image @ text).max() for text in texts.text_embeds]) for image in images.image_embeds]
    )
    torch.testing.assert_close(ours(**inputs).logits_per_image, by_hand)
    logits = ours.get_matching_logits(
        inputs["input_ids"], inputs["attention_mask"], image_states=images.last_hidden_state
    )
    expected = ours(**inputs, use_image_text_matching_head=True).logits_per_image
    torch.testing.assert_close(logits, expected)
    one_image = ours.get_matching_logits(
        inputs["input_ids"],
        inputs["attention_mask"],
        image_states=images.last_hidden_state[:1],
        image_index=torch.zeros(3, dtype=torch.long),
    )
    repeated = images.last_hidden_state[:1].expand(3, -1, -1)
    torch.testing.assert_close(
        one_image, ours.get_matching_logits(inputs["input_ids"], inputs["attention_mask"], image_states=repeated)
    )


def test_padding_changes_nothing():
    model, inputs = our_retrieval_model(), pairs()
    together = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).text_embeds
    for row, length in enumerate((6, 3, 9)):
        alone = model.get_text_features(inputs["input_ids"][row : row + 1, :length]).text_embeds
        torch.testing.assert_close(together[row : row + 1], alone)


def test_saved_folders_are_exchanged(pair, tmp_path):
    stock, ours, inputs = pair
    stock.save_pretrained(tmp_path / "stock")
    ours.save_pretrained(tmp_path / "ours")
    from_stock, info = Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    into_stock, info = transformers.Blip2ForImageTextRetrieval.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        expected = ours(**inputs, use_image_text_matching_head=True).logits_per_image
        for model in (from_stock, into_stock):
            actual = model(**inputs, use_image_text_matching_head=True).logits_per_image
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("part", "name"), [(Blip2VisionModel, "vision_model"), (Blip2QFormerModel, "qformer")])
def test_parts_load_out_of_the_whole(part, name, tmp_path):
    model = our_retrieval_model()
    model.save_pretrained(tmp_path)
    loaded = part.from_pretrained(tmp_path, config=getattr(model.config, f"{name.removesuffix('_model')}_config"))
    for key, value in getattr(model, name).state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_bad_inputs_are_named():
    model, inputs = our_retrieval_model(), pairs(placeholders=True)
    with pytest.raises(ValueError, match="give one of pixel_values, image_embeds, image_states; got none"):
        model(input_ids=inputs["input_ids"])
    with pytest.raises(ValueError, match="2 images and 3 texts do not make pairs"):
        model(**{**inputs, "pixel_values": inputs["pixel_values"][:2]}, use_image_text_matching_head=True)
    shifted = inputs["input_ids"].roll(1, dims=1)
    with pytest.raises(ValueError, match=r"image placeholders \(id 59\) elsewhere than in the first 4 places"):
        model.get_text_features(shifted)
    with pytest.raises(ValueError, match="use_qformer_text_input must be True"):
        Blip2ForImageTextRetrieval(Blip2Config())
    with pytest.raises(ValueError, match="41 tokens, the Q-Former at most 40 positions"):
        model.get_text_features(torch.full((1, 41), 5))
