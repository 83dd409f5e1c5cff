"""Texts of different lengths without padding: equal to padded rows and to stock transformers, forward and backward."""

import functools

import pytest
import torch

from instructblip_hf.kernels import reference
from instructblip_hf.models.connectors import packed_text
from instructblip_hf.models.connectors.packed_text import PackedText
from tiny_models import batch, labels_for, our_model, our_retrieval_model, stock_model


LENGTHS = (9, 2, 5, 1)


@pytest.fixture(autouse=True)
def always_packed(monkeypatch):
    """Also at a width at which it does not pay."""
    monkeypatch.setattr(packed_text, "least_padding", lambda hidden_size: 0.0)


@pytest.fixture
def padded(monkeypatch):
    """A call that never packs, beside which the same call as it is."""

    def run(call):
        with monkeypatch.context() as patch:
            patch.setattr(packed_text, "least_padding", lambda hidden_size: 1.0)
            return call()

    return run


def packed_rows(qformer):
    """A list that gets the number of tokens that go through each feed-forward layer of text."""
    rows = []
    for layer in qformer.encoder.layer:
        layer.intermediate.register_forward_hook(lambda module, args, output: rows.append(output.shape[:-1].numel()))
    return rows


def inputs_of(images_per_row=(1, 1, 1, 1)):
    return batch(images_per_row, (5, 4, 6, 3), LENGTHS, "right")


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("images_per_row", [(1, 1, 1, 1), (2, 1, 0, 1)])
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_outputs_and_gradients_equal_those_of_padded_rows(kind, images_per_row, padded):
    def run():
        model = our_model(kind).double()
        inputs = inputs_of(images_per_row)
        inputs["pixel_values"] = inputs["pixel_values"].double().requires_grad_()
        rows = packed_rows(model.qformer)
        outputs = model(**inputs, labels=labels_for(kind, inputs))
        outputs.loss.backward()
        return outputs, gradients(model), inputs, rows

    expected, expected_gradients, expected_inputs, padded_rows = padded(run)
    outputs, own_gradients, inputs, rows = run()
    counts = inputs["qformer_attention_mask"].bool()
    assert padded_rows == [counts.numel()] * 2
    assert rows == [int(counts.sum())] * 2
    torch.testing.assert_close(outputs.logits, expected.logits, rtol=0, atol=1e-12)
    assert own_gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(own_gradients[name], gradient, rtol=0, atol=1e-11, msg=name)
    pixels = expected_inputs["pixel_values"].grad
    torch.testing.assert_close(inputs["pixel_values"].grad, pixels, rtol=0, atol=1e-12)
    states, theirs = (one.qformer_outputs.last_hidden_state for one in (outputs, expected))
    torch.testing.assert_close(states[:, :4], theirs[:, :4], rtol=0, atol=1e-12)
    torch.testing.assert_close(states[:, 4:][counts], theirs[:, 4:][counts], rtol=0, atol=1e-12)
    assert not states[:, 4:][~counts].any()


@torch.no_grad()
def test_stock_transformers_float32():
    model, stock = our_model(), stock_model()
    inputs = inputs_of()
    rows = packed_rows(model.qformer)
    outputs, expected = model(**inputs), stock(**inputs)
    assert rows == [sum(LENGTHS)] * 2
    torch.testing.assert_close(outputs.logits, expected.logits, rtol=0, atol=1e-5)
    tokens = stock.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert torch.equal(model.generate(**inputs, max_new_tokens=5, do_sample=False), tokens)
    assert rows[2:] == [sum(LENGTHS)]  # the last layer leaves the text out


@pytest.mark.parametrize("side", ["left", "scattered", "a row without text"])
@torch.no_grad()
def test_masks_of_any_form(side, padded):
    qformer = our_model().double().qformer
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 60, (4, 9), generator=generator)
    mask = torch.zeros(4, 9, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        mask[row, 9 - length :] = 1
    if side == "scattered":
        mask = mask[:, torch.randperm(9, generator=generator)]
    if side == "a row without text":
        mask[1] = 0
    options = {
        "input_ids": ids,
        "attention_mask": torch.cat([torch.ones(4, 4, dtype=torch.long), mask], dim=1),
        "query_embeds": torch.randn(4, 4, 32, dtype=torch.float64, generator=generator),
        "encoder_hidden_states": torch.randn(2, 5, 32, dtype=torch.float64, generator=generator),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
        "encoder_index": torch.tensor([1, 0, 0, 1]),
    }
    expected = padded(lambda: qformer(**options).last_hidden_state)
    rows = packed_rows(qformer)
    own = qformer(**options).last_hidden_state
    assert rows == [int(mask.sum())] * 2
    torch.testing.assert_close(own[:, :4], expected[:, :4], rtol=0, atol=1e-12)
    torch.testing.assert_close(own[:, 4:][mask.bool()], expected[:, 4:][mask.bool()], rtol=0, atol=1e-12)


@torch.no_grad()
def test_text_without_queries(padded):
    model = our_retrieval_model().double()
    ids = torch.randint(3, 50, (4, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1] * length + [0] * (9 - length) for length in LENGTHS])
    expected = padded(lambda: model.get_text_features(ids, mask).text_embeds)
    rows = packed_rows(model.qformer)
    torch.testing.assert_close(model.get_text_features(ids, mask).text_embeds, expected, rtol=0, atol=1e-12)
    assert rows == [sum(LENGTHS)] * 2


def test_recomputed_activations(padded):
    def run(checkpointing):
        model = our_model().train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.qformer.config.attention_probs_dropout_prob = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        inputs = inputs_of()
        model(**inputs, labels=labels_for("llama", inputs)).loss.backward()
        return gradients(model)

    expected = padded(lambda: run(False))
    for name, gradient in run(True).items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-5, msg=name)


def test_dropout_is_drawn_by_torchs_seed():
    model = our_model().train()
    inputs = inputs_of()
    features = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        image_side = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        features.append(model.get_image_features(**image_side).pooler_output)
    assert torch.equal(features[0], features[1])
    assert not torch.equal(features[0], features[2])


def mask_of(*lengths, queries=4):
    longest = max(lengths)
    return torch.tensor([[1] * (queries + length) + [0] * (longest - length) for length in lengths])


def test_which_batches_are_packed(monkeypatch):
    states = torch.arange(4 * 13.0).view(4, 13, 1)
    packed = PackedText.of(mask_of(9, 2, 5, 1), 4, states)
    assert (packed.rows, packed.num_queries, packed.text, packed.max_text) == (4, 4, 9, 9)
    assert packed.offsets.tolist() == [0, 9, 11, 16, 17]
    assert torch.equal(packed.unpack(packed.pack(states)), states * mask_of(9, 2, 5, 1)[..., None])
    without_query = mask_of(9, 2, 5, 1)
    without_query[0, 0] = 0
    for mask in (mask_of(6, 6, 6), without_query, mask_of(9, 1)[:, None, None], mask_of(9, 1).to("meta")):
        assert PackedText.of(mask, 4, states) is None
    monkeypatch.undo()
    # By the share of padding, 0.0375 at this width: 2 of 56 tokens are less, 4 are more.
    wide = torch.zeros(2, 28, 2000)
    assert PackedText.of(mask_of(24, 22), 4, wide) is None
    assert PackedText.of(mask_of(24, 20), 4, wide) is not None
    assert PackedText.of(mask_of(24, 20), 4, torch.zeros(2, 28, 200)) is None


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_states_of_all_layers_and_eager_attention_are_padded(attention):
    model = our_model()
    model.set_attn_implementation(attention)
    inputs = inputs_of()
    image_side = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    rows = packed_rows(model.qformer)
    model.get_image_features(**image_side, output_hidden_states=True)
    assert rows == [4 * 9] * 2
    model.get_image_features(**image_side)
    assert rows[2:] == ([4 * 9] * 2 if attention == "eager" else [sum(LENGTHS)] * 2)


def test_a_mask_on_the_cpu_serves_states_elsewhere():
    """As with an accelerator: the lengths are known without waiting for it."""
    states = torch.zeros(4, 13, 32, device="meta")
    assert PackedText.of(mask_of(9, 2, 5, 1), 4, states).pack(states).shape == (4 * 4 + 17, 32)


@torch.no_grad()
def test_the_implementation_triton(padded):
    model = our_model().double()
    inputs = inputs_of()
    inputs["pixel_values"] = inputs["pixel_values"].double()
    image_side = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    expected = padded(lambda: model.get_image_features(**image_side).pooler_output)
    model.qformer.set_attn_implementation("triton")
    for queries_only in (False, True):
        for run in (padded, lambda call: call()):
            own = run(functools.partial(model.get_image_features, **image_side, queries_only=queries_only))
            torch.testing.assert_close(own.pooler_output, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lengths", [(9, 2, 5, 1), (0, 3), (4,)])
@pytest.mark.parametrize("queries", [4, 0])
def test_row_by_row_is_by_padding(lengths, queries):
    generator = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    tokens = len(lengths) * queries + sum(lengths)
    shape = (3, tokens, 2, 8)
    values = torch.randn(shape, dtype=torch.float64, generator=generator)
    weights = torch.randn(shape[1:], dtype=torch.float64, generator=generator)
    results = []
    for attend, most in ((reference._attend_row_by_row, ()), (reference._attend_by_padding, (max(lengths),))):
        states = values.clone().requires_grad_()
        seed = (None,) if most else ()
        output = attend(*states, len(lengths), queries, offsets, *most, 0.3, 0.0, *seed)
        (output * weights).sum().backward()
        results.append((output, states.grad))
    for own, expected in zip(*results, strict=True):
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-12)
