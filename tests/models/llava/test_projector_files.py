"""A connector that goes from one model to another through a folder."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from instructblip_hf.models.llava import LlavaForConditionalGeneration
from tiny_models import our_llava


QFORMER = {
    "projector_type": "qformer",
    "qformer_config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "num_query_tokens": 4,
}


@pytest.mark.parametrize("options", [{}, {"projector_type": "linear"}, QFORMER], ids=["mlp", "linear", "qformer"])
def test_a_connector_goes_into_another_model(tmp_path, options):
    first, second = our_llava(seed=0, **options), our_llava(seed=1, **options)
    pixels = torch.randn(2, 3, 28, 28)
    second.vision_tower.load_state_dict(first.vision_tower.state_dict())
    before = second.language_model.state_dict()
    assert not torch.equal(
        second.get_image_features(pixels).pooler_output, first.get_image_features(pixels).pooler_output
    )
    first.save_projector(tmp_path)
    second.load_projector(tmp_path)
    assert torch.equal(second.get_image_features(pixels).pooler_output, first.get_image_features(pixels).pooler_output)
    assert all(torch.equal(tensor, before[name]) for name, tensor in second.language_model.state_dict().items())
    assert len(load_file(tmp_path / "projector.safetensors")) == len(list(first.multi_modal_projector.parameters()))


def test_types_are_the_models(tmp_path):
    our_llava(seed=1).save_projector(tmp_path)
    model = our_llava().to(torch.bfloat16)
    model.load_projector(tmp_path)
    assert model.multi_modal_projector.linear_1.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"projector_type": "linear"}, "projector_type is 'linear' there and 'mlp' in the model"),
        ({"vision_feature_layer": -1}, "vision_feature_layer is -1 there and -2 in the model"),
        ({"vision_feature_layer": [-2, -1]}, "image_features_size is 64 there and 32 in the model"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu' there and 'gelu' in the model"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path, other, message):
    our_llava(seed=1, **other).save_projector(tmp_path)
    model = our_llava()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        model.load_projector(tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_broken_files_change_nothing(tmp_path):
    our_llava(seed=1).save_projector(tmp_path)
    file = tmp_path / "projector.safetensors"
    tensors = load_file(file)
    model = our_llava()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file({"linear_1.weight": tensors["linear_1.weight"], "extra": torch.zeros(1)}, file)
    with pytest.raises(KeyError, match=r"missing keys \['linear_1.bias'.*unexpected keys \['extra'\]"):
        model.load_projector(tmp_path)
    save_file({**tensors, "linear_2.weight": torch.zeros(3, 3)}, file)
    with pytest.raises(ValueError, match=r"linear_2.weight of .* has shape \(3, 3\)"):
        model.load_projector(tmp_path)
    (tmp_path / "projector_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="holds no connector"):
        model.load_projector(tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_gathered_weights_are_written_in_the_models_place(tmp_path):
    model = our_llava()
    gathered = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.save_projector(tmp_path, gathered)
    written = load_file(tmp_path / "projector.safetensors")
    assert torch.equal(written["linear_1.weight"], model.multi_modal_projector.linear_1.weight + 1)
    with pytest.raises(KeyError, match="lacks multi_modal_projector.linear_1.weight"):
        model.save_projector(tmp_path, {})
    assert "projector_type" in json.loads((tmp_path / "projector_config.json").read_text())
    assert isinstance(model, LlavaForConditionalGeneration)
