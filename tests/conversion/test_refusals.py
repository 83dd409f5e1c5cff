"""What cannot be converted is refused with its reason, and leaves nothing behind."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

import lavis_files as lavis
from instructblip_hf.conversion import (
    ConversionError,
    Heads,
    ToFolder,
    ToLavis,
    convert_to_folder,
    convert_to_lavis,
)
from instructblip_hf.conversion import plan_folder as planning
from instructblip_hf.conversion import to_folder as act


@pytest.fixture
def vicuna(cases):
    return cases("instructblip-vicuna")


def refused(sources, root, *expected, **options):
    """Converts to a folder, which must fail with all of the messages and leave the folder as it was."""
    before = sorted(root.iterdir())
    with pytest.raises(ConversionError) as raised:
        convert_to_folder(sources, root / "target", ToFolder(**options))
    assert sorted(root.iterdir()) == before
    message = "\n".join(raised.value.problems)
    for part in expected:
        assert part in message, message
    return raised.value.problems


def changed(case, root, **changes):
    """The sources with tensors of the checkpoint replaced, or left out where `None`; ``__`` stands for a dot."""
    tensors = lavis.load(case.checkpoint)
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        if tensor is None:
            tensors.pop(name)
        else:
            tensors[name] = tensor
    return [lavis.save(root / "changed.pth", tensors), *case.sources[1:]]


def test_tensors_without_a_place_are_all_named(vicuna, tmp_path):
    sources = changed(vicuna, tmp_path, audio_proj__weight=torch.zeros(2, 3), Qformer__pooler=torch.zeros(5))
    problems = refused(sources, tmp_path, **vicuna.options)
    assert problems == [
        "audio_proj.weight of changed.pth, of shape 2 x 3, has no place in instructblip",
        "Qformer.pooler of changed.pth, of shape 5, has no place in instructblip",
    ]


def test_a_layer_too_many_has_no_place(vicuna, tmp_path):
    name = "Qformer__bert__encoder__layer__1__crossattention__self__key__weight"
    sources = changed(vicuna, tmp_path, **{name: torch.zeros(24, 32)})
    refused(sources, tmp_path, "cross-attention is in the Q-Former's layers 0, 1, 2 of 4", **vicuna.options)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "llm_proj__weight",
            (30, 24),
            "llm_proj.weight of changed.pth is of shape 30 x 24; language_projection.weight is",
        ),
        (
            "ln_vision__bias",
            (31,),
            "ln_vision.bias of changed.pth is of shape 31; vision_model.post_layernorm.bias is",
        ),
        ("Qformer__bert__encoder__layer__3__output_query__dense__weight", (24, 41), "is of shape 24 x 40"),
    ],
)
def test_shapes_that_differ(vicuna, tmp_path, name, shape, message):
    refused(changed(vicuna, tmp_path, **{name: torch.zeros(shape)}), tmp_path, message, **vicuna.options)


def test_a_tensor_that_is_missing(vicuna, tmp_path):
    name = "Qformer.bert.encoder.layer.2.output.dense.bias"
    sources = changed(vicuna, tmp_path, **{name.replace(".", "__"): None})
    problems = refused(sources, tmp_path, **vicuna.options)
    assert problems == ["nothing in the files makes qformer.encoder.layer.2.output.dense.bias of shape 24"]


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("query_tokens", "query_tokens are missing"),
        ("ln_vision__weight", "ln_vision is missing"),
        ("Qformer__bert__embeddings__LayerNorm__weight", "the Q-Former (Qformer.bert.*) is missing"),
    ],
)
def test_parts_that_are_missing(vicuna, tmp_path, missing, message):
    refused(changed(vicuna, tmp_path, **{missing: None}), tmp_path, message, **vicuna.options)


def test_a_missing_part_is_told_with_the_file_that_brings_it(vicuna, cases, tmp_path):
    refused([vicuna.checkpoint], tmp_path, "give LAVIS's eva_vit_g.pth", **vicuna.options)
    without = {**vicuna.options, "llm": None}
    refused(vicuna.sources, tmp_path, "the language model's folder is missing (llm)", **without)
    second = cases("stage-2-vicuna")
    options = {**second.options, "kind": "instructblip"}
    refused(second.sources, tmp_path, "layers for text are missing: give the first stage's checkpoint", **options)
    options = {**second.options, "kind": "blip-2-pretraining"}
    refused(second.sources, tmp_path, "vision_proj is missing", "temp is missing", "Qformer.cls is missing", **options)
    refused([vicuna.tower], tmp_path, "these files make no model", **vicuna.options)


def test_a_trimmed_file_of_ours_asks_for_its_language_model(vicuna, tmp_path):
    convert_to_lavis(vicuna.folder, tmp_path / "trimmed.pth", ToLavis(trimmed=True))
    sources = [tmp_path / "trimmed.pth", vicuna.tower]
    refused(sources, tmp_path, "the language model is missing, 21 tensors: name its folder", vision_layers=2)
    convert_to_folder(sources, tmp_path / "back", ToFolder(llm=vicuna.options["llm"], vision_layers=2))
    before, after = (load_file(path / "model.safetensors") for path in (vicuna.folder, tmp_path / "back"))
    assert lavis.same_bits(before, after) == set()


def test_options_that_do_not_fit(vicuna, tmp_path):
    options = {**vicuna.options, "heads": Heads(vision=5, qformer=7)}
    refused(
        vicuna.sources,
        tmp_path,
        "vision_heads is 5, which does not divide the vision tower's width, 32",
        "qformer_heads is 7, which does not divide the Q-Former's width, 24",
        **options,
    )
    refused(vicuna.sources, tmp_path, "has 3 blocks, fewer than the 39", **{**vicuna.options, "vision_layers": 39})
    refused(vicuna.sources, tmp_path, "kind is 'blip'", **{**vicuna.options, "kind": "blip"})


def test_files_that_are_none_of_lavis(vicuna, tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(2)}}, tmp_path / "other.pth")
    refused([tmp_path / "other.pth"], tmp_path, "it has no entry 'model'", **vicuna.options)
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    refused([tmp_path / "list.pth"], tmp_path, "holds list", **vicuna.options)
    lavis.save(tmp_path / "text.pth", {"query_tokens": "no tensor"})
    refused([tmp_path / "text.pth"], tmp_path, "holds what is no named tensor: query_tokens (str)", **vicuna.options)
    (tmp_path / "noise.pth").write_bytes(b"no file of torch.save")
    refused([tmp_path / "noise.pth"], tmp_path, "noise.pth cannot be read", **vicuna.options)
    tower = {"visual_encoder.transformer.resblocks.0.attn.in_proj_weight": torch.zeros(3, 1)}
    sources = [lavis.save(tmp_path / "vit_l.pth", tower)]
    refused(sources, tmp_path, "was trained with CLIP's ViT-L", **vicuna.options)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("the file ran code",))


def test_files_do_not_run_code(vicuna, tmp_path):
    lavis.save(tmp_path / "trap.pth", lavis.load(vicuna.checkpoint), config=Trap())
    refused([tmp_path / "trap.pth"], tmp_path, "trap.pth cannot be read as tensors and plain values", **vicuna.options)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"model": Trap()}, protocol=2))
    refused([tmp_path / "plain.pth"], tmp_path, "plain.pth cannot be read", **vicuna.options)


def test_what_is_there_is_not_overwritten(vicuna, tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine.txt").write_text("mine")
    refused(vicuna.sources, tmp_path, "is there already", **vicuna.options)
    with pytest.raises(ConversionError, match="is there already"):
        convert_to_lavis(vicuna.folder, vicuna.checkpoint)
    (tmp_path / "empty").mkdir()
    convert_to_folder(vicuna.sources, tmp_path / "empty", ToFolder(**vicuna.options))


# --- nothing half-written, nothing wrong --------------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing(vicuna, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("instructblip_hf.conversion.writing.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        convert_to_folder(vicuna.sources, tmp_path / "target", ToFolder(**vicuna.options))
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        convert_to_lavis(vicuna.folder, tmp_path / "target.pth")
    assert list(tmp_path.iterdir()) == []


def test_bits_that_were_lost_on_the_way_are_found(vicuna, tmp_path, monkeypatch):
    def lossy(tensors, path, **options):
        tensors["query_tokens"][0, 0, 0] += 1e-3
        save_file(tensors, path, **options)

    monkeypatch.setattr("instructblip_hf.conversion.writing.save_file", lossy)
    refused(vicuna.sources, tmp_path, "query_tokens differs from what was to be written", **vicuna.options)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("_fuse", lambda query, value: torch.cat([value, torch.zeros_like(query), query])),
        ("_fuse", lambda query, value: torch.cat([query, value, torch.zeros_like(value)])),
    ],
)
def test_a_wrong_way_of_making_a_tensor_is_found_by_the_outputs(vicuna, tmp_path, monkeypatch, name, wrong):
    monkeypatch.setattr(planning, name, wrong)
    refused(vicuna.sources, tmp_path, "does not compute", "image features differ", **vicuna.options)


@pytest.mark.parametrize(
    ("rules", "first", "second"),
    [("VISION", 3, 4), ("QFORMER", 2, 4)],
)
def test_exchanged_names_are_found_by_the_outputs(cases, tmp_path, monkeypatch, rules, first, second):
    """A table that exchanges norm1 and norm2, or the outputs of both attentions, is wrong in both directions alike."""
    from instructblip_hf.conversion import lavis_keys

    case = cases("captioning-opt")
    table = list(getattr(lavis_keys, rules))
    (lavis_one, ours_one), (lavis_two, ours_two) = table[first], table[second]
    table[first], table[second] = (lavis_one, ours_two), (lavis_two, ours_one)
    monkeypatch.setattr(lavis_keys, rules, tuple(table))
    with pytest.raises(ConversionError):
        convert_to_folder(case.sources, tmp_path / "target", ToFolder(**case.options))
    assert list(tmp_path.iterdir()) == []


def test_a_language_model_that_computes_something_else_is_found(cases, tmp_path, monkeypatch):
    case = cases("stage-2-t5")
    own = act.model_config

    def other(*arguments):
        config = own(*arguments)
        config.text_config.dense_act_fn = "relu"
        return config

    monkeypatch.setattr(act, "model_config", other)
    refused(case.sources, tmp_path, "language model's logits differ", **case.options)


# --- to LAVIS -----------------------------------------------------------------------------------------------------------


def copied(case, root, change):
    """A copy of the case's folder with other weights."""
    target = root / "copy"
    target.mkdir()
    for file in case.folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    weights = load_file(target / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_a_key_bias_has_no_place_in_lavis(vicuna, tmp_path):
    def change(weights):
        weights["vision_model.encoder.layers.1.self_attn.qkv.bias"][40] = 0.5

    with pytest.raises(
        ConversionError, match=r"the key bias in .*layers\.1\.self_attn\.qkv\.bias is not zero, and LAVIS"
    ):
        convert_to_lavis(copied(vicuna, tmp_path, change), tmp_path / "lavis.pth")
    assert not (tmp_path / "lavis.pth").exists()


def test_folders_that_hold_another_model(vicuna, tmp_path):
    def change(weights):
        weights["extra"] = torch.zeros(2)
        weights["qformer.encoder.layer.0.output.dense.bias"] = torch.zeros(3)
        del weights["query_tokens"]

    with pytest.raises(ConversionError) as raised:
        convert_to_lavis(copied(vicuna, tmp_path, change), tmp_path / "lavis.pth")
    text = "\n".join(raised.value.problems)
    assert "extra of copy, of shape 2, has no place" in text
    assert "qformer.encoder.layer.0.output.dense.bias of copy is of shape 3; by the configuration it is 24" in text
    assert "the folder lacks query_tokens" in text
    with pytest.raises(ConversionError, match=r"holds LlamaForCausalLM; .*InstructBlipForConditionalGeneration"):
        convert_to_lavis(vicuna.options["llm"], tmp_path / "lavis.pth")


def test_models_that_lavis_does_not_have(tmp_path):
    import transformers

    import instructblip_hf
    from tiny_models import config_dict

    config = instructblip_hf.InstructBlipConfig(**config_dict("qwen"))
    instructblip_hf.InstructBlipForConditionalGeneration(config).save_pretrained(tmp_path / "qwen")
    with pytest.raises(ConversionError, match="the language model is of type qwen2; LAVIS has models with opt, t5"):
        convert_to_lavis(tmp_path / "qwen", tmp_path / "lavis.pth")
    clip = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = instructblip_hf.InstructBlipConfig(**{**config_dict("llama"), "vision_config": clip})
    instructblip_hf.InstructBlipForConditionalGeneration(config).save_pretrained(tmp_path / "clip")
    with pytest.raises(ConversionError, match="has a vision tower of type clip_vision_model"):
        convert_to_lavis(tmp_path / "clip", tmp_path / "lavis.pth")
