"""Folders that LLaVA's own code wrote (llava_original/, see README.md): the outputs are those that it computed itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from instructblip_hf import LlavaForConditionalGeneration, LlavaProcessor
from instructblip_hf.conversion import ConversionError, FromLlava, convert_llava, is_original_llava
from tiny_models import our_llava


ORIGINAL = Path(__file__).parent / "llava_original"
OUTPUTS = load_file(ORIGINAL / "outputs.safetensors")
LLM, CLIP = ORIGINAL / "llm", ORIGINAL / "clip"
NEEDS = {
    "full_mlp": {},
    "full_linear": {},
    "projector": {"llm": LLM},
    "lora": {"llm": LLM},
}
# What OUTPUTS were computed for: 1, 7, an image, 11, 12, 13.
BEFORE, AFTER = [1, 7], [11, 12, 13]


@pytest.fixture
def tokenizer_folder(tmp_path):
    """A tokenizer of 58 tokens."""
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(55))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def inputs_for(model):
    tokens = model.config.image_seq_length
    ids = torch.tensor([[*BEFORE, *[model.config.image_token_id] * tokens, *AFTER]])
    return {"input_ids": ids, "pixel_values": OUTPUTS["pixel_values"]}


@pytest.mark.parametrize("name", NEEDS)
def test_outputs_are_llavas_own(tmp_path, name):
    report = convert_llava(ORIGINAL / name, tmp_path / "ours", FromLlava(vision_tower=CLIP, **NEEDS[name]))
    assert report.kind == f"llava ({ {'projector': 'projector', 'lora': 'lora'}.get(name, 'model') })"
    ours = LlavaForConditionalGeneration.from_pretrained(tmp_path / "ours")
    stock = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "ours")
    assert type(stock) is transformers.LlavaForConditionalGeneration
    for model in (ours, stock):
        logits = model(**inputs_for(ours)).logits
        assert logits.shape[1] == OUTPUTS[name].shape[1]
        torch.testing.assert_close(logits[..., :60], OUTPUTS[name], rtol=1e-5, atol=1e-5)
    assert ours.config.projector_type == ("linear" if name == "full_linear" else "mlp")
    assert ours.config.vision_feature_select_strategy == ("full" if name == "full_linear" else "default")
    assert ours.config.vision_feature_layer == (-1 if name == "full_linear" else -2)


@pytest.mark.parametrize("name", NEEDS)
def test_the_folders_name_says_nothing(tmp_path, name):
    """LLaVA's loader goes by the words "llava" and "lora" in it."""
    shutil.copytree(ORIGINAL / name, tmp_path / "lora-llava-mpt")
    convert_llava(tmp_path / "lora-llava-mpt", tmp_path / "ours", FromLlava(vision_tower=CLIP, **NEEDS[name]))
    ours = LlavaForConditionalGeneration.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(ours(**inputs_for(ours)).logits[..., :60], OUTPUTS[name], rtol=1e-5, atol=1e-5)


def test_processor_and_chat_template(tmp_path, tokenizer_folder):
    options = FromLlava(vision_tower=CLIP, tokenizer=tokenizer_folder, chat_template="llava_llama_2")
    report = convert_llava(ORIGINAL / "full_mlp", tmp_path / "ours", options)
    assert any("the chat template is llava_llama_2" in note for note in report.notes)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "ours")
    processor = LlavaProcessor.from_pretrained(tmp_path / "ours")
    assert processor.image_token_id == model.config.image_token_id == 58
    assert model.get_input_embeddings().weight.shape[0] == 60
    assert processor.tokens_per_image == model.config.image_seq_length == 4
    assert type(processor.image_processor) is transformers.LlavaImageProcessorPil
    assert processor.image_processor.do_pad
    assert processor.tokenizer.pad_token == "<unk>"
    prompt = processor.user_turn("w7 w8")
    assert prompt.startswith("<s>[INST] <<SYS>>")
    inputs = processor(images=Image.new("RGB", (40, 20), "red"), text=prompt, return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=3, return_full_text=False).shape == (1, 3)


def test_text_is_split_at_images_where_it_shows(tmp_path, tokenizer_folder):
    """LLaMA's tokenizer with ``legacy=False`` marks the first word behind an image in LLaVA's code."""
    options = FromLlava(vision_tower=CLIP, tokenizer=tokenizer_folder)
    convert_llava(ORIGINAL / "full_mlp", tmp_path / "as_it_is", options)
    assert not LlavaProcessor.from_pretrained(tmp_path / "as_it_is").split_at_images
    file = tokenizer_folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "legacy": False}))
    convert_llava(ORIGINAL / "full_mlp", tmp_path / "split", options)
    assert LlavaProcessor.from_pretrained(tmp_path / "split").split_at_images


def test_square_images_are_cropped_as_clips(tmp_path, tokenizer_folder):
    convert_llava(
        ORIGINAL / "full_linear", tmp_path / "ours", FromLlava(vision_tower=CLIP, tokenizer=tokenizer_folder)
    )
    processor = LlavaProcessor.from_pretrained(tmp_path / "ours")
    original = transformers.CLIPImageProcessorPil.from_pretrained(CLIP)
    image = Image.effect_noise((50, 31), 80).convert("RGB")
    pixels = processor(images=image, text="w3", return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, original(image, return_tensors="pt")["pixel_values"])
    assert processor.tokens_per_image == 5


def test_lora_is_merged_as_peft_merges_it(tmp_path):
    convert_llava(ORIGINAL / "lora", tmp_path / "ours", FromLlava(llm=LLM, vision_tower=CLIP))
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    from peft import PeftModel

    base = transformers.AutoModelForCausalLM.from_pretrained(LLM)
    merged = PeftModel.from_pretrained(base, ORIGINAL / "lora").merge_and_unload().state_dict()
    changed = 0
    for name, tensor in merged.items():
        found = ours[f"language_model.{name}"][: len(tensor)]
        torch.testing.assert_close(found, tensor, rtol=1e-6, atol=1e-6)
        changed += not torch.equal(found, load_file(LLM / "model.safetensors")[name])
    assert changed == 14


def test_a_first_stage_alone_becomes_a_connector(tmp_path):
    report = convert_llava(ORIGINAL / "projector", tmp_path / "connector", FromLlava(vision_tower=CLIP))
    assert sorted(file.name for file in (tmp_path / "connector").iterdir()) == [
        "projector.safetensors",
        "projector_config.json",
    ]
    assert len(report.rows) == 4
    convert_llava(ORIGINAL / "projector", tmp_path / "whole", FromLlava(llm=LLM, vision_tower=CLIP))
    whole = LlavaForConditionalGeneration.from_pretrained(tmp_path / "whole")
    expected = whole(**inputs_for(whole)).logits
    for parameter in whole.multi_modal_projector.parameters():
        torch.nn.init.zeros_(parameter)
    whole.load_projector(tmp_path / "connector")
    assert torch.equal(whole(**inputs_for(whole)).logits, expected)
    with pytest.raises(ValueError, match="does not fit"):
        our_llava().load_projector(tmp_path / "connector")


def changed(tmp_path, name, **settings):
    folder = tmp_path / "changed"
    shutil.copytree(ORIGINAL / name, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return folder


def test_towers_that_are_known_by_name(tmp_path):
    """Weights of the tower are in the folder, and nothing else of it is needed."""
    folder = changed(tmp_path, "full_mlp", mm_vision_tower="openai/clip-vit-large-patch14-336")
    with pytest.raises(ConversionError, match=r"embeddings.patch_embedding.weight is of shape 1024 x 3 x 14 x 14"):
        convert_llava(folder, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "full_mlp",
            {"mm_projector_type": "mlp3x_gelu"},
            "mm_projector_type .* is 'mlp3x_gelu'; converted are linear",
        ),
        ("full_mlp", {"image_aspect_ratio": "anyres"}, "image_aspect_ratio .* is 'anyres'; converted are square, pad"),
        ("full_mlp", {"model_type": "llava_mpt"}, "model_type .* is 'llava_mpt'"),
        ("full_mlp", {"mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type .* is 'spatial_unpad'"),
        ("full_mlp", {"mm_projector_type": "linear"}, "model.mm_projector.2.weight .* has no place"),
        ("full_mlp", {"num_hidden_layers": 3}, r"nothing in the files makes language_model.model.layers.2"),
        ("projector", {"mm_hidden_size": 16, "hidden_size": 32}, r"of shape"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, name, settings, message):
    folder = changed(tmp_path, name, **settings)
    with pytest.raises(ConversionError, match=message):
        convert_llava(folder, tmp_path / "ours", FromLlava(vision_tower=CLIP, **NEEDS[name]))
    assert not (tmp_path / "ours").exists()


def test_parts_that_are_missing(tmp_path):
    with pytest.raises(ConversionError, match=r"names 'clip' as vision tower: give its folder \(vision_tower\)"):
        convert_llava(ORIGINAL / "full_mlp", tmp_path / "ours")
    with pytest.raises(ConversionError, match=r"is a LoRA adapter: give the folder of its language model \(llm\)"):
        convert_llava(ORIGINAL / "lora", tmp_path / "ours", FromLlava(vision_tower=CLIP))
    folder = changed(tmp_path, "lora")
    (folder / "non_lora_trainables.bin").unlink()
    with pytest.raises(ConversionError, match=r"lacks non_lora_trainables.bin"):
        convert_llava(folder, tmp_path / "ours", FromLlava(llm=LLM, vision_tower=CLIP))
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ConversionError, match="holds no weights"):
        convert_llava(folder, tmp_path / "ours", FromLlava(llm=LLM, vision_tower=CLIP))
    with pytest.raises(ConversionError, match="is there already"):
        convert_llava(ORIGINAL / "full_mlp", folder, FromLlava(vision_tower=CLIP))


def test_images_between_their_own_tokens(tmp_path, tokenizer_folder):
    """``mm_use_im_start_end``, as in the first checkpoints."""
    folder = changed(tmp_path, "full_mlp", mm_use_im_start_end=True)
    options = FromLlava(vision_tower=CLIP, tokenizer=tokenizer_folder)
    with pytest.raises(ConversionError, match=r"images stand between <im_start> and <im_end>, which the tokenizer of"):
        convert_llava(folder, tmp_path / "ours", options)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.add_tokens(["<im_start>", "<im_end>"], special_tokens=True)
    tokenizer.save_pretrained(tokenizer_folder)
    convert_llava(folder, tmp_path / "ours", options)
    processor = LlavaProcessor.from_pretrained(tmp_path / "ours")
    assert "USER: <im_start><image><im_end>\nw7 ASSISTANT:" in processor.user_turn("w7")
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert model.config.image_token_id == 60
    assert model.get_input_embeddings().weight.shape[0] == 61


def test_other_folders_are_not_llavas(tmp_path):
    assert is_original_llava(ORIGINAL / "lora")
    assert not is_original_llava(LLM)
    assert not is_original_llava(tmp_path)
    our_llava().save_pretrained(tmp_path)
    assert not is_original_llava(tmp_path)
