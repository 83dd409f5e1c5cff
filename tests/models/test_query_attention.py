"""Where the queries look: equal to the Q-Former's raw attentions read by hand, for several towers, and the patch grid."""

import runpy
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from transformers import BlipImageProcessorPil

from instructblip_hf import (
    Blip2ForPreTraining,
    Blip2Processor,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    bundled_checkpoint,
    query_attention,
)
from instructblip_hf.models.query_attention import patch_grid, qformer_of, reads_instruction
from tiny_llava import tiny_llava, tiny_llava_processor
from tiny_shapes import tiny_model, tiny_processor


EXAMPLE = str(Path(__file__).parents[2] / "examples" / "scene.png")
SCENE = Image.effect_noise((40, 30), 80).convert("RGB")
HEADS = {"num_attention_heads": 2, "num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 32}
TOWERS = {
    "eva": None,
    "clip": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**HEADS, image_size=56, patch_size=14)),
    "siglip": lambda: transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(**HEADS, image_size=56, patch_size=14)
    ),
    "dinov2 with registers": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**HEADS, image_size=56, patch_size=14, num_register_tokens=3)
    ),
}
OTHER_TOKENS = {"eva": 1, "clip": 1, "siglip": 0, "dinov2 with registers": 4}


def with_tower(name):
    """A tiny InstructBLIP whose Q-Former has cross-attention in every other of four layers."""
    if TOWERS[name] is None:
        return tiny_model().eval()
    torch.manual_seed(0)
    base = tiny_model()
    config = {**base.config.qformer_config.to_dict(), "num_hidden_layers": 4, "cross_attention_frequency": 2}
    return InstructBlipForConditionalGeneration.from_vision_text_pretrained(
        TOWERS[name](),
        base.language_model,
        processor=tiny_processor(),
        num_query_tokens=4,
        qformer_config=InstructBlipQFormerConfig(**config),
    )


@pytest.mark.parametrize("name", TOWERS)
def test_maps_are_the_raw_attentions_read_by_hand(name):
    model, processor = with_tower(name), tiny_processor()
    implementation = model.qformer.config._attn_implementation
    found = query_attention(model, processor, SCENE, "where is it ?")
    last = query_attention(model, processor, SCENE, "where is it ?", layer=-1)
    assert model.qformer.config._attn_implementation == implementation

    model.set_attn_implementation("eager")
    inputs = processor(images=SCENE, text="where is it ?", return_tensors="pt")
    features = model.get_image_features(
        inputs["pixel_values"], inputs["qformer_input_ids"], inputs["qformer_attention_mask"], output_attentions=True
    )
    raw = features.qformer_outputs.cross_attentions
    others = OTHER_TOKENS[name]
    assert found.maps.shape == last.maps.shape == (4, 4, 4)
    assert found.others.shape == (4, others)
    for query in range(4):
        for row in range(4):
            for column in range(4):
                token = others + 4 * row + column
                shares = [layer[0, head, query, token].item() for layer in raw for head in range(2)]
                assert found.maps[query, row, column].item() == pytest.approx(sum(shares) / len(shares), abs=1e-6)
                assert last.maps[query, row, column].item() == pytest.approx(sum(shares[-2:]) / 2, abs=1e-6)
        assert found.maps[query].sum() + found.others[query].sum() == pytest.approx(1, abs=1e-5)


def test_the_trained_model_looks_where_the_instruction_points():
    """The circle is at the bottom right; nothing is at the top left."""
    model = InstructBlipForConditionalGeneration.from_pretrained(bundled_checkpoint())
    processor = InstructBlipProcessor.from_pretrained(bundled_checkpoint())
    assert reads_instruction(model)
    corner, circle = (
        query_attention(model, processor, EXAMPLE, text, layer=1).maps.mean(0)  # [7 rows, 7 columns]
        for text in ("what shape is at the top left?", "what color is the circle?")
    )
    assert corner[:3, :3].sum() > 0.5 > circle[:3, :3].sum()
    assert circle[4:, 4:].sum() > 0.5 > corner[4:, 4:].sum()


def test_the_seen_image_is_the_processed_one():
    image_processor = BlipImageProcessorPil(size={"height": 56, "width": 56})
    processor = InstructBlipProcessor(
        image_processor, tiny_processor().tokenizer, tiny_processor().qformer_tokenizer, num_query_tokens=4
    )
    seen = query_attention(tiny_model().eval(), processor, SCENE, "what ?").image
    assert seen.size == (56, 56)
    expected = SCENE.resize((56, 56), Image.Resampling.BICUBIC)
    difference = torch.tensor(list(seen.tobytes())) - torch.tensor(list(expected.tobytes()))
    assert difference.abs().max() <= 1


def test_a_first_stage_looks_without_an_instruction():
    folder = bundled_checkpoint("blip2-shapes-tiny")
    model, processor = Blip2ForPreTraining.from_pretrained(folder), Blip2Processor.from_pretrained(folder)
    assert not reads_instruction(model)
    maps = [query_attention(model, processor, EXAMPLE, text).maps for text in ("", "what color ?")]
    assert torch.equal(*maps)
    assert maps[0].shape[0] == model.config.num_query_tokens


def test_a_q_former_as_llavas_connector_looks_at_patches_alone():
    """LLaVA hands the patches on without the class token."""
    qformer = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = tiny_llava(projector_type="qformer", num_query_tokens=3, qformer_config=qformer).eval()
    found = query_attention(model, tiny_llava_processor(num_query_tokens=3), SCENE, "what ?")
    assert found.maps.shape == (3, 4, 4)
    assert found.others.shape == (3, 0)
    model.set_attn_implementation("eager")
    inputs = tiny_llava_processor(num_query_tokens=3)(images=SCENE, return_tensors="pt")
    outputs = model.get_image_features(**inputs, output_attentions=True).qformer_outputs
    expected = torch.stack([layer[0].mean(0) for layer in outputs.cross_attentions]).mean(0)
    assert torch.allclose(found.maps.flatten(1), expected, atol=1e-6)


def test_the_example_writes_a_picture(tmp_path, monkeypatch):
    script = Path(EXAMPLE).parent / "query_attention.py"
    picture = tmp_path / "looks.png"
    monkeypatch.setattr("sys.argv", [str(script), EXAMPLE, "what color ?", "how many ?", "--output", str(picture)])
    runpy.run_path(str(script), run_name="__main__")
    assert Image.open(picture).width > 2 * 336


def test_what_cannot_be_looked_at_is_named():
    model, processor = tiny_model().eval(), tiny_processor()
    with pytest.raises(ValueError, match="layer is 2; the Q-Former has 1 with cross-attention"):
        query_attention(model, processor, SCENE, "what ?", layer=2)
    assert qformer_of(model.language_model) is None
    with pytest.raises(ValueError, match="LlamaForCausalLM has no Q-Former"):
        query_attention(model.language_model, processor, SCENE)


@pytest.mark.parametrize(
    ("tokens", "height", "width", "patch_size", "grid"),
    [
        (257, 224, 224, 14, (16, 16)),
        (256, 224, 224, 14, (16, 16)),
        (1 + 4 * 7, 56, 98, 14, (4, 7)),
        (1 + 8 * 7, 56, 98, (7, 14), (8, 7)),
        (49, 224, 224, 4, (7, 7)),  # Swin: patches of 4 merged three times
        (50, 224, 224, None, (7, 7)),
        (49, 224, 224, None, (7, 7)),
    ],
)
def test_grid(tokens, height, width, patch_size, grid):
    assert patch_grid(tokens, height, width, patch_size) == grid


@pytest.mark.parametrize(
    ("tokens", "height", "width", "patch_size"), [(200, 224, 224, 14), (52, 224, 224, None), (50, 224, 224, 4)]
)
def test_no_grid(tokens, height, width, patch_size):
    with pytest.raises(ValueError, match=f"{tokens} tokens"):
        patch_grid(tokens, height, width, patch_size)
