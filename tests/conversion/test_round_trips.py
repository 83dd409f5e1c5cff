"""There and back, bit by bit, for every kind of file; and what is in the folder opens in stock transformers."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

import instructblip_hf
import lavis_files as lavis
from instructblip_hf.conversion import ToFolder, ToLavis, convert_to_folder, convert_to_lavis


BUFFER = "Qformer.bert.embeddings.position_ids"
EVERY_CASE = pytest.mark.parametrize("name", lavis.CASES)


@EVERY_CASE
def test_lavis_to_folder_to_lavis(name, cases, tmp_path):
    case = cases(name)
    assert case.report.kind == case.kind
    convert_to_lavis(case.folder, tmp_path / "whole.pth")
    whole = lavis.load(tmp_path / "whole.pth")
    before = lavis.load(case.checkpoint)
    assert lavis.same_bits(before, {name: whole[name] for name in before if name != BUFFER}) == {BUFFER}
    if len(case.sources) == 1:
        tower = {}
    else:
        convert_to_lavis(case.folder, tmp_path / "trimmed.pth", ToLavis(trimmed=True))
        assert lavis.same_bits(before, lavis.load(tmp_path / "trimmed.pth")) == {BUFFER}
        tower = torch.load(case.tower, weights_only=True)
        left = {name for name in tower if name.startswith(("blocks.2.", "head.", "norm.", "fc_norm."))}
        tower = {f"visual_encoder.{name}": tensor for name, tensor in tower.items() if name not in left}
        assert lavis.same_bits(tower, {name: whole[name] for name in tower}) == set()
    rest = {name: tensor for name, tensor in whole.items() if name not in before and name not in tower}
    if "llm" not in case.options:
        assert rest == {}
        return
    # What is left is the language model, with the names that LAVIS's model has for shared weights as well.
    prefix = next(iter(rest)).split(".")[0]
    assert prefix in ("llm_model", "t5_model", "opt_model")
    auto = transformers.AutoModelForSeq2SeqLM if prefix == "t5_model" else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(case.options["llm"])
    expected = {f"{prefix}.{name}": tensor for name, tensor in model.state_dict().items()}
    assert lavis.same_bits(expected, rest) == set()


@EVERY_CASE
def test_folder_to_lavis_to_folder(name, cases, tmp_path):
    case = cases(name)
    folder = case.folder
    convert_to_lavis(folder, tmp_path / "there.pth")
    convert_to_folder([tmp_path / "there.pth"], tmp_path / "back")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    assert lavis.same_bits(before, after) == set()
    for file in ("config.json", "generation_config.json"):
        if (folder / file).is_file():
            assert json.loads((folder / file).read_text()) == json.loads((tmp_path / "back" / file).read_text())


def test_a_trained_folder_with_a_placeholder_of_its_own_comes_back(cases, tmp_path):
    """Rows that LAVIS has no place for are not the mean of the others any more."""
    source = instructblip_hf.InstructBlipForConditionalGeneration.from_pretrained(cases("instructblip-vicuna").folder)
    with torch.no_grad():
        source.language_model.lm_head.weight[-3:] = torch.randn(3, source.config.text_config.hidden_size)
    source.save_pretrained(tmp_path / "trained")
    rows = source.config.text_config.vocab_size
    convert_to_lavis(tmp_path / "trained", tmp_path / "there.pth", ToLavis(vocabulary_rows=rows - 3))
    assert len(lavis.load(tmp_path / "there.pth")["llm_model.lm_head.weight"]) == rows - 3
    convert_to_folder([tmp_path / "there.pth"], tmp_path / "back")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("trained", "back"))
    assert lavis.same_bits(before, after) == set()


STOCK = {
    "instructblip": transformers.InstructBlipForConditionalGeneration,
    "blip-2": transformers.Blip2ForConditionalGeneration,
}


@pytest.mark.parametrize("name", [name for name in lavis.CASES if name not in ("stage-1", "retrieval")])
def test_stock_transformers_opens_it_with_equal_logits(name, cases):
    case = cases(name)
    stock, info = STOCK[case.kind].from_pretrained(case.folder, output_loading_info=True, dtype=torch.float32)
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    ours = instructblip_hf.AutoModelForVision2Seq.from_pretrained(case.folder, dtype=torch.float32)
    config = ours.config
    inputs = {
        "pixel_values": torch.randn(1, 3, *[config.vision_config.image_size] * 2),
        "input_ids": torch.tensor([[config.image_token_id] * config.num_query_tokens + [5, 6, 7]]),
    }
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if case.kind == "instructblip":
        inputs["qformer_input_ids"] = torch.tensor([[5, 6, 7]])
        inputs["qformer_attention_mask"] = torch.ones(1, 3, dtype=torch.long)
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[0, 5]])
    with torch.no_grad():
        torch.testing.assert_close(ours(**inputs).logits, stock.eval()(**inputs).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["stage-1", "retrieval"])
def test_the_retrieval_model_of_a_first_stage_opens_in_stock(name, cases, tmp_path):
    case = cases(name)
    report = convert_to_folder(
        case.sources, tmp_path / "folder", ToFolder(**{**case.options, "kind": "blip-2-retrieval"})
    )
    left = {row["from"][0] for row in report.rows if row["to"] is None and "language-model head" in row["how"]}
    assert {"temp", "Qformer.cls.predictions.bias"} <= left
    stock, info = transformers.Blip2ForImageTextRetrieval.from_pretrained(
        tmp_path / "folder", output_loading_info=True
    )
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    convert_to_lavis(tmp_path / "folder", tmp_path / "back.pth")
    before, after = lavis.load(case.checkpoint), lavis.load(tmp_path / "back.pth")
    before = {name: tensor for name, tensor in before.items() if name not in left | {BUFFER}}
    assert lavis.same_bits(before, {name: after[name] for name in before}) == set()


def test_the_first_stage_completes_a_second_stage_to_an_instructblip(cases, tmp_path):
    """LAVIS's second stage has no weights for text; InstructBLIP's training takes them from the first (LAVIS #344)."""
    case, first = cases("stage-2-vicuna"), cases("stage-1")
    sources = [case.checkpoint, first.checkpoint, case.tower]
    report = convert_to_folder(sources, tmp_path / "folder", ToFolder(**{**case.options, "kind": "instructblip"}))
    weights = load_file(tmp_path / "folder" / "model.safetensors")
    second_file, first_file = lavis.load(case.checkpoint), lavis.load(first.checkpoint)
    assert torch.equal(weights["query_tokens"], second_file["query_tokens"])
    words = "embeddings.word_embeddings.weight"
    assert torch.equal(weights[f"qformer.{words}"], first_file[f"Qformer.bert.{words}"])
    assert any(row["how"] == "left out: taken from stage-2-vicuna.pth" for row in report.rows)


def test_shards_hold_the_same_weights(cases, tmp_path):
    case = cases("instructblip-vicuna")
    convert_to_folder(case.sources, tmp_path / "folder", ToFolder(**case.options, shard_bytes=60_000))
    files = sorted((tmp_path / "folder").glob("*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size < 70_000 for file in files)
    sharded = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert lavis.same_bits(sharded, load_file(case.folder / "model.safetensors")) == set()
    instructblip_hf.InstructBlipForConditionalGeneration.from_pretrained(tmp_path / "folder")


def test_a_dtype_is_that_of_all_weights(cases, tmp_path):
    case = cases("instructblip-t5")
    convert_to_folder(case.sources, tmp_path / "folder", ToFolder(**case.options, dtype=torch.float16))
    weights = load_file(tmp_path / "folder" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    config = instructblip_hf.InstructBlipConfig.from_pretrained(tmp_path / "folder")
    assert config.dtype == torch.float16
    assert config.text_config.dense_act_fn == "gelu"
    assert config.text_config.scale_decoder_outputs is False


def test_the_size_is_read_off_the_tensors(cases):
    config = instructblip_hf.InstructBlipConfig.from_pretrained(cases("instructblip-vicuna").folder)
    assert (config.vision_config.image_size, config.vision_config.patch_size) == (28, 14)
    assert (config.vision_config.intermediate_size, config.vision_config.num_hidden_layers) == (48, 2)
    assert config.qformer_config.cross_attention_frequency == 2
    assert (config.qformer_config.vocab_size, config.qformer_config.max_position_embeddings) == (121, 40)
    assert config.num_query_tokens == 4
    assert instructblip_hf.Blip2Config.from_pretrained(cases("captioning-opt").folder).vision_config.image_size == 56
    first = instructblip_hf.Blip2Config.from_pretrained(cases("stage-1").folder)
    assert first.image_text_hidden_size == lavis.EMBED
