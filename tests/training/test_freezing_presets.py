"""The presets of the other families and stages, on stock transformers' models of the published module trees."""

import pytest
import torch
import transformers
from torch import nn

from instructblip_hf import Blip2Config, Blip2ForPreTraining
from instructblip_hf.training import FREEZING_PRESETS, FreezingPolicy, apply_freezing
from tiny_shapes import tiny_model
from tiny_stock_models import QFORMER, TEXT, VISION, blip2, llava


class FlatLlava(nn.Module):
    """LLaVA as published: no ``model.`` in front, and the head inside of the language model."""

    def __init__(self):
        super().__init__()
        self.vision_tower = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION))
        self.multi_modal_projector = nn.Linear(16, 16)
        self.language_model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT))


def blip2_first_stage():
    """Stock transformers has no model with all heads of the first stage."""
    return Blip2ForPreTraining(Blip2Config(vision_config=VISION, qformer_config={**QFORMER, **WITH_TEXT}))


WITH_TEXT = {"use_qformer_text_input": True}
BRIDGE = ("query_tokens", "qformer.", "language_projection.")
HEADS = (
    "query_tokens",
    "qformer.",
    "embeddings.",
    "vision_projection.",
    "text_projection.",
    "itm_head.",
    "temp",
    "cls.",
)


@pytest.mark.parametrize(
    ("preset", "build", "prefixes"),
    [
        ("blip2-stage1", blip2_first_stage, (*HEADS, "vision_model.post_layernorm.")),
        ("blip2-retrieval-finetuning", blip2_first_stage, (*HEADS, "vision_model.")),
        ("blip2-stage2", blip2, (*BRIDGE, "vision_model.post_layernorm.")),
        ("blip2-finetuning", blip2, (*BRIDGE, "vision_model.")),
        ("finetuning", tiny_model, (*BRIDGE, "vision_model.post_layernorm.")),
        ("llava-stage1", FlatLlava, ("multi_modal_projector.",)),
        ("llava-stage2", FlatLlava, ("multi_modal_projector.", "language_model.")),
        ("llava-stage1", llava, ("model.multi_modal_projector.",)),
        ("llava-stage2", llava, ("model.multi_modal_projector.", "model.language_model.", "lm_head.")),
        ("all", llava, ("model.", "lm_head.")),
    ],
)
def test_what_each_preset_trains(preset, build, prefixes):
    model = build()
    report = apply_freezing(model, preset)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith(prefixes)}
    assert all(any(name.startswith(prefix) for name in trained) for prefix in prefixes)
    model.train()
    report.hold_frozen_modules_in_eval()
    for name, module in model.named_modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            assert not module.training, name


@pytest.mark.parametrize("build", [blip2, blip2_first_stage, llava, FlatLlava, tiny_model])
def test_a_preset_of_another_family_is_refused_and_the_fitting_ones_are_named(build):
    fitting = set()
    for preset in FREEZING_PRESETS:
        try:
            apply_freezing(build(), preset)
            fitting.add(preset)
        except ValueError as error:
            message = str(error)
            assert "for another kind of model: this one has no " in message
    named = set(message.partition("presets for it: ")[2].split(", "))
    assert named == fitting


def test_components_of_a_stock_llava_are_named_by_its_own_tree():
    model = llava()
    apply_freezing(model, FreezingPolicy("llava-stage2", {"model.language_model.embed_tokens": "frozen"}))
    assert not model.model.language_model.embed_tokens.weight.requires_grad
    assert model.lm_head.weight.requires_grad


def test_stage_two_of_llava_at_true_size_trains_all_but_the_tower():
    """On the meta device: LLaVA-1.5-7B has 7.06 billion parameters, 0.30 of them in CLIP ViT-L/14 at 336 pixels."""
    vision = transformers.CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    config = transformers.LlavaConfig(vision_config=vision, text_config=transformers.LlamaConfig(vocab_size=32064))
    with torch.device("meta"):
        model = transformers.LlavaForConditionalGeneration(config)
    projector = 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert apply_freezing(model, "llava-stage1").trainable == projector
    report = apply_freezing(model, "llava-stage2")
    assert round(report.total / 1e9, 2) == 7.06
    assert round((report.total - report.trainable) / 1e9, 2) == 0.30
