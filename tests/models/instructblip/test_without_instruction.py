"""A Q-Former without the instruction, loaded from a checkpoint of one with it."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from instructblip_hf.models.instructblip import (
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    load_without_instruction,
)
from instructblip_hf.models.instructblip.without_instruction import qformer_text_keys
from tiny_models import batch, our_model
from tiny_shapes import save_tiny_checkpoint


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_it_is_the_checkpoint_with_its_instruction_masked(kind, tmp_path, caplog):
    whole = our_model(kind)
    whole.save_pretrained(tmp_path)
    model = load_without_instruction(tmp_path)
    assert "does not read the instruction" in caplog.text
    assert "qformer.embeddings.word_embeddings" in caplog.text
    assert model.config.qformer_config.use_qformer_text_input is False
    kept, all_weights = model.state_dict(), whole.state_dict()
    assert all(torch.equal(tensor, all_weights[name]) for name, tensor in kept.items())
    assert all_weights.keys() - kept.keys() == qformer_text_keys(whole.config)
    inputs = batch()
    if kind == "t5":
        inputs["decoder_input_ids"] = torch.tensor([[0, 5], [0, 6]])
    masked = {**inputs, "qformer_attention_mask": torch.zeros_like(inputs["qformer_attention_mask"])}
    with torch.no_grad():
        expected, actual, read = whole(**masked).logits, model(**inputs).logits, whole(**inputs).logits
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert (read - expected).abs().max() > 1e-2, "the instruction would make a difference"


def test_the_rest_is_loaded_strictly(tmp_path):
    our_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")

    def load_with(change):
        changed = dict(weights)
        change(changed)
        save_file(changed, tmp_path / "model.safetensors", metadata={"format": "pt"})
        return load_without_instruction(tmp_path)

    text = "qformer.encoder.layer.0.output.dense.weight"
    query = "qformer.encoder.layer.0.output_query.dense.weight"
    with pytest.raises(KeyError, match=f"1 missing keys: {text}"):
        load_with(lambda changed: changed.pop(text))
    with pytest.raises(KeyError, match=f"1 missing keys: {query}"):
        load_with(lambda changed: changed.pop(query))
    with pytest.raises(KeyError, match="1 unexpected keys: qformer.embeddings.extra"):
        load_with(lambda changed: changed.update({"qformer.embeddings.extra": torch.zeros(2)}))


def test_saved_opened_and_asked_with_the_processor(tmp_path, caplog):
    save_tiny_checkpoint(tmp_path / "whole")
    load_without_instruction(tmp_path / "whole").save_pretrained(tmp_path / "without")
    model = InstructBlipForConditionalGeneration.from_pretrained(tmp_path / "without")
    caplog.clear()
    again = load_without_instruction(tmp_path / "without")
    assert not caplog.text, "there is nothing to leave out"
    processor = InstructBlipProcessor.from_pretrained(tmp_path / "whole")
    images = [Image.new("RGB", (56, 56), colour) for colour in ("red", "blue")]
    texts = ["what color ?", "what color is the circle ?"]
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
    other = processor(images=images, text=texts, qformer_text="how many ?", padding=True, return_tensors="pt")
    answers = [
        one.generate(**these, max_new_tokens=4) for one, these in ((model, inputs), (again, inputs), (model, other))
    ]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])
