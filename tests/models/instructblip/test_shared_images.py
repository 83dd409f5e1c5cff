"""Several questions on one image: equal to the repeated form in outputs and gradients, and each image encoded once."""

import pytest
import torch

from instructblip_hf.kernels import ImageIndex
from instructblip_hf.models.connectors.shared_images import SharedImages
from tiny_models import IMAGE_SIZE, LANGUAGE_MODELS, batch, labels_for, our_model


# By rows: every image as often, some more often, one far more often than the rest, none twice, an unread one.
INDICES = {
    "regular": [0, 0, 1, 1, 2, 2],
    "mixed order": [2, 0, 1, 0, 2, 1],
    "ragged": [0, 1, 1, 1, 2, 2],
    "one for most": [3, 3, 3, 0, 3, 1, 3, 3, 2],
    "each once": [1, 0, 2],
    "one unread": [0, 0, 2],
}


def shared_batch(index, padding_side="right"):
    """Inputs with an image each, and those with the distinct images and their index."""
    lengths = [3 + 2 * (row % 4) for row in range(len(index))]
    inputs = batch((1,) * len(index), tuple(lengths), tuple(reversed(lengths)), padding_side)
    images = torch.randn(max(index) + 1, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))
    image_index = torch.tensor(index)
    return {**inputs, "pixel_values": images[image_index]}, {
        **inputs,
        "pixel_values": images,
        "image_index": image_index,
    }


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_outputs_and_gradients_equal_those_of_repeated_images(kind, index, attention):
    repeated, shared = shared_batch(index)
    results = []
    for inputs in (repeated, shared):
        model = our_model(kind).double()
        model.set_attn_implementation(attention)
        pixels = inputs["pixel_values"] = inputs["pixel_values"].double().requires_grad_()
        outputs = model(**inputs, labels=labels_for(kind, inputs))
        outputs.loss.backward()
        results.append((outputs, gradients(model), pixels))
    (expected, expected_gradients, many), (outputs, own_gradients, few) = results
    torch.testing.assert_close(outputs.logits, expected.logits, rtol=0, atol=1e-11)
    assert outputs.vision_outputs.last_hidden_state.shape[0] == max(index) + 1
    assert own_gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(own_gradients[name], gradient, rtol=0, atol=1e-10, msg=name)
    summed = torch.zeros_like(few).index_add_(0, torch.tensor(index), many.grad)
    torch.testing.assert_close(few.grad, summed, rtol=0, atol=1e-11)


def test_float32_within_1e_6():
    repeated, shared = shared_batch(INDICES["ragged"])
    model = our_model()
    features = [model.get_image_features(**_image_side(inputs)).pooler_output for inputs in (repeated, shared)]
    torch.testing.assert_close(features[1], features[0], rtol=0, atol=1e-6)


def _image_side(inputs):
    return {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}


@pytest.mark.parametrize(("index", "copied"), [("regular", False), ("ragged", False), ("one for most", True)])
def test_each_image_is_encoded_and_projected_once(index, copied):
    model = our_model()
    seen = []
    key = model.qformer.encoder.layer[0].crossattention.attention.key
    model.vision_model.register_forward_hook(lambda module, args, output: seen.append(len(output.last_hidden_state)))
    key.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    model(**shared_batch(INDICES[index])[1])
    images = max(INDICES[index]) + 1
    assert seen == [images, images]
    assert (SharedImages.of(torch.tensor(INDICES[index]), images).places is None) == copied


@pytest.mark.parametrize("index", ["ragged", "one for most"])
def test_attention_probabilities_stay_by_row(index):
    repeated, shared = shared_batch(INDICES[index])
    model = our_model()
    model.set_attn_implementation("eager")
    expected, own = (
        model.get_image_features(**_image_side(inputs), output_attentions=True).qformer_outputs
        for inputs in (repeated, shared)
    )
    for theirs, ours in zip(expected.cross_attentions, own.cross_attentions, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("index", ["ragged", "one for most"])
def test_image_tokens_left_out_by_a_mask(index, attention):
    rows = torch.tensor(INDICES[index])
    qformer = our_model().qformer
    qformer.set_attn_implementation(attention)
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(int(rows.max()) + 1, 5, 32, generator=generator)
    queries = torch.randn(len(rows), 4, 32, generator=generator)
    mask = torch.ones(len(images), 5, dtype=torch.long)
    mask[0, 3:] = mask[1, :2] = 0
    expected = qformer(query_embeds=queries, encoder_hidden_states=images[rows], encoder_attention_mask=mask[rows])
    own = qformer(query_embeds=queries, encoder_hidden_states=images, encoder_attention_mask=mask, encoder_index=rows)
    torch.testing.assert_close(own.last_hidden_state, expected.last_hidden_state, rtol=0, atol=2e-6)
    unmasked = qformer(query_embeds=queries, encoder_hidden_states=images, encoder_index=rows)
    assert not torch.allclose(own.last_hidden_state, unmasked.last_hidden_state, atol=1e-3)


def test_gradient_checkpointing():
    _, shared = shared_batch(INDICES["ragged"])
    results = []
    for checkpointing in (False, True):
        model = our_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model(**shared, labels=labels_for("llama", shared)).loss.backward()
        results.append(gradients(model))
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_generation(kind):
    repeated, shared = shared_batch(INDICES["mixed order"], "left")
    model = our_model(kind)
    expected, own = (model.generate(**inputs, max_new_tokens=4, num_beams=2) for inputs in (repeated, shared))
    assert torch.equal(own, expected)
    features = model.vision_model(shared.pop("pixel_values")).last_hidden_state
    assert torch.equal(model.generate(**shared, image_embeds=features, max_new_tokens=4, num_beams=2), expected)


def test_image_alone_in_a_prompt():
    repeated, shared = (_image_side(inputs) for inputs in shared_batch(INDICES["regular"]))
    model = our_model()
    assert torch.equal(model.generate(**shared, max_new_tokens=2), model.generate(**repeated, max_new_tokens=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_index": torch.tensor([0, 3])}, "names images 0 to 3; there are 3"),
        ({"image_index": torch.tensor([-1, 0])}, "names images -1 to 0"),
        ({"image_index": torch.tensor([[0, 1]])}, r"got \(1, 2\) of torch.int64"),
        ({"image_index": torch.tensor([0.0, 1.0])}, "of torch.float32"),
        ({"image_index": [0, 1]}, "got list"),
        ({"image_index": torch.tensor([0, 1, 2])}, "qformer_input_ids has 6 rows for 3 images"),
        ({"pixel_values": torch.zeros(3, 2, 3, IMAGE_SIZE, IMAGE_SIZE)}, "cannot be combined with pixel_values"),
    ],
)
def test_an_index_that_does_not_fit(change, message):
    _, shared = shared_batch(INDICES["regular"])
    with pytest.raises(ValueError, match=message):
        our_model()(**{**shared, **change})


@pytest.mark.parametrize("attention", ["sdpa", "triton"])
def test_reading_through_the_index_as_on_an_accelerator(attention, monkeypatch):
    """There nothing is counted or copied: the kernels' operation gets the index, here its form in plain torch."""
    repeated, shared = shared_batch(INDICES["ragged"])
    seen = []
    results = []
    for inputs in (repeated, shared):
        model = our_model().double()
        model.qformer.set_attn_implementation(attention)
        inputs["pixel_values"] = inputs["pixel_values"].double()
        model(**inputs, labels=labels_for("llama", inputs)).loss.backward()
        results.append(gradients(model))

        def through_the_index(shared, device, with_kernels=False):
            seen.append(with_kernels)
            index = shared.index.to(device)
            return SharedImages(index, shared.images, kernel_index=ImageIndex.of(index, shared.images))

        monkeypatch.setattr(SharedImages, "to", through_the_index)
    assert seen == [True]
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, rtol=0, atol=1e-10, msg=name)
