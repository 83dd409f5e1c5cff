"""Models composed of any vision tower, language model and Q-Former."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers

from instructblip_hf.auto import AutoModelForVision2Seq
from instructblip_hf.models.instructblip import (
    InstructBlipForConditionalGeneration,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
    InstructBlipVisionConfig,
    InstructBlipVisionModel,
)
from tiny_models import IMAGE_SIZE, batch, config_dict, labels_for, randomise, text_config


TOWER = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": IMAGE_SIZE,
    "patch_size": 14,
}
QFORMER = config_dict("llama")["qformer_config"]


def vision_tower(kind: str) -> transformers.PreTrainedModel:
    if kind == "eva":
        return InstructBlipVisionModel(InstructBlipVisionConfig(**TOWER, initializer_range=0.02))
    if kind == "clip":
        return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**TOWER))
    if kind == "siglip":
        return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**TOWER))
    options = {name: value for name, value in TOWER.items() if name != "intermediate_size"}
    return transformers.Dinov2Model(transformers.Dinov2Config(**options))


def language_model(kind: str) -> transformers.PreTrainedModel:
    config = text_config(kind)
    auto = transformers.AutoModelForSeq2SeqLM if kind == "t5" else transformers.AutoModelForCausalLM
    return auto.from_config(config)


def bert() -> transformers.BertModel:
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    return randomise(transformers.BertModel(config))


@pytest.mark.parametrize("text", ["opt", "llama", "qwen", "gemma", "t5"])
@pytest.mark.parametrize("vision", ["eva", "clip", "siglip", "dinov2"])
def test_any_tower_any_language_model(vision, text, tmp_path):
    tower, llm = randomise(vision_tower(vision)), randomise(language_model(text))
    tower.save_pretrained(tmp_path / "vision")
    llm.save_pretrained(tmp_path / "text")
    model = InstructBlipForConditionalGeneration.from_vision_text_pretrained(
        tmp_path / "vision",
        tmp_path / "text",
        num_query_tokens=4,
        image_token_index=98,
        qformer_config=InstructBlipQFormerConfig(**QFORMER),
    )
    for part, source in ((model.vision_model, tower), (model.language_model, llm)):
        assert type(part).__name__ == type(source).__name__
        for name, value in source.state_dict().items():
            assert torch.equal(part.state_dict()[name], value), name
    assert model.qformer.config.encoder_hidden_size == 24
    assert model.config.is_encoder_decoder is (text == "t5")

    inputs = batch(images_per_row=(2, 1), text_lengths=(3, 8))
    inputs["labels"] = labels_for(text, inputs)
    outputs = model(**inputs)
    outputs.loss.backward()
    assert model.query_tokens.grad.abs().sum() > 0
    text_only = batch(images_per_row=(0, 0))
    model.train()(**text_only, labels=labels_for(text, text_only)).loss.backward()
    model.eval()
    prompt = {name: value for name, value in inputs.items() if name != "labels"}
    tokens = model.generate(**prompt, max_new_tokens=4)

    model.save_pretrained(tmp_path / "whole")
    again, info = InstructBlipForConditionalGeneration.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, outputs.logits)
    assert torch.equal(again.generate(**prompt, max_new_tokens=4), tokens)
    # Stock's AutoConfig forces every vision tower into the EVA ViT's configuration.
    by_auto_class = AutoModelForVision2Seq.from_pretrained(tmp_path / "whole")
    assert by_auto_class.config.to_dict() == again.config.to_dict()
    assert torch.equal(by_auto_class.generate(**prompt, max_new_tokens=4), tokens)


def test_given_models_keep_their_weights():
    """Also models that were never saved: composing must not initialise them anew."""
    tower, llm = randomise(vision_tower("eva")), randomise(language_model("llama"))
    before = {name: value.clone() for name, value in llm.state_dict().items()}
    model = InstructBlipForConditionalGeneration.from_vision_text_pretrained(
        tower, llm, randomise(InstructBlipQFormerModel(InstructBlipQFormerConfig(**QFORMER, encoder_hidden_size=24)))
    )
    for name, value in before.items():
        if "embed" not in name and "lm_head" not in name:
            assert torch.equal(model.language_model.state_dict()[name], value), name
    reference = randomise(InstructBlipQFormerModel(InstructBlipQFormerConfig(**QFORMER, encoder_hidden_size=24)))
    for name, value in reference.state_dict().items():
        assert torch.equal(model.qformer.state_dict()[name], value), name


def test_vision_tower_out_of_a_clip_checkpoint(tmp_path):
    clip = transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config=TOWER,
            text_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        )
    )
    randomise(clip).save_pretrained(tmp_path)
    model = InstructBlipForConditionalGeneration.from_vision_text_pretrained(
        tmp_path, language_model("llama"), qformer_config=InstructBlipQFormerConfig(**QFORMER)
    )
    pixels = torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    clip.eval()
    expected = clip.vision_model(pixels).last_hidden_state
    torch.testing.assert_close(model.vision_model(pixels).last_hidden_state, expected)


def test_placeholder_gets_a_row_of_its_own():
    model = InstructBlipForConditionalGeneration.from_vision_text_pretrained(
        vision_tower("eva"), language_model("llama"), qformer_config=InstructBlipQFormerConfig(**QFORMER)
    )
    assert model.config.image_token_index == 99
    assert model.config.text_config.vocab_size == 100
    assert model.get_input_embeddings().weight.shape[0] == 100


def test_processor_gives_placeholder_and_sizes():
    processor = SimpleNamespace(
        num_query_tokens=8, image_token_id=101, tokenizer=range(103), qformer_tokenizer=range(61)
    )
    parts = (vision_tower("eva"), language_model("llama"))
    model = InstructBlipForConditionalGeneration.from_vision_text_pretrained(
        *parts, qformer=bert(), num_query_tokens=8, processor=processor
    )
    assert model.config.image_token_index == 101
    assert model.get_input_embeddings().weight.shape[0] == 103
    assert model.qformer.embeddings.word_embeddings.weight.shape[0] == 61
    assert model.config.qformer_config.vocab_size == 61
    with pytest.raises(ValueError, match="num_query_tokens is 32, the processor's 8"):
        InstructBlipForConditionalGeneration.from_vision_text_pretrained(*parts, processor=processor)


def test_qformer_from_bert(tmp_path):
    """Text through the new Q-Former is text through BERT without its token types; the queries' FFN is a copy."""
    source = bert()
    source.save_pretrained(tmp_path / "bert")
    model = InstructBlipForConditionalGeneration.from_vision_text_pretrained(
        vision_tower("eva"), language_model("llama"), qformer=tmp_path / "bert"
    )
    ids = torch.randint(1, 60, (2, 7))
    source.eval()
    with torch.no_grad():
        source.embeddings.token_type_embeddings.weight.zero_()
        expected = source(ids).last_hidden_state
        torch.testing.assert_close(model.qformer(input_ids=ids).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    for index, layer in enumerate(model.qformer.encoder.layer):
        for part in ("intermediate", "output"):
            text, query = getattr(layer, part).state_dict(), getattr(layer, f"{part}_query").state_dict()
            theirs = getattr(source.encoder.layer[index], part).state_dict()
            for name, value in theirs.items():
                assert torch.equal(text[name], value)
                assert torch.equal(query[name], value)
    cross = model.qformer.encoder.layer[0].crossattention.attention.key.weight
    assert cross.std().item() == pytest.approx(0.02, rel=0.2)


def test_impossible_qformers_are_refused():
    parts = (vision_tower("eva"), language_model("llama"))
    with pytest.raises(ValueError, match="width 32, the vision tower's have 24"):
        InstructBlipForConditionalGeneration.from_vision_text_pretrained(
            *parts, qformer=InstructBlipQFormerModel(InstructBlipQFormerConfig(**QFORMER, encoder_hidden_size=32))
        )
    with pytest.raises(ValueError, match="of type 'llama'"):
        InstructBlipForConditionalGeneration.from_vision_text_pretrained(*parts, qformer=language_model("llama"))
    other_shape = InstructBlipQFormerConfig(**{**QFORMER, "intermediate_size": 48})
    with pytest.raises(ValueError, match="has shape"):
        InstructBlipForConditionalGeneration.from_vision_text_pretrained(
            *parts, qformer=bert(), qformer_config=other_shape
        )


def test_incomplete_part_is_refused(tmp_path):
    tower = vision_tower("clip")
    weights = tower.state_dict()
    dropped = next(name for name in weights if name.endswith("fc1.weight"))
    del weights[dropped]
    tower.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(KeyError, match="lacks weights of CLIPVisionModel"):
        InstructBlipForConditionalGeneration.from_vision_text_pretrained(tmp_path, language_model("llama"))
