"""Converted weights compute what LAVIS's own layers computed with them (numbers from a run of LAVIS, see README.md)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import lavis_files as lavis
from instructblip_hf import AutoModelForVision2Seq, Blip2ForImageTextRetrieval
from instructblip_hf.conversion import Heads, ToFolder, convert_to_folder
from instructblip_hf.conversion.probe import LavisForward
from instructblip_hf.conversion.stored_tensors import StoredTensor


RUN = load_file(Path(__file__).parent / "lavis_layers.safetensors")
PIXELS, IDS, MASK = (RUN[f"inputs/{name}"] for name in ("pixel_values", "input_ids", "attention_mask"))
HEADS = Heads(vision=4, qformer=2)
TEXT_PARTS = (".embeddings.word_embeddings.", ".embeddings.position_embeddings.", ".intermediate.", ".output.")


def weights(*left_out):
    named = {name.removeprefix("weights/"): tensor for name, tensor in RUN.items() if name.startswith("weights/")}
    return {name: tensor for name, tensor in named.items() if not name.startswith(left_out)}


def close(found, name):
    torch.testing.assert_close(found, RUN[f"outputs/{name}"], atol=1e-5, rtol=1e-5)


@pytest.fixture
def opened(tmp_path):
    def convert(tensors, kind, opener):
        options = {"heads": HEADS, "kind": kind}
        if kind in ("instructblip", "blip-2"):
            config = transformers.LlamaConfig(
                hidden_size=12, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=30
            )
            options["llm"] = tmp_path / "llm"
            transformers.LlamaForCausalLM(config).save_pretrained(options["llm"])
        convert_to_folder([lavis.save(tmp_path / "lavis.pth", tensors)], tmp_path / kind, ToFolder(**options))
        model = opener.from_pretrained(tmp_path / kind).eval()
        # The one thing that the layout has no place for.
        model.vision_model.post_layernorm.eps = 1e-5
        return model

    return convert


@torch.no_grad()
def test_instructblip(opened):
    tensors = weights("vision_proj", "text_proj", "itm_head", "temp", "Qformer.cls")
    model = opened(tensors, "instructblip", AutoModelForVision2Seq)
    close(model.vision_model(PIXELS).last_hidden_state, "image_features")
    features = model.get_image_features(PIXELS, qformer_input_ids=IDS, qformer_attention_mask=MASK)
    close(features.qformer_outputs.last_hidden_state[:, :4], "instructed_queries")
    close(features.pooler_output, "projected")


@torch.no_grad()
def test_second_stage(opened):
    tensors = weights("vision_proj", "text_proj", "itm_head", "temp", "Qformer.cls")
    tensors = {name: tensor for name, tensor in tensors.items() if not _is_of_text(name)}
    close(
        opened(tensors, "blip-2", AutoModelForVision2Seq).get_image_features(PIXELS).pooler_output,
        "projected_without_text",
    )


def _is_of_text(name):
    return name.startswith("Qformer.") and "attention" not in name and any(part in name for part in TEXT_PARTS)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["blip-2-retrieval", "blip-2-pretraining"])
def test_first_stage(opened, kind):
    import instructblip_hf

    opener = Blip2ForImageTextRetrieval if kind == "blip-2-retrieval" else instructblip_hf.Blip2ForPreTraining
    model = opened(weights("llm_proj"), kind, opener)
    images = model.get_image_features(PIXELS)
    close(images.image_embeds, "image_embeds")
    close(model.get_text_features(IDS, MASK).text_embeds, "text_embeds")
    close(model.get_matching_logits(IDS, MASK, image_states=images.last_hidden_state), "matching_logits")
    if kind == "blip-2-pretraining":
        assert torch.equal(model.temp, RUN["weights/temp"])


@torch.no_grad()
def test_the_probe():
    """The functions that every conversion is compared with are LAVIS's, for queries, text, both and captioning."""
    stored = {name: StoredTensor.of(name, "lavis.pth", tensor) for name, tensor in weights().items()}
    forward = LavisForward(stored, HEADS.vision, HEADS.qformer)
    features = forward.image_features(forward.image_states(PIXELS))
    close(features, "image_features")
    close(forward.qformer(features), "queries")
    text = MASK[:, None, None].bool()
    both = torch.cat([torch.ones(2, 1, 1, 4, dtype=torch.bool), text], dim=-1)
    instructed = forward.qformer(features, IDS, both)[:, :4]
    close(instructed, "instructed_queries")
    close(forward.project(instructed, "llm_proj"), "projected")
    embeds = forward.project(forward.qformer(input_ids=IDS, attention_mask=text)[:, 0], "text_proj")
    close(torch.nn.functional.normalize(embeds, dim=-1), "text_embeds")
    # Queries see queries; a word sees all queries and the words before it.
    causal = both.expand(2, 1, 10, 10) & torch.ones(10, 10).tril().bool()
    causal[:, :, :4, :4] = True
    found = forward.language_head(forward.qformer(features, IDS, causal)[:, 4:])
    read = MASK.bool()
    expected = RUN["outputs/captioning_logits"]
    torch.testing.assert_close(found[read], expected[read], atol=1e-5, rtol=1e-5)
