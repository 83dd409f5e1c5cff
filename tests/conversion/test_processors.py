"""The processor beside the weights: LAVIS's special tokens, sizes and sides, and rows for every token."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

import instructblip_hf
import lavis_files as lavis
from instructblip_hf.conversion import ConversionError, ToFolder, ToLavis, convert_to_folder, convert_to_lavis
from tiny_tokenizers import language_tokenizer, qformer_tokenizer


IMAGE = Image.new("RGB", (40, 30), "red")


@pytest.fixture
def bert(tmp_path):
    qformer_tokenizer().save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def language(kind, tokenizer, root):
    """A language model with a row for every token, and its tokenizer beside it, as published folders are."""
    tokens = language_tokenizer(tokenizer)
    folder = lavis.save_language_model(kind, root / "llm", vocabulary=len(tokens))
    tokens.save_pretrained(folder)
    return folder, len(tokens)


def test_vicuna(cases, bert, tmp_path):
    case = cases("instructblip-vicuna")
    llm, tokens = language("llama", "llama", tmp_path)
    options = {**case.options, "llm": llm, "qformer_tokenizer": bert}
    report = convert_to_folder(case.sources, tmp_path / "folder", ToFolder(**options))
    assert not any("without a processor" in note for note in report.notes)
    processor = instructblip_hf.InstructBlipProcessor.from_pretrained(tmp_path / "folder")
    tokenizer, reads = processor.tokenizer, processor.qformer_tokenizer
    # [PAD] is the token after Vicuna's own, the placeholder the one after that.
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("[PAD]", tokens)
    assert {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id} == {2}
    assert (processor.image_token_id, processor.num_query_tokens) == (tokens + 1, 4)
    assert tokenizer("what color").input_ids[0] == 2
    assert (tokenizer.truncation_side, tokenizer.padding_side, reads.truncation_side) == ("left", "left", "left")
    assert (reads.bos_token, reads.bos_token_id) == ("[DEC]", 120)
    model = instructblip_hf.InstructBlipForConditionalGeneration.from_pretrained(tmp_path / "folder")
    assert model.config.image_token_index == tokens + 1
    assert model.get_input_embeddings().num_embeddings == tokens + 2
    generation = json.loads((tmp_path / "folder" / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"], generation["pad_token_id"]) == (2, 2, tokens)
    inputs = processor(images=IMAGE, text="what color is it?", return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 28, 28)
    assert model.generate(**inputs, max_new_tokens=3).shape[0] == 1
    # Back in LAVIS's layout it has the rows that LAVIS's tokenizer has: Vicuna's and [PAD].
    convert_to_lavis(tmp_path / "folder", tmp_path / "back.pth")
    assert len(lavis.load(tmp_path / "back.pth")["llm_model.lm_head.weight"]) == tokens + 1
    convert_to_lavis(tmp_path / "folder", tmp_path / "less.pth", ToLavis(vocabulary_rows=tokens))
    assert len(lavis.load(tmp_path / "less.pth")["llm_model.lm_head.weight"]) == tokens


def test_the_tokenizer_counts_without_a_processor(cases, tmp_path):
    """Without BERT's tokenizer there is no processor; ids are those that it will have once it is given."""
    case = cases("instructblip-vicuna")
    llm, tokens = language("llama", "llama", tmp_path)
    report = convert_to_folder(case.sources, tmp_path / "folder", ToFolder(**{**case.options, "llm": llm}))
    assert any("for it give a folder as qformer_tokenizer" in note for note in report.notes)
    config = instructblip_hf.InstructBlipConfig.from_pretrained(tmp_path / "folder")
    assert (config.image_token_index, config.text_config.vocab_size) == (tokens + 1, tokens + 2)
    generation = json.loads((tmp_path / "folder" / "generation_config.json").read_text())
    assert generation["pad_token_id"] == tokens


def test_new_rows_are_the_mean_of_the_others(cases, tmp_path):
    case = cases("instructblip-vicuna")
    llm, tokens = language("llama", "llama", tmp_path)
    convert_to_folder(case.sources, tmp_path / "folder", ToFolder(**{**case.options, "llm": llm}))
    model = instructblip_hf.InstructBlipForConditionalGeneration.from_pretrained(tmp_path / "folder")
    head = model.language_model.lm_head.weight
    torch.testing.assert_close(head[tokens], head[:tokens].mean(0))


def test_t5(cases, bert, tmp_path):
    case = cases("instructblip-t5")
    llm, tokens = language("t5", "t5", tmp_path)
    options = {**case.options, "llm": llm, "qformer_tokenizer": bert}
    convert_to_folder(case.sources, tmp_path / "folder", ToFolder(**options))
    processor = instructblip_hf.InstructBlipProcessor.from_pretrained(tmp_path / "folder")
    assert (processor.tokenizer.truncation_side, processor.tokenizer.padding_side) == ("left", "right")
    assert processor.tokenizer("what color").input_ids[-1] == processor.tokenizer.eos_token_id
    assert processor.image_token_id == tokens


def test_opt_ends_with_a_line(cases, tmp_path):
    case = cases("captioning-opt")
    llm, tokens = language("opt", "opt", tmp_path)
    convert_to_folder(case.sources, tmp_path / "folder", ToFolder(**{**case.options, "llm": llm}))
    processor = instructblip_hf.Blip2Processor.from_pretrained(tmp_path / "folder")
    assert processor.tokenizer.padding_side == "left"
    assert processor.image_token_id == tokens
    assert processor(images=IMAGE, return_tensors="pt")["pixel_values"].shape == (1, 3, 56, 56)
    generation = json.loads((tmp_path / "folder" / "generation_config.json").read_text())
    newline = language_tokenizer("opt")("\n", add_special_tokens=False).input_ids
    assert [generation["eos_token_id"]] == newline


def test_retrieval(cases, bert, tmp_path):
    case = cases("retrieval")
    options = {**case.options, "kind": "blip-2-retrieval", "qformer_tokenizer": bert}
    convert_to_folder(case.sources, tmp_path / "folder", ToFolder(**options))
    processor = instructblip_hf.Blip2Processor.from_pretrained(tmp_path / "folder")
    model = instructblip_hf.Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "folder")
    texts = processor(text=["a cat on a mat", "the circle is red"], padding=True, return_tensors="pt")
    images = processor(images=[IMAGE], return_tensors="pt")
    with torch.no_grad():
        scores = model.similarity(
            model.get_image_features(**images).image_embeds, model.get_text_features(**texts).text_embeds
        )
    assert scores.shape == (1, 2)
    assert processor.tokenizer.bos_token_id == 120
    assert model.config.image_token_index == processor.image_token_id


def test_without_tokenizers_it_says_which_are_missing(cases):
    assert any(
        "give a folder as tokenizer and qformer_tokenizer" in note for note in cases("instructblip-t5").report.notes
    )
    assert any("give a folder as tokenizer" in note for note in cases("stage-2-opt").report.notes)


def test_tokenizers_that_do_not_fit(cases, bert, tmp_path):
    case = cases("instructblip-vicuna")
    llm, tokens = language("llama", "llama", tmp_path)
    options = {**case.options, "llm": llm}

    def refused(message, **more):
        with pytest.raises(ConversionError, match=message):
            convert_to_folder(case.sources, tmp_path / "folder", ToFolder(**{**options, **more}))
        assert not (tmp_path / "folder").exists()

    refused("the tokenizer of .*llm has no CLS token, so it is no BERT's", qformer_tokenizer=llm)
    larger = qformer_tokenizer()
    larger.add_tokens(["one", "more", "than", "rows"])
    larger.save_pretrained(tmp_path / "larger")
    refused("larger has 124 tokens, the Q-Former embeddings for 121", qformer_tokenizer=tmp_path / "larger")
    message = f"several ids: image_token_id is 7, the tokenizer's is {tokens + 1}"
    refused(message, qformer_tokenizer=bert, image_token_id=7)
    message = f"several ids: the tokenizer's is {tokens + 1}, the configuration's is 99"
    refused(message, qformer_tokenizer=bert, config=case.folder)
