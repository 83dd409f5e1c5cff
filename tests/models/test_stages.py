"""From stage to stage: what is taken, what is new, what stays behind."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import BlipImageProcessorPil

from instructblip_hf import (
    Blip2Config,
    Blip2ForPreTraining,
    Blip2Processor,
    InstructBlipProcessor,
    start_instruction_tuning,
    start_second_stage,
)
from instructblip_hf.models.hand_over import hand_over
from tiny_models import batch, first_stage_config, our_model, randomise, text_config
from tiny_tokenizers import language_tokenizer, qformer_tokenizer


def first_stage(**options):
    return randomise(Blip2ForPreTraining(Blip2Config(**first_stage_config(**options)))).eval()


def language_model(kind, seed=1):
    config = text_config(kind)
    auto = transformers.AutoModelForSeq2SeqLM if kind == "t5" else transformers.AutoModelForCausalLM
    return randomise(auto.from_config(config), seed).eval()


@pytest.mark.parametrize("kind", ["opt", "llama", "t5"])
def test_the_second_stage_takes_what_it_has_a_place_for(kind, tmp_path):
    first = first_stage()
    first.save_pretrained(tmp_path / "first")
    model, report = start_second_stage(tmp_path / "first", language_model(kind), image_token_index=98)
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        queries = model.get_image_features(pixels).qformer_outputs.last_hidden_state
        states, _ = first.get_image_states(pixels)
        expected = first.qformer(
            first.query_tokens.expand(2, -1, -1), encoder_hidden_states=states, return_dict=True
        ).last_hidden_state
    torch.testing.assert_close(queries, expected)
    assert {name.split(".")[0] for name in report.taken} == {
        "vision_model", "qformer", "query_tokens", "language_model",
    }  # fmt: skip
    assert {name.split(".")[0] for name in report.new} == {"language_projection"}
    left = {name.split(".")[0] for name in report.left}
    assert left == {"embeddings", "vision_projection", "text_projection", "itm_head", "qformer"}
    assert all(name not in model.state_dict() for name in report.left)
    text = str(report)
    assert "taken from Blip2ForImageTextRetrieval: qformer (" in text
    assert "left behind: qformer, feed-forward layers of text (" in text
    assert "new: language_projection (2 tensors)" in text


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_instruction_tuning_starts_from_both(kind, tmp_path):
    first = first_stage()
    second, _ = start_second_stage(first, language_model(kind), image_token_index=98)
    randomise(second.qformer, seed=5)
    second.save_pretrained(tmp_path / "second")
    model, report = start_instruction_tuning(tmp_path / "second", first)
    state, of_second, of_first = model.state_dict(), second.state_dict(), first.state_dict()
    assert not report.new
    assert len(report.taken) == len(state)
    for name, (source, theirs) in report.taken.items():
        origin = of_second if source == "Blip2ForConditionalGeneration" else of_first
        assert torch.equal(state[name], origin[theirs]), name
    from_first = {name for name, (source, _) in report.taken.items() if source == "Blip2ForPreTraining"}
    assert "qformer.embeddings.word_embeddings.weight" in from_first
    assert "qformer.encoder.layer.0.intermediate.dense.weight" in from_first
    assert not any(".attention." in name or "_query" in name for name in from_first)
    # With the instruction out of sight it is the second stage's model.
    inputs = batch()
    masked = {**inputs, "qformer_attention_mask": torch.zeros_like(inputs["qformer_attention_mask"])}
    blind = {name: value for name, value in inputs.items() if not name.startswith("qformer")}
    if kind == "t5":
        decoder = {"decoder_input_ids": torch.tensor([[0, 5], [0, 6]])}
        masked, blind = {**masked, **decoder}, {**blind, **decoder}
    with torch.no_grad():
        torch.testing.assert_close(model(**masked).logits, second(**blind).logits, atol=1e-5, rtol=1e-5)


def test_a_foreign_tower_goes_along():
    tower = randomise(
        transformers.CLIPVisionModel(
            transformers.CLIPVisionConfig(
                hidden_size=24,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                image_size=28,
                patch_size=14,
            )  # fmt: skip
        )
    )
    first = Blip2ForPreTraining.from_vision_bert_pretrained(
        tower, None, num_query_tokens=4, image_text_hidden_size=8, qformer_config=our_config()
    )
    second, _ = start_second_stage(first, language_model("llama"), image_token_index=98)
    model, report = start_instruction_tuning(second, first)
    assert type(model.vision_model) is type(tower)
    assert not report.new
    assert model(**batch(instruction_lengths=(3, 3))).logits.shape[0] == 2


def our_config():
    from instructblip_hf import Blip2QFormerConfig

    return Blip2QFormerConfig(**first_stage_config()["qformer_config"])


def test_another_shape_is_refused_before_anything_is_copied():
    first, other = first_stage(), our_model()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"query_tokens of InstructBlip.* has shape \(1, 4, 32\).*\(1, 6, 32\)"):
        hand_over(other, first_stage(num_query_tokens=6))
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    assert hand_over(other, first).taken


# --- a fresh start ------------------------------------------------------------------------------------------------


def bert(cls=transformers.BertForMaskedLM):
    config = transformers.BertConfig(
        vocab_size=57, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=40,
    )  # fmt: skip
    return randomise(cls(config), seed=3).eval()


def test_the_first_stage_starts_from_bert(tmp_path):
    """Text through it is text through BERT without its token types, and so are the words that its head says."""
    source = bert(transformers.BertForPreTraining)
    source.save_pretrained(tmp_path / "bert")
    tower = first_stage().vision_model
    model = Blip2ForPreTraining.from_vision_bert_pretrained(tower, tmp_path / "bert", num_query_tokens=4)
    ids = torch.randint(1, 57, (2, 7))
    with torch.no_grad():
        source.bert.embeddings.token_type_embeddings.weight.zero_()
        expected = source(ids)
        states = model.qformer(model.embeddings(ids), 0, return_dict=True).last_hidden_state
        hidden = source.bert(ids).last_hidden_state
        torch.testing.assert_close(states, hidden, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.cls(states), expected.prediction_logits, atol=1e-4, rtol=1e-5)
    for index, layer in enumerate(model.qformer.encoder.layer):
        theirs = source.bert.encoder.layer[index]
        for name, value in theirs.intermediate.state_dict().items():
            assert torch.equal(layer.intermediate_query.state_dict()[name], value)
        for name, value in theirs.output.state_dict().items():
            assert torch.equal(layer.output_query.state_dict()[name], value)
    cross = model.qformer.encoder.layer[0].crossattention.attention.key.weight
    assert cross.std().item() == pytest.approx(0.02, rel=0.2)
    assert model.query_tokens.std().item() == pytest.approx(0.02, rel=0.3)
    assert model.config.qformer_config.use_qformer_text_input
    for name, value in tower.state_dict().items():
        assert torch.equal(model.vision_model.state_dict()[name], value), name


def test_the_vocabulary_grows_to_the_tokenizer():
    class Processor:
        tokenizer = range(61)
        image_token_id = 60
        num_query_tokens = None

    source = bert()
    model = Blip2ForPreTraining.from_vision_bert_pretrained(first_stage().vision_model, source, processor=Processor())
    assert model.embeddings.word_embeddings.weight.shape[0] == 61
    assert torch.equal(model.embeddings.word_embeddings.weight[:57], source.bert.embeddings.word_embeddings.weight)
    assert model.cls.predictions.decoder.weight is model.embeddings.word_embeddings.weight
    assert torch.equal(model.cls.predictions.bias[:57], source.cls.predictions.bias)
    assert model.config.qformer_config.vocab_size == 61
    assert model.config.image_token_id == 60


def test_a_bert_without_its_head_is_refused():
    with pytest.raises(ValueError, match="BertModel has no language-model head"):
        Blip2ForPreTraining.from_vision_bert_pretrained(first_stage().vision_model, bert().bert)
    with pytest.raises(ValueError, match="bert is of type 'llama'"):
        Blip2ForPreTraining.from_vision_bert_pretrained(first_stage().vision_model, language_model("llama"))


# --- what ends an answer ------------------------------------------------------------------------------------------


def test_generation_stops_at_what_training_teaches_here_and_in_stock(tmp_path):
    first = first_stage()
    processor = opt_processor(end_token=",")
    second, _ = start_second_stage(first, language_model("opt"), processor)
    comma = processor.end_token_id
    assert comma != processor.tokenizer.eos_token_id
    assert second.generation_config.eos_token_id == comma
    second.save_pretrained(tmp_path)
    stock = transformers.Blip2ForConditionalGeneration.from_pretrained(tmp_path)
    assert stock.language_model.generation_config.eos_token_id == comma
    model, _ = start_instruction_tuning(second, first, instruction_processor(end_token=","))
    assert model.generation_config.eos_token_id == comma
    model, _ = start_instruction_tuning(second, first, instruction_processor())
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id


def test_a_processor_of_the_first_stage_is_no_processor_of_the_second():
    bert_side = Blip2Processor(BlipImageProcessorPil(), qformer_tokenizer(), num_query_tokens=4)
    with pytest.raises(ValueError, match="has no end token, so it is the Q-Former's"):
        start_second_stage(first_stage(), language_model("opt"), bert_side)


def test_conversations_need_the_tokenizers_own_end():
    turns = [
        {"role": "user", "content": "what color?"}, {"role": "assistant", "content": "red"},
        {"role": "user", "content": "and now?"}, {"role": "assistant", "content": "blue"},
    ]  # fmt: skip
    row = {"images": [], "messages": turns}
    assert opt_processor().encode_examples([row])["labels"].shape[0] == 1
    with pytest.raises(ValueError, match="row 0 has 2 answers, and the processor's end_token ',' ends one alone"):
        opt_processor(end_token=",").encode_examples([row])


def opt_processor(**options):
    return Blip2Processor(BlipImageProcessorPil(), language_tokenizer("opt"), num_query_tokens=4, **options)


def instruction_processor(**options):
    return InstructBlipProcessor(
        BlipImageProcessorPil(), language_tokenizer("opt"), qformer_tokenizer(), num_query_tokens=4, **options
    )
