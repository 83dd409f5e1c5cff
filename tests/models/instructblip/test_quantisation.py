"""Quantised language models beside a vision tower and a Q-Former that keep their weights."""

from __future__ import annotations

import pytest
import torch
import transformers

from instructblip_hf.models.instructblip import InstructBlipForConditionalGeneration
from tiny_models import batch, our_model


def torchao_config():
    quantization = pytest.importorskip("torchao.quantization", reason="the extra quant is not installed")
    return transformers.TorchAoConfig(quantization.Int8WeightOnlyConfig())


def bitsandbytes_config():
    pytest.importorskip("bitsandbytes", reason="the extra quant is not installed")
    return transformers.BitsAndBytesConfig(load_in_8bit=True)


@pytest.mark.parametrize("make_config", [torchao_config, bitsandbytes_config])
def test_image_side_is_left_alone(make_config, tmp_path):
    whole = our_model("llama")
    whole.save_pretrained(tmp_path)
    model = InstructBlipForConditionalGeneration.from_pretrained(tmp_path, quantization_config=make_config())
    for name, parameter in whole.named_parameters():
        if not name.startswith("language_model."):
            assert torch.equal(model.get_parameter(name), parameter), name
    projection = model.language_model.model.layers[0].self_attn.q_proj
    quantised = type(projection) is not torch.nn.Linear or type(projection.weight) is not torch.nn.Parameter
    assert quantised
    inputs = batch()
    with torch.no_grad():
        expected, actual = whole(**inputs).logits, model(**inputs).logits.float()
    error = (actual - expected).abs().max() / expected.abs().max()
    assert 0 < error < 0.1
    assert model.generate(**inputs, max_new_tokens=3).shape[0] == 2


def test_modules_named_by_the_user_are_kept():
    config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    completed = InstructBlipForConditionalGeneration._keep_image_side_whole(config)
    assert {"vision_model", "qformer", "language_projection"} <= set(completed.llm_int8_skip_modules)
    assert config.llm_int8_skip_modules is None
    chosen = transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["qformer"])
    assert InstructBlipForConditionalGeneration._keep_image_side_whole(chosen).llm_int8_skip_modules == ["qformer"]
