"""attn_implementation="triton": the kernels in the Q-Former, ours and stock's, SDPA elsewhere, never another answer."""

import importlib
import logging

import pytest
import torch

from instructblip_hf.kernels import ImageIndex, dispatch
from instructblip_hf.models.attention import kernel_choice
from instructblip_hf.models.connectors import packed_text
from instructblip_hf.models.connectors.shared_images import SharedImages
from kernel_inputs import DEVICE
from tiny_models import batch, labels_for, our_blip_2, our_model, our_retrieval_model, stock_model


BATCH = {"text_lengths": (3, 11), "instruction_lengths": (9, 1)}


def on_device(inputs):
    return {name: tensor.to(DEVICE) for name, tensor in inputs.items()}


@pytest.fixture
def launches(monkeypatch):
    """Shapes of the queries that went to the kernel; the log starts anew."""
    dispatch.log_once.cache_clear()
    module = importlib.import_module("instructblip_hf.kernels.cross_attention")
    seen, launch = [], module.attention_forward

    def counted(query, *others):
        seen.append(tuple(query.shape))
        return launch(query, *others)

    monkeypatch.setattr(module, "attention_forward", counted)
    return seen


def results(model, implementation, inputs):
    """Logits, loss and gradients under an implementation."""
    model.set_attn_implementation(implementation)
    model.zero_grad()
    outputs = model(**inputs)
    outputs.loss.backward()
    return [
        outputs.logits.detach(),
        outputs.loss.detach(),
        *(p.grad for p in model.parameters() if p.grad is not None),
    ]


@pytest.mark.skipif(dispatch._TRITON_IS_MISSING, reason="the kernels are written in Triton")
@pytest.mark.parametrize("build", [our_model, stock_model, our_blip_2], ids=["ours", "stock", "BLIP-2"])
def test_the_qformer_alone_gives_eagers_numbers_and_gradients(build, launches):
    kind = "opt" if build is our_blip_2 else "llama"
    model = build(kind).to(DEVICE)
    inputs = batch(**BATCH)
    if kind == "opt":
        inputs = {name: tensor for name, tensor in inputs.items() if not name.startswith("qformer")}
    inputs["labels"] = labels_for(kind, inputs)
    inputs = on_device(inputs)
    expected = results(model, "eager", inputs)
    assert not launches
    actual = results(model, {"qformer_config": "triton"}, inputs)
    text = 0 if kind == "opt" else 9
    assert launches == [(2, 4 + text, 4, 8), (2, 4, 4, 8), (2, 4 + text, 4, 8)]  # self, cross, self
    for got, wanted in zip(actual, expected):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5 * max(1.0, float(wanted.abs().max())))


@pytest.mark.skipif(dispatch._TRITON_IS_MISSING, reason="the kernels are written in Triton")
def test_packed_text_and_shared_images_reach_the_kernels(launches, monkeypatch):
    """As on a GPU: texts packed, and images read through their index, not folded beforehand."""
    packed = importlib.import_module("instructblip_hf.kernels.packed_attention")
    cross = importlib.import_module("instructblip_hf.kernels.cross_attention")
    monkeypatch.setattr(packed, "attention_forward", cross.attention_forward)
    monkeypatch.setattr(packed_text, "least_padding", lambda hidden_size: 0.0)
    monkeypatch.setattr(
        SharedImages,
        "to",
        lambda shared, device, with_kernels=False: SharedImages(
            shared.index.to(device),
            shared.images,
            kernel_index=ImageIndex.of(shared.index.to(device), shared.images),
        ),
    )
    index = torch.tensor([0, 1, 0])
    inputs = batch(images_per_row=(1, 1, 1), text_lengths=(3, 11, 5), instruction_lengths=(7, 1, 4))
    inputs["labels"] = labels_for("llama", inputs)
    two_images = inputs["pixel_values"][:2]
    model = our_model("llama").to(DEVICE)
    expected = results(model, "eager", on_device({**inputs, "pixel_values": two_images[index]}))
    assert not launches
    shared = {**inputs, "pixel_values": two_images, "image_index": index}
    actual = results(model, {"qformer_config": "triton"}, on_device(shared))
    tokens = 3 * 4 + 7 + 1 + 4
    assert launches == [(tokens, 4, 8), (3, 4, 4, 8), (tokens, 4, 8)]
    for got, wanted in zip(actual, expected):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5 * max(1.0, float(wanted.abs().max())))


@pytest.mark.skipif(dispatch._TRITON_IS_MISSING, reason="the kernels are written in Triton")
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_the_name_for_a_whole_model_leaves_the_other_parts_with_sdpa(kind, launches, caplog):
    model = our_model(kind).to(DEVICE)
    inputs = on_device(batch(**BATCH))
    model.set_attn_implementation("sdpa")
    expected = model.generate(
        **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    with caplog.at_level(logging.WARNING, logger="instructblip_hf"):
        model.set_attn_implementation("triton")
        actual = model.generate(
            **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    assert len(launches) == 3
    assert torch.equal(actual.sequences, expected.sequences)
    for got, wanted in zip(actual.logits, expected.logits):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    messages = [record.message for record in caplog.records]
    assert messages.count("instructblip_vision_model uses SDPA, not attn_implementation='triton': the kernels are for the Q-Former") == 1  # fmt: skip
    assert len(messages) == len(set(messages))


@pytest.mark.skipif(dispatch._TRITON_IS_MISSING, reason="the kernels are written in Triton")
def test_a_norm_with_hooks_is_called_as_a_module(monkeypatch):
    """Weights that are sharded or offloaded are there only while their module is called."""
    module = importlib.import_module("instructblip_hf.kernels.residual_norm")
    fused, called, launch = [], [], module.residual_norm_forward

    def counted(*arguments):
        fused.append(arguments[0].shape)
        return launch(*arguments)

    monkeypatch.setattr(module, "residual_norm_forward", counted)
    model = our_model("llama").to(DEVICE)
    inputs = on_device(batch(**BATCH))
    model.set_attn_implementation({"qformer_config": "triton"})
    with torch.no_grad():
        expected = model(**inputs).logits
        before = len(fused)
        model.qformer.encoder.layer[0].attention.output.LayerNorm.register_forward_pre_hook(
            lambda norm, arguments: called.append(norm)
        )
        logits = model(**inputs).logits
    assert before > 0
    assert len(fused) == 2 * before - 1
    assert len(called) == 1
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_on_the_cpu_torch_answers_and_the_reason_is_logged_once(launches, caplog, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    model = our_model("llama")
    inputs = batch(**BATCH)
    inputs["labels"] = labels_for("llama", inputs)
    expected = results(model, "eager", inputs)
    with caplog.at_level(logging.WARNING, logger="instructblip_hf"):
        actual = results(model, {"qformer_config": "triton"}, inputs)
    assert not launches
    for got, wanted in zip(actual, expected):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5 * max(1.0, float(wanted.abs().max())))
    messages = {record.message.partition(": ")[0] for record in caplog.records}
    operations = ("cross_attention", "dropout_add_layer_norm")
    assert messages == {f"{operation} runs in plain torch, not in Triton" for operation in operations}
    assert len(caplog.records) == 2


def test_masks_with_a_row_for_every_query_are_sdpas(launches, caplog):
    """The matching head reads image and text together through a mask of four dimensions."""
    model = our_retrieval_model()
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "pixel_values": torch.randn(2, 3, 28, 28, generator=generator),
        "input_ids": torch.randint(3, 50, (2, 5), generator=generator),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]),
    }
    outcomes = {}
    for implementation in ("sdpa", "triton"):
        model.set_attn_implementation({"qformer_config": implementation})
        outcomes[implementation] = model(**inputs, use_image_text_matching_head=True).logits_per_image
    torch.testing.assert_close(outcomes["triton"], outcomes["sdpa"], rtol=1e-4, atol=1e-5)


def test_attention_probabilities_are_refused():
    model = our_model("llama")
    model.set_attn_implementation("eager")
    model.set_attn_implementation({"qformer_config": "triton"})
    with pytest.raises(ValueError, match="needs attn_implementation='eager' for instructblip_qformer, got 'triton'"):
        model(**batch(), output_attentions=True)


@pytest.mark.parametrize(("name", "choice"), [("triton", "triton"), ("sdpa", None), ("eager", "torch")])
def test_what_the_packed_forms_are_told(name, choice):
    model = our_model("llama")
    model.set_attn_implementation(name)
    assert kernel_choice(model.qformer.config) == choice
