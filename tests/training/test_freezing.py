"""Freezing: which parameters train, which modules stay in evaluation mode, and LoRA."""

import pytest
import torch
import transformers

from instructblip_hf import InstructBlipConfig, InstructBlipForConditionalGeneration
from instructblip_hf.data.procedural import ShapesWorldDataset
from instructblip_hf.data.sources.shapes_world import ShapesWorld
from instructblip_hf.training import FreezingPolicy, apply_freezing
from instructblip_hf.training.lora import has_lora, merged_state_dict
from tiny_shapes import tiny_model, tiny_processor


def tiny_batch(kind):
    rows = [ShapesWorldDataset(ShapesWorld(0), 2)[index] for index in range(2)]
    return tiny_processor().encode_examples(rows, is_encoder_decoder=kind == "seq2seq")


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_instructblip_preset_trains_connector_and_last_layer_norm():
    model = tiny_model()
    report = apply_freezing(model, "instructblip")
    expected = {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("qformer.", "language_projection.", "vision_model.post_layernorm."))
        or name == "query_tokens"
    }
    assert trained(model) == expected
    assert report.trainable == sum(p.numel() for n, p in model.named_parameters() if n in expected)
    assert report.total == sum(p.numel() for p in model.parameters())


def test_strict_preset_leaves_the_tower_alone_and_all_trains_everything():
    model = tiny_model()
    apply_freezing(model, "instructblip-strict")
    assert not any(name.startswith("vision_model") for name in trained(model))
    assert "query_tokens" in trained(model)
    apply_freezing(model, "all")
    assert trained(model) == {name for name, _ in model.named_parameters()}


def test_the_most_specific_name_decides():
    model = tiny_model()
    apply_freezing(model, {"vision_model": "train", "vision_model.encoder": "frozen"})
    names = trained(model)
    assert "vision_model.post_layernorm.weight" in names
    assert not any(name.startswith(("vision_model.encoder", "qformer", "language_model")) for name in names)


def test_a_component_given_by_name_replaces_what_the_preset_says_inside_of_it():
    model = tiny_model()
    apply_freezing(model, FreezingPolicy(components={"vision_model": "frozen"}))
    assert not any(name.startswith("vision_model") for name in trained(model))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("instructblip2", "there are: instructblip, instructblip-strict, finetuning"),
        ({"qformer": "freeze"}, "'freeze'; allowed are: frozen, train, lora"),
        ({"q_former": "train"}, "no component 'q_former'; did you mean 'qformer'"),
        ({"zebra": "train"}, "query_tokens, vision_model, qformer, language_projection, language_model"),
        ({"qformer": "frozen"}, "nothing to train"),
        (
            "llava-stage1",
            "another kind of model: this one has no vision_tower, multi_modal_projector.*"
            "presets for it: instructblip, instructblip-strict, finetuning, blip2-stage2, blip2-finetuning, all",
        ),
    ],
)
def test_bad_policies_name_what_exists(policy, message):
    with pytest.raises(ValueError, match=message):
        apply_freezing(tiny_model(), policy)


def test_policy_of_another_type():
    with pytest.raises(TypeError, match="not list"):
        apply_freezing(tiny_model(), ["qformer"])


def test_table_lists_components_words_and_sums():
    table = str(apply_freezing(tiny_model(), "instructblip"))
    lines = table.splitlines()
    assert [line.split()[:2] for line in lines[1:-1]] == [
        ["query_tokens", "train"],
        ["vision_model", "frozen"],
        ["vision_model.post_layernorm", "train"],
        ["qformer", "train"],
        ["language_projection", "train"],
        ["language_model", "frozen"],
    ]
    assert lines[-1].startswith("total")


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_frozen_modules_are_held_in_eval_mode(kind):
    model = tiny_model(kind, dropout=0.5)
    report = apply_freezing(model, "instructblip")
    model.train()
    report.hold_frozen_modules_in_eval()
    modes = {name: module.training for name, module in model.named_modules()}
    assert modes[""]
    assert modes["qformer"]
    assert modes["vision_model.post_layernorm"]
    assert not any(on for name, on in modes.items() if name.startswith(("language_model", "vision_model.encoder")))
    assert all(on for name, on in modes.items() if name.startswith("qformer"))


def test_gradient_checkpointing_of_a_frozen_language_model_keeps_dropout_off():
    """OPT layers apply dropout by their own flag, the one that checkpointing needs to be on."""
    model = tiny_model("opt", dropout=0.5)
    report = apply_freezing(model, {"language_projection": "train"})
    inputs = {
        "inputs_embeds": torch.randn(2, 5, model.config.text_config.hidden_size, requires_grad=True),
        "attention_mask": torch.ones(2, 5, dtype=torch.long),
    }
    model.eval()
    expected = model.language_model(**inputs).logits
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), inputs["inputs_embeds"])

    model.gradient_checkpointing_enable()
    model.train()
    report.hold_frozen_modules_in_eval()
    calls = []
    layer = model.language_model.model.decoder.layers[0]
    layer.self_attn.register_forward_hook(lambda *_: calls.append(layer.training))
    logits = model.language_model(**inputs).logits
    (gradient,) = torch.autograd.grad(logits.square().sum(), inputs["inputs_embeds"])
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    assert calls == [False, False], "the layer runs in eval mode, and again when the backward pass recomputes it"
    # Once more: the layers are prepared once, not once a step.
    report.hold_frozen_modules_in_eval()
    torch.testing.assert_close(model.language_model(**inputs).logits, expected)


@pytest.mark.parametrize("kind", ["seq2seq", "opt"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_of_a_frozen_language_model_can_stay_on(kind, checkpointing):
    """As LAVIS trains: all in training mode but the vision tower, with a frozen T5."""
    batch = tiny_batch(kind)
    # A tower and a Q-Former of other dropout than the language model's, so that modes cannot be mistaken.
    model = tiny_model(kind, dropout=0.5)
    report = apply_freezing(model, FreezingPolicy("instructblip-strict", frozen_dropout=["language_model"]))
    assert "frozen, dropout on" in str(report)
    reference = tiny_model(kind, dropout=0.5)
    if checkpointing:
        model.gradient_checkpointing_enable()
    for tested in (model, reference):
        tested.train()
    report.hold_frozen_modules_in_eval()
    reference.vision_model.eval()
    losses, gradients = [], []
    for tested in (model, reference):
        torch.manual_seed(5)
        loss = tested(**batch).loss
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, [tested.query_tokens, tested.language_projection.weight]))
    assert torch.equal(*losses)
    torch.testing.assert_close(*gradients)
    torch.manual_seed(6)
    assert model(**batch).loss != losses[0]


@pytest.mark.parametrize("kind", ["causal", "opt", "seq2seq"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_by_default_no_dropout_of_frozen_parts_is_on(kind, checkpointing):
    batch = tiny_batch(kind)
    model = tiny_model(kind, dropout=0.5)
    expected = model.eval()(**batch).loss
    (expected_gradient,) = torch.autograd.grad(expected, model.language_projection.weight)
    if checkpointing:
        model.gradient_checkpointing_enable()
    report = apply_freezing(model, {"language_projection": "train"})
    model.train()
    report.hold_frozen_modules_in_eval()
    loss = model(**batch).loss
    (gradient,) = torch.autograd.grad(loss, model.language_projection.weight)
    assert torch.equal(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_dropout_of_what_is_not_frozen_is_not_to_be_named():
    with pytest.raises(ValueError, match="names 'qformer', which is marked 'train'"):
        apply_freezing(tiny_model(), FreezingPolicy(frozen_dropout=["qformer"]))
    with pytest.raises(ValueError, match="no component 'languagemodel'; did you mean 'language_model'"):
        apply_freezing(tiny_model(), FreezingPolicy(frozen_dropout=["languagemodel"]))


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_lora_trains_only_the_update_and_merges_exactly(kind):
    model = tiny_model(kind)
    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    policy = FreezingPolicy(
        preset="instructblip", components={"language_model": "lora"}, lora_rank=4, lora_dropout=0.0
    )
    report = apply_freezing(model, policy)
    assert has_lora(model)
    inside = {name for name in trained(model) if name.startswith("language_model.")}
    assert inside
    assert all("lora_" in name for name in inside)
    assert any(name.startswith("qformer.") for name in trained(model))
    row = next(row for row in report.rows if row.name == "language_model")
    assert 0 < row.trainable < row.total

    merged = merged_state_dict(model)
    assert merged.keys() == original.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, original[name], msg=f"{name}: a new update is zero")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    embeds = torch.randn(2, 5, model.config.text_config.hidden_size)
    decoder = {"decoder_input_ids": torch.tensor([[0, 1], [0, 2]])} if kind == "seq2seq" else {}
    model.eval()
    expected = model.language_model(inputs_embeds=embeds, **decoder).logits
    plain = tiny_model(kind).eval()
    before = plain.language_model(inputs_embeds=embeds, **decoder).logits
    plain.load_state_dict(merged_state_dict(model))
    torch.testing.assert_close(plain.language_model(inputs_embeds=embeds, **decoder).logits, expected)
    assert not torch.allclose(before, expected)


def test_lora_target_modules_are_respected_and_checked():
    model = tiny_model()
    policy = FreezingPolicy(preset=None, components={"language_model": "lora"}, lora_target_modules=["q_proj"])
    apply_freezing(model, policy)
    assert all(".q_proj.lora_" in name for name in trained(model))
    policy = FreezingPolicy(preset=None, components={"language_model": "lora"}, lora_target_modules=["nonsense"])
    with pytest.raises(ValueError, match="no linear layer named nonsense"):
        apply_freezing(tiny_model(), policy)


def test_lora_without_peft_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ImportError, match=r"instructblip-hf\[train\]"):
        apply_freezing(tiny_model(), {"language_model": "lora"})


@pytest.mark.parametrize(
    ("field", "value"), [("lora_rank", 0), ("lora_alpha", 0), ("lora_dropout", 1.0), ("lora_dropout", -0.1)]
)
def test_lora_settings_out_of_range(field, value):
    with pytest.raises(ValueError, match=field):
        FreezingPolicy(**{field: value})


@pytest.mark.parametrize(
    ("text_config", "millions"),
    [
        pytest.param(
            transformers.T5Config(
                vocab_size=32128,
                d_model=2048,
                d_ff=5120,
                num_layers=24,
                num_heads=32,
                feed_forward_proj="gated-gelu",
                tie_word_embeddings=False,
            ),
            187.3,
            id="FlanT5-XL",
        ),
        pytest.param(transformers.LlamaConfig(vocab_size=32001), 188.8, id="Vicuna-7B"),
        pytest.param(
            transformers.LlamaConfig(
                vocab_size=32001,
                hidden_size=5120,
                intermediate_size=13824,
                num_hidden_layers=40,
                num_attention_heads=40,
            ),
            189.6,
            id="Vicuna-13B",
        ),
    ],
)
def test_the_preset_trains_what_the_paper_counts(text_config, millions):
    """At true size, on the meta device: the paper's 188M trainable parameters, by language model."""
    config = InstructBlipConfig(qformer_config={"vocab_size": 30523}, text_config=text_config)
    with torch.device("meta"):
        model = InstructBlipForConditionalGeneration(config)
    assert round(apply_freezing(model, "instructblip").trainable / 1e6, 1) == millions
