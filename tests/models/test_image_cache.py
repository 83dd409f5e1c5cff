"""Images that are kept: equal to the path without a cache and to stock transformers, and nothing computed twice."""

import copy
import gc
import pickle

import pytest
import torch

from instructblip_hf.models.image_cache import ImageCache
from tiny_models import (
    IMAGE_SIZE,
    LANGUAGE_MODELS,
    batch,
    labels_for,
    our_blip_2,
    our_llava,
    our_model,
    stock_blip_2,
    stock_llava,
    stock_model,
)


INDEX = [2, 0, 0, 1, 0]  # one row has two images
IMAGES_PER_ROW = (1, 2, 1, 1)
FAMILIES = ("instructblip", "instructblip t5", "without instruction", "blip-2", "llava", "llava with a Q-Former")
CANDIDATES = [[5, 6], [5, 7, 8], [9]]


def family_model(family):
    if family == "blip-2":
        return our_blip_2()
    if family == "llava":
        return our_llava()
    if family == "llava with a Q-Former":
        qformer = {
            "vocab_size": 60,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
        }
        return our_llava(projector_type="qformer", qformer_config=qformer, num_query_tokens=4)
    if family == "without instruction":
        return our_model(use_qformer_text_input=False)
    return our_model("t5" if "t5" in family else "llama")


def questions(model, side="left"):
    """Plain inputs with a row of pixels an image of the text, the pixels once each, and the index."""
    inputs = batch(IMAGES_PER_ROW, (6, 4, 5, 3), (7, 2, 4, 3), side)
    pixels = torch.randn(3, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))
    inputs["pixel_values"] = pixels[torch.tensor(INDEX)]
    if not getattr(model, "reads_instruction", False):
        inputs = {name: value for name, value in inputs.items() if not name.startswith("qformer")}
    return inputs, pixels, torch.tensor(INDEX)


def questions_for_logits(model):
    """The same, with the labels without which a sequence-to-sequence model has no logits."""
    inputs, pixels, index = questions(model)
    if model.config.is_encoder_decoder:
        inputs["labels"] = labels_for("t5", inputs)
    return inputs, pixels, index


def with_cache(model, inputs, pixels, index, **options):
    with torch.no_grad():
        cache = model.encode_images(pixels, **options)
    rest = {name: value for name, value in inputs.items() if name != "pixel_values"}
    return {**rest, "image_cache": cache, "image_index": index}


def refuse_to_run(module):
    def refuse(*args):
        raise AssertionError(f"{type(module).__name__} is run, and should not be")

    return module.register_forward_hook(refuse)


def refuse_image_work(model):
    """Hooks on everything that the cache is to save."""
    refuse_to_run(model.image_tower)
    if getattr(model, "reads_instruction", False):
        for layer in model.qformer.encoder.layer:
            if layer.has_cross_attention:
                refuse_to_run(layer.crossattention.attention.key)
                refuse_to_run(layer.crossattention.attention.value)
    else:
        refuse_to_run(getattr(model, model.image_side[1]))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_outputs_equal_those_without_a_cache_and_nothing_is_computed_twice(family):
    model = family_model(family).double()
    inputs, pixels, index = questions(model)
    inputs["pixel_values"], pixels = inputs["pixel_values"].double(), pixels.double()
    labels = labels_for("t5" if "t5" in family else "llama", inputs)
    expected = model(**inputs, labels=labels)
    generated = model.generate(**inputs, max_new_tokens=5, num_beams=3)
    ranked = model.rank_candidates(CANDIDATES, **inputs)
    _, prompt = model.embed_prompt(**{name: inputs[name] for name in inputs if name != "attention_mask"})

    own = with_cache(model, inputs, pixels, index)
    refuse_image_work(model)
    outputs = model(**own, labels=labels)
    torch.testing.assert_close(outputs.logits, expected.logits, rtol=0, atol=1e-11)
    torch.testing.assert_close(outputs.loss, expected.loss, rtol=0, atol=1e-11)
    assert outputs.vision_outputs is None
    assert torch.equal(model.generate(**own, max_new_tokens=5, num_beams=3), generated)
    scores = model.rank_candidates(CANDIDATES, **own)
    torch.testing.assert_close(scores.scores, ranked.scores, rtol=0, atol=1e-10)
    assert torch.equal(scores.order, ranked.order)
    _, own_prompt = model.embed_prompt(**{name: own[name] for name in own if name != "attention_mask"})
    torch.testing.assert_close(own_prompt, prompt, rtol=0, atol=1e-11)


@pytest.mark.parametrize("family", ["instructblip", "instructblip t5", "blip-2", "llava"])
@torch.no_grad()
def test_outputs_and_tokens_are_those_of_stock_transformers(family):
    kind = "t5" if "t5" in family else "llama"
    stock, model = {
        "blip-2": lambda: (stock_blip_2(), our_blip_2()),
        "llava": lambda: (stock_llava(), our_llava()),
    }.get(family, lambda: (stock_model(kind), our_model(kind)))()
    model.load_state_dict(
        stock.state_dict() if family != "llava" else model.state_dict()
    )  # stock's LLaVA has other names; both draw the same weights
    inputs, pixels, index = questions(model)
    if family == "llava":
        stock.load_state_dict(
            {
                name.replace("language_model.model.", "model.language_model.")
                .replace("language_model.lm_head.", "lm_head.")
                .replace("vision_tower.", "model.vision_tower.")
                .replace("multi_modal_projector.", "model.multi_modal_projector."): value
                for name, value in model.state_dict().items()
            }
        )
    labels = labels_for(kind, inputs)
    expected = stock(**inputs, labels=labels)
    own = with_cache(model, inputs, pixels, index)
    outputs = model(**own, labels=labels)
    torch.testing.assert_close(outputs.logits, expected.logits, rtol=0, atol=2e-5)
    torch.testing.assert_close(outputs.loss, expected.loss, rtol=0, atol=1e-5)
    tokens = stock.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert torch.equal(model.generate(**own, max_new_tokens=6, do_sample=False), tokens)


@pytest.mark.parametrize("family", ["instructblip", "llava"])
def test_sampling_draws_the_same_tokens(family):
    model = family_model(family)
    inputs, pixels, index = questions(model)
    own = with_cache(model, inputs, pixels, index)
    sampled = []
    for given in (inputs, own):
        torch.manual_seed(4)
        sampled.append(model.generate(**given, max_new_tokens=6, do_sample=True, num_return_sequences=2))
    assert torch.equal(*sampled)


@pytest.mark.parametrize("family", ["instructblip", "blip-2"])
@torch.no_grad()
def test_images_alone_one_each_and_in_order(family):
    model = family_model(family)
    inputs, pixels, _ = questions(model)
    text = {name: value[:3] for name, value in inputs.items() if name.startswith("qformer")}
    expected = model.generate(pixel_values=pixels, **text, max_new_tokens=3)
    cache = model.encode_images(pixels)
    assert torch.equal(model.generate(image_cache=cache, **text, max_new_tokens=3), expected)
    features = model.get_image_features(image_cache=cache, **text).pooler_output
    expected = model.get_image_features(pixel_values=pixels, **text).pooler_output
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)
    embeds = model.vision_model(pixels).last_hidden_state
    given = model.get_image_features(image_cache=model.encode_images(image_embeds=embeds), **text).pooler_output
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["instructblip", "blip-2"])
@torch.no_grad()
def test_hidden_states_and_attentions_are_there_when_asked_for(family):
    model = family_model(family)
    model.set_attn_implementation("eager")
    inputs, pixels, index = questions(model)
    image_side = {name: value for name, value in inputs.items() if "mask" not in name and name != "input_ids"}
    asked = {"output_hidden_states": True, "output_attentions": True}
    expected = model.get_image_features(**image_side, **asked).qformer_outputs
    own = with_cache(model, image_side, pixels, index)
    outputs = model.get_image_features(**own, **asked).qformer_outputs
    for name in ("hidden_states", "attentions", "cross_attentions"):
        for theirs, ours in zip(expected[name], outputs[name], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


# --- training -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("vision_only", [False, True])
def test_gradients_of_what_trains_behind_a_frozen_tower(family, vision_only):
    results = []
    for cached in (False, True):
        model = family_model(family).double()
        model.image_tower.requires_grad_(False)
        inputs, pixels, index = questions(model)
        inputs["pixel_values"], pixels = inputs["pixel_values"].double(), pixels.double()
        given = with_cache(model, inputs, pixels, index, vision_only=vision_only) if cached else inputs
        labels = labels_for("t5" if "t5" in family else "llama", inputs)
        loss = model(**given, labels=labels).loss
        loss.backward()
        results.append((loss, {name: one.grad for name, one in model.named_parameters() if one.grad is not None}))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=0, atol=1e-11)
    assert results[1][1].keys() == results[0][1].keys()
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, rtol=0, atol=1e-10, msg=name)


@pytest.mark.parametrize("family", ["instructblip", "blip-2"])
def test_a_cache_made_with_gradients_hands_them_on(family):
    gradients = []
    for cached in (False, True):
        model = family_model(family).double()
        inputs, pixels, index = questions(model)
        inputs["pixel_values"], pixels = inputs["pixel_values"].double(), pixels.double()
        if cached:
            inputs.pop("pixel_values")
            inputs.update(image_cache=model.encode_images(pixels), image_index=index)
            refuse_image_work(model)
        model(**inputs, labels=labels_for("llama", inputs)).loss.backward()
        gradients.append({name: one.grad for name, one in model.named_parameters() if one.grad is not None})
    assert gradients[1].keys() == gradients[0].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-10, msg=name)


def test_a_tower_that_trains_refuses_a_cache_without_gradients():
    model = our_model().train()
    own = with_cache(model, *questions(model))
    with pytest.raises(ValueError, match="the vision tower trains, and image_cache was made without gradients"):
        model(**own, labels=own["input_ids"])
    model.image_tower.requires_grad_(False)
    model(**own, labels=own["input_ids"]).loss.backward()


@pytest.mark.parametrize("family", ["instructblip", "blip-2", "llava"])
@torch.no_grad()
def test_what_weights_have_changed_since_is_computed_anew(family):
    model = family_model(family)
    inputs, pixels, index = questions(model)
    own = with_cache(model, inputs, pixels, index)
    before = model(**own).logits
    for parameter in getattr(model, model.image_side[1]).parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    expected = model(**inputs).logits
    assert not torch.allclose(before, expected, atol=1e-3)
    torch.testing.assert_close(model(**own).logits, expected, rtol=0, atol=1e-5)
    next(model.image_tower.parameters()).add_(0.1)
    with pytest.raises(ValueError, match="as it was before its weights changed"):
        model(**own)


@pytest.mark.parametrize("family", ["instructblip", "blip-2", "llava"])
@torch.no_grad()
def test_adapters_that_are_switched_are_seen(family):
    peft = pytest.importorskip("peft")
    model = family_model(family)
    inputs, pixels, index = questions(model)
    targets = r".*(qformer.*\.(key|value)|language_projection|multi_modal_projector\.linear_\d)"
    lora = peft.LoraConfig(target_modules=targets, r=2, init_lora_weights=False)
    adapted = peft.get_peft_model(model, lora).eval()
    adapted.add_adapter("other", lora)
    own = with_cache(model, inputs, pixels, index)
    first = adapted(**own).logits
    torch.testing.assert_close(first, adapted(**inputs).logits, rtol=0, atol=1e-5)
    adapted.set_adapter("other")
    torch.testing.assert_close(adapted(**own).logits, adapted(**inputs).logits, rtol=0, atol=1e-5)
    with adapted.disable_adapter():
        assert not torch.allclose(adapted(**inputs).logits, first, atol=1e-3)
        torch.testing.assert_close(adapted(**own).logits, adapted(**inputs).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_adapters_may_have_a_precision_of_their_own(family):
    peft = pytest.importorskip("peft")
    model = family_model(family).to(torch.bfloat16)
    inputs, pixels, index = questions_for_logits(model)
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    targets = r".*(qformer.*\.(key|value)|language_projection|multi_modal_projector\.linear_\d)"
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, r=2, init_lora_weights=False)).eval()
    assert torch.float32 in {parameter.dtype for parameter in adapted.parameters()}
    own = with_cache(model, inputs, pixels.bfloat16(), index)
    torch.testing.assert_close(adapted(**own).logits, adapted(**inputs).logits, rtol=0, atol=0.5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_rows_of_text_alone_beside_images_that_nobody_asks_about(family, attention):
    model = family_model(family)
    model.set_attn_implementation(attention)
    _, pixels, _ = questions(model)
    inputs = batch(images_per_row=(0, 0))
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    if model.config.is_encoder_decoder:
        text["labels"] = labels_for("t5", inputs)
    expected = model(**text).logits
    instructions = {}
    if family.startswith("instructblip"):
        instructions = {f"qformer_{name}": text[name][:0] for name in ("input_ids", "attention_mask")}
    none = torch.zeros(0, dtype=torch.long)
    for images in ({"image_cache": model.encode_images(pixels)}, {"pixel_values": pixels}):
        other = model(**text, **instructions, **images, image_index=none).logits
        torch.testing.assert_close(other, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_adapters_of_the_tower_that_are_switched_are_refused():
    peft = pytest.importorskip("peft")
    model = our_model()
    inputs, pixels, index = questions(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=r"vision_model.*\.qkv", r=2)).eval()
    own = with_cache(model, inputs, pixels, index)
    adapted(**own)
    with adapted.disable_adapter(), pytest.raises(ValueError, match="as it was before its weights changed"):
        adapted(**own)


def test_dropout_in_training_is_drawn_anew():
    model = our_blip_2()
    inputs, pixels, index = questions(model)
    own = with_cache(model, inputs, pixels, index)
    assert own["image_cache"].features is not None
    model.train()
    model.image_tower.requires_grad_(False)
    with torch.no_grad():
        first, second = (model.get_image_features(image_cache=own["image_cache"]).pooler_output for _ in range(2))
        assert not torch.equal(first, second)
        assert model.encode_images(pixels).features is None


# --- the object ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["instructblip", "blip-2"])
@torch.no_grad()
def test_rows_bytes_and_joining(family):
    model = family_model(family)
    inputs, pixels, _ = questions(model)
    cache = model.encode_images(pixels)
    assert len(cache) == 3
    tokens, queries, width = 5, 4, 32
    kept = 2 * tokens * width if family == "instructblip" else queries * 32
    layers = 1  # of two, every second has cross-attention
    assert cache.nbytes == 4 * 3 * (tokens * width + layers * kept)
    text = {name: value[:3] for name, value in inputs.items() if name.startswith("qformer")}
    expected = model.get_image_features(pixel_values=pixels[[1, 2, 1]], **text).pooler_output
    joined = ImageCache.cat([cache.select([1]), cache.select(slice(2, 3)), cache.select(torch.tensor([1]))])
    for rows in (joined, cache.select([1, 2, 1])):
        own = model.get_image_features(image_cache=rows, **text).pooler_output
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-6)
    with pytest.raises(IndexError):
        cache.select([3])


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_another_precision(family):
    model = family_model(family)
    inputs, pixels, index = questions_for_logits(model)
    own = with_cache(model, inputs, pixels, index)
    model.to(torch.bfloat16)
    part = "Q-Former" if getattr(model, "reads_instruction", False) else "connector"
    with pytest.raises(ValueError, match=rf"is in torch.float32, the {part} in torch.bfloat16: image_cache.to"):
        model(**own)
    moved = {**own, "image_cache": own["image_cache"].to("cpu", torch.bfloat16)}
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    torch.testing.assert_close(model(**moved).logits, model(**inputs).logits, rtol=0, atol=0.5)
    assert moved["image_cache"].nbytes * 2 == own["image_cache"].nbytes


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_autocast(family):
    """What it made belongs under it; under it a cache of the weights' precision may be read, too."""
    model = family_model(family)
    inputs, pixels, index = questions_for_logits(model)
    plain = with_cache(model, inputs, pixels, index)
    with torch.autocast("cpu", torch.bfloat16):
        own = with_cache(model, inputs, pixels, index)
        expected = model(**inputs).logits
        torch.testing.assert_close(model(**own).logits, expected, rtol=0, atol=0.5)
        torch.testing.assert_close(model(**plain).logits, expected, rtol=0, atol=0.5)
    with pytest.raises(ValueError, match=r"image_cache is in torch.bfloat16, the [-\w]+ in torch.float32"):
        model(**own)


def _changes():
    pixels = torch.zeros(3, 3, IMAGE_SIZE, IMAGE_SIZE)
    return [
        (lambda model, own: {"pixel_values": pixels}, "image_cache and pixel_values are both given"),
        (lambda model, own: {"image_embeds": torch.zeros(3, 5, 32)}, "image_cache and image_embeds are both given"),
        (lambda model, own: {"image_states": torch.zeros(3, 5, 32)}, "one of pixel_values, image_embeds, image_cache"),
        (lambda model, own: {"image_cache": pixels}, "must be an ImageCache, from model.encode_images.*, got Tensor"),
        (lambda model, own: {"image_cache": our_model().encode_images(pixels)}, "made by another model"),
        (lambda model, own: {"image_index": torch.tensor([0, 3, 0, 0, 0])}, "names images 0 to 3; there are 3"),
        (lambda model, own: {"image_index": torch.tensor([0, 1])}, "qformer_input_ids has 5 rows for 2 images"),
        (lambda model, own: {"image_index": None}, "qformer_input_ids has 5 rows for 3 images"),
    ]


@pytest.mark.parametrize(("change", "message"), _changes())
@torch.no_grad()
def test_what_does_not_fit_is_named(change, message):
    model = our_model()
    own = with_cache(model, *questions(model))
    with pytest.raises(ValueError, match=message):
        model(**{**own, **change(model, own)})


@torch.no_grad()
def test_caches_that_cannot_be_made_joined_or_saved():
    model, other = our_model(), our_model()
    pixels = torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    cache = model.encode_images(pixels)
    with pytest.raises(ValueError, match=r"\(1, 2, 3, 28, 28\); frames of videos are given as images"):
        model.encode_images(pixels[None])
    with pytest.raises(ValueError, match="either pixel_values or image_embeds"):
        model.encode_images()
    with pytest.raises(ValueError, match="caches is empty"):
        ImageCache.cat([])
    with pytest.raises(ValueError, match="cache 1 is of another model"):
        ImageCache.cat([cache, other.encode_images(pixels)])
    with pytest.raises(ValueError, match="cache 1 keeps other things than cache 0"):
        ImageCache.cat([cache, model.encode_images(pixels, vision_only=True)])
    with pytest.raises(TypeError, match="cannot be saved"):
        pickle.dumps(cache)
    with pytest.raises(TypeError, match="cannot be saved"):
        copy.deepcopy(cache)


@torch.no_grad()
def test_a_cache_keeps_no_model_alive():
    model = our_model()
    cache = model.encode_images(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE))
    assert cache.origin.tower() is model.vision_model
    del model
    gc.collect()
    assert cache.origin.tower() is None


# --- the last layer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_text_that_nobody_reads_is_left_out_of_the_last_layer_alone(attention):
    model = our_model().double()
    model.set_attn_implementation(attention)
    inputs, _, _ = questions(model)
    image_side = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    image_side["pixel_values"] = image_side["pixel_values"].double()
    rows = []
    for layer in model.qformer.encoder.layer:
        layer.intermediate.register_forward_hook(lambda module, *rest: rows.append(module))
    expected = model.get_image_features(**image_side)
    own = model.get_image_features(**image_side, queries_only=True)
    assert len(rows) == 2 + 1
    torch.testing.assert_close(own.pooler_output, expected.pooler_output, rtol=0, atol=1e-12)
    assert expected.qformer_outputs.last_hidden_state.shape[1] == 4 + 7
    assert own.qformer_outputs.last_hidden_state.shape[1] == 4
    del rows[:]
    model.generate(**{**inputs, "pixel_values": image_side["pixel_values"]}, max_new_tokens=1)
    assert len(rows) == 1
    states = model.get_image_features(**image_side, queries_only=True, output_hidden_states=True).qformer_outputs
    assert [len(one[0]) for one in states.hidden_states] == [11, 11, 11]


def test_text_that_trains_is_not_left_out():
    model = our_model()
    inputs, _, _ = questions(model)
    image_side = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    model.get_image_features(**image_side, queries_only=True).pooler_output.sum().backward()
    assert all(parameter.grad is not None for parameter in model.qformer.encoder.layer[-1].parameters())
    for part in (model.qformer.encoder.layer[-1].intermediate, model.qformer.encoder.layer[-1].output):
        part.requires_grad_(False)
    outputs = model.get_image_features(**image_side, queries_only=True).qformer_outputs
    assert outputs.last_hidden_state.shape[1] == 4


# --- accelerators -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("index", [None, [0, 0, 1], [0, 0, 0]])
def test_the_qformer_never_waits_for_an_accelerator(attention, index):
    """On the meta device, which like an accelerator is not the CPU and has no values: reading one raises an error."""
    qformer = our_model().to("meta").qformer
    qformer.set_attn_implementation(attention)
    text = torch.zeros(3, 6, dtype=torch.long, device="meta")
    mask = torch.ones(3, 10, device="meta", dtype=torch.long)
    images = 3 if index is None else max(index) + 1
    states = torch.zeros(images, 5, 32, device="meta")
    options = {"encoder_index": torch.tensor(index, device="meta")} if index else {}
    queries = torch.zeros(3, 4, 32, device="meta")
    for kept in (
        {"encoder_hidden_states": states},
        {"encoder_hidden_states": states, "encoder_attention_mask": torch.ones(images, 5, device="meta")},
        {"encoder_keys_and_values": qformer.keys_and_values(states)},
    ):
        outputs = qformer(text, mask, query_embeds=queries, **kept, **options)
        assert outputs.last_hidden_state.shape == (3, 10, 32)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        bool(mask.all())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_masks_made_without_looking_are_those_made_with(attention):
    from instructblip_hf.models.connectors import qformer_model

    model = our_model().double()
    model.set_attn_implementation(attention)
    states = torch.randn(2, 6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    config, attend = model.qformer.config, model.qformer.encoder.layer[0].attention
    unlooked = qformer_model.mask_without_looking(config, states, mask)
    looked = qformer_model.bidirectional_mask(config, states, mask)
    for expected, own in zip(attend(states, attention_mask=looked), attend(states, attention_mask=unlooked)):
        if expected is not None:
            torch.testing.assert_close(own, expected, rtol=0, atol=1e-12)


def test_image_index_on_an_accelerator_is_told_by_the_device():
    from instructblip_hf.models.connectors.shared_images import check_image_index

    index = torch.tensor([0, 5], device="meta")
    assert check_image_index(index, 2).device.type == "meta"  # without reading the values
    with pytest.raises(RuntimeError):
        torch._assert_async(((torch.tensor([0, 5]) >= 0) & (torch.tensor([0, 5]) < 2)).all())


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
@torch.no_grad()
def test_one_image_for_all_rows_is_not_copied(kind):
    model = our_model(kind)
    inputs, pixels, _ = questions(model)
    index = torch.zeros(5, dtype=torch.long)
    inputs["pixel_values"] = pixels[:1].expand(5, -1, -1, -1)
    own = with_cache(model, inputs, pixels[:1], index)
    decoder = {"decoder_input_ids": torch.tensor([[0, 3, 4]] * 4)} if kind == "t5" else {}
    torch.testing.assert_close(model(**own, **decoder).logits, model(**inputs, **decoder).logits, rtol=0, atol=1e-5)
