"""Files as they come: old ones, sharded ones, language models of several layouts, configurations handed in."""

from __future__ import annotations

import json
import runpy
import zipfile
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import instructblip_hf
import lavis_files as lavis
import tiny_stock_models
from instructblip_hf import bundled_checkpoint
from instructblip_hf.conversion import ConversionError, ToFolder, ToLavis, convert_to_folder, convert_to_lavis
from instructblip_hf.conversion.plan import ModelSpec, by_first_names
from tiny_models import stock_model


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_files_of_torch_before_1_6(cases, tmp_path):
    case = cases("instructblip-vicuna")
    content = torch.load(case.checkpoint, weights_only=True)
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    convert_to_folder([tmp_path / "old.pth", case.tower], tmp_path / "folder", ToFolder(**case.options))
    assert lavis.same_bits(weights(tmp_path / "folder"), weights(case.folder)) == set()


def test_a_state_dict_alone(cases, tmp_path):
    case = cases("instructblip-vicuna")
    torch.save(lavis.load(case.checkpoint), tmp_path / "plain.pth")
    convert_to_folder([tmp_path / "plain.pth", case.tower], tmp_path / "folder", ToFolder(**case.options))
    assert lavis.same_bits(weights(tmp_path / "folder"), weights(case.folder)) == set()


@pytest.mark.parametrize("name", ["instructblip-vicuna", "stage-2-opt"])
@pytest.mark.parametrize("prefixed", [True, False])
def test_language_models_in_several_bin_files(cases, tmp_path, name, prefixed):
    """As Vicuna is published; some files leave out the base model's prefix, and old ones hold rotary buffers."""
    case = cases(name)
    llm = tmp_path / "llm"
    llm.mkdir()
    (llm / "config.json").write_bytes((case.options["llm"] / "config.json").read_bytes())
    stored = weights(case.options["llm"])
    head = {name: tensor for name, tensor in stored.items() if name.startswith("lm_head.")}
    body = {name: tensor for name, tensor in stored.items() if name not in head}
    if not prefixed:
        body = {name.removeprefix("model."): tensor for name, tensor in body.items()}
    else:
        body["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    first = dict(list(body.items())[:8])
    parts = {"pytorch_model-1.bin": first, "pytorch_model-2.bin": {**head, **dict(list(body.items())[8:])}}
    for file, tensors in parts.items():
        torch.save(tensors, llm / file)
    index = {name: file for file, tensors in parts.items() for name in tensors}
    (llm / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    convert_to_folder(case.sources, tmp_path / "folder", ToFolder(**{**case.options, "llm": llm}))
    assert lavis.same_bits(weights(tmp_path / "folder"), weights(case.folder)) == set()
    (llm / "pytorch_model-2.bin").unlink()
    with pytest.raises(ConversionError, match=r"lacks pytorch_model-2\.bin"):
        convert_to_folder(case.sources, tmp_path / "other", ToFolder(**{**case.options, "llm": llm}))


def test_a_language_model_in_the_checkpoint(cases, tmp_path):
    """LAVIS's LLaMA has its rotary frequencies in the file, and one row more for [PAD] than the folder."""
    case = cases("instructblip-vicuna")
    inside = {f"llm_model.{name}": tensor for name, tensor in weights(case.options["llm"]).items()}
    for name in ("llm_model.lm_head.weight", "llm_model.model.embed_tokens.weight"):
        inside[name] = torch.cat([inside[name], torch.ones(1, 32, dtype=torch.bfloat16)])
    inside["llm_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    lavis.save(tmp_path / "whole.pth", {**lavis.load(case.checkpoint), **inside})
    report = convert_to_folder([tmp_path / "whole.pth", case.tower], tmp_path / "folder", ToFolder(**case.options))
    made = weights(tmp_path / "folder")["language_model.lm_head.weight"]
    assert torch.equal(made[:-1], inside["llm_model.lm_head.weight"])
    left = {row["from"][0]: row["how"] for row in report.rows if row["to"] is None}
    assert "rotary frequencies" in left["llm_model.model.layers.0.self_attn.rotary_emb.inv_freq"]
    assert left["lm_head.weight"] == "left out: taken from whole.pth"


def test_a_configuration_that_is_handed_in(cases, tmp_path):
    case = cases("captioning-opt")
    options = {"llm": case.options["llm"], "config": case.folder}
    convert_to_folder(case.sources, tmp_path / "folder", ToFolder(**options))
    assert lavis.same_bits(weights(tmp_path / "folder"), weights(case.folder)) == set()
    other = cases("stage-2-opt")
    with pytest.raises(
        ConversionError, match=r"visual_encoder\.pos_embed of .* is of shape 1 x 17 x 32; .* 1 x 5 x 32"
    ):
        convert_to_folder(case.sources, tmp_path / "other", ToFolder(**{**options, "config": other.folder}))


def test_without_instruction_in_the_qformer(cases, tmp_path):
    """LAVIS's `qformer_text_input=False` has the tensors of a second stage, and is asked for by its name."""
    case = cases("stage-2-vicuna")
    options = {**case.options, "kind": "instructblip-without-text"}
    convert_to_folder(case.sources, tmp_path / "folder", ToFolder(**options))
    model = instructblip_hf.InstructBlipForConditionalGeneration.from_pretrained(tmp_path / "folder")
    assert model.config.qformer_config.use_qformer_text_input is False
    convert_to_lavis(tmp_path / "folder", tmp_path / "back.pth", ToLavis(trimmed=True))
    changed = lavis.same_bits(lavis.load(case.checkpoint), lavis.load(tmp_path / "back.pth"))
    assert changed == {"Qformer.bert.embeddings.position_ids"}
    convert_to_lavis(cases("instructblip-vicuna").folder, tmp_path / "with.pth")
    with_text = ToFolder(kind="instructblip-without-text")
    report = convert_to_folder([tmp_path / "with.pth"], tmp_path / "without", with_text)
    reasons = [row["how"] for row in report.rows if row["to"] is None]
    assert reasons.count("left out: the Q-Former of instructblip-without-text reads no text") == 2 + 4 * 6
    with pytest.raises(ConversionError, match="of the file is of type instructblip; blip-2 is of type blip-2"):
        convert_to_folder([tmp_path / "with.pth"], tmp_path / "other", ToFolder(kind="blip-2"))


def test_a_trained_tower_with_a_key_bias(tmp_path):
    """The bundled model, whose vision tower was trained: there and back it is the same folder."""
    with pytest.raises(ConversionError, match="attention is the same without it, and drop_key_bias leaves it out"):
        convert_to_lavis(bundled_checkpoint(), tmp_path / "lavis.pth")
    convert_to_lavis(bundled_checkpoint(), tmp_path / "lavis.pth", ToLavis(drop_key_bias=True))
    assert not any("k_bias" in name for name in lavis.load(tmp_path / "lavis.pth"))
    convert_to_folder([tmp_path / "lavis.pth"], tmp_path / "back", ToFolder(processor=bundled_checkpoint()))
    assert lavis.same_bits(weights(tmp_path / "back"), weights(bundled_checkpoint())) == set()
    for name in ("processor_config.json", "tokenizer.json"):
        assert (tmp_path / "back" / name).read_bytes() == (bundled_checkpoint() / name).read_bytes(), name
    # Which defaults are written, and in what order, depends on the version of transformers.
    for config_class in (instructblip_hf.InstructBlipConfig, transformers.GenerationConfig):
        back, before = (config_class.from_pretrained(place) for place in (tmp_path / "back", bundled_checkpoint()))
        assert without_version(back.to_dict()) == without_version(before.to_dict())
    instructblip_hf.InstructBlipProcessor.from_pretrained(tmp_path / "back")


def test_a_file_holds_each_weight_once(tmp_path):
    """Neither rows that are cut nor weights with two names are in it twice."""
    convert_to_lavis(bundled_checkpoint(), tmp_path / "lavis.pth", ToLavis(drop_key_bias=True, vocabulary_rows=100))
    with zipfile.ZipFile(tmp_path / "lavis.pth") as archive:
        held = sum(entry.file_size for entry in archive.infolist() if "/data/" in entry.filename)
    assert held == sum(tensor.nbytes for tensor in weights(bundled_checkpoint()).values())


def test_a_processor_for_another_number_of_queries(cases, tmp_path):
    case = cases("instructblip-vicuna")
    options = {**case.options, "processor": bundled_checkpoint()}
    expected = instructblip_hf.InstructBlipProcessor.from_pretrained(bundled_checkpoint()).num_query_tokens
    with pytest.raises(ConversionError, match=f"is for {expected} query tokens, the model has 4"):
        convert_to_folder(case.sources, tmp_path / "folder", ToFolder(**options))
    with pytest.raises(ConversionError, match="give either a processor or tokenizers"):
        convert_to_folder(case.sources, tmp_path / "folder", ToFolder(**options, tokenizer=bundled_checkpoint()))


def stock_first_stage():
    qformer = {**tiny_stock_models.QFORMER, "use_qformer_text_input": True}
    config = transformers.Blip2Config(vision_config=tiny_stock_models.VISION, qformer_config=qformer)
    return transformers.Blip2ForImageTextRetrieval(config)


@pytest.mark.parametrize("make", [stock_model, tiny_stock_models.blip2, stock_first_stage])
def test_what_stock_transformers_saved(make, tmp_path):
    model = make()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("qkv.bias"):
                parameter.normal_()
                parameter.view(3, -1)[1] = 0
    model.save_pretrained(tmp_path / "stock")
    convert_to_lavis(tmp_path / "stock", tmp_path / "lavis.pth")
    convert_to_folder([tmp_path / "lavis.pth"], tmp_path / "back")
    assert lavis.same_bits(weights(tmp_path / "stock"), weights(tmp_path / "back")) == set()
    _, info = type(model).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info


def test_the_example(capsys):
    example = Path(__file__).parents[2] / "examples" / "lavis_checkpoints.py"
    runpy.run_path(str(example))["main"]()
    assert "what color is the circle?  before: blue  after: blue" in capsys.readouterr().out


def without_version(config):
    """A configuration without what says which transformers wrote it, of its parts too."""
    names = [name for name in config if name not in ("transformers_version", "_name_or_path")]
    return {name: without_version(config[name]) if isinstance(config[name], dict) else config[name] for name in names}


def embedding_of(folder):
    return transformers.T5ForConditionalGeneration.from_pretrained(folder).get_input_embeddings().weight


def renamed(folder, target, old, new):
    """A copy of a folder with one of its tensors under another of its names."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    tensors = weights(target)
    tensors[new] = tensors.pop(old)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_shared_weights_under_another_of_their_names(cases, tmp_path):
    """Which name of T5's embedding a folder has depends on the version of transformers that saved it."""
    case = cases("stage-2-t5")
    names = ("shared.weight", "decoder.embed_tokens.weight")
    llm = renamed(case.options["llm"], tmp_path / "llm", *names)
    options = ToFolder(**{**case.options, "llm": llm})
    if torch.equal(embedding_of(llm), embedding_of(case.options["llm"])):
        convert_to_folder(case.sources, tmp_path / "folder", options)
        assert lavis.same_bits(weights(tmp_path / "folder"), weights(case.folder)) == set()
    else:
        # transformers 5.17 takes the head, which this T5 has of its own, for the embedding.
        with pytest.raises(
            ConversionError, match="the written model does not compute what the weights it was made of"
        ):
            convert_to_folder(case.sources, tmp_path / "folder", options)
    names = tuple(f"language_model.{name}" for name in names)
    convert_to_lavis(renamed(case.folder, tmp_path / "renamed", *names), tmp_path / "one.pth")
    convert_to_lavis(case.folder, tmp_path / "other.pth")
    assert lavis.same_bits(lavis.load(tmp_path / "one.pth"), lavis.load(tmp_path / "other.pth")) == set()


def test_a_head_of_its_own_is_no_embedding():
    """In whatever order a version of transformers names what is shared."""
    tied = dict.fromkeys(("lm_head.weight", "encoder.embed_tokens.weight"), "shared.weight")
    for order in (tied, dict(reversed(tied.items()))):
        spec = ModelSpec({}, order, ("shared.weight", "lm_head.weight"))
        first = by_first_names({"lm_head.weight": "head", "encoder.embed_tokens.weight": "embedding"}, spec)
        assert first == {"lm_head.weight": "head", "shared.weight": "embedding"}
