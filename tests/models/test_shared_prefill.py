"""Beams and samples with one reading of the prompt: tokens and scores of the plain path and of stock transformers."""

import contextlib
import logging

import pytest
import torch
from transformers import DynamicCache

import tiny_models
from instructblip_hf.models import modeling_base


BATCH = {"images_per_row": (1, 2), "text_lengths": (6, 3), "instruction_lengths": (7, 4)}
WAYS = {
    "beams": {"num_beams": 3, "max_new_tokens": 6},
    "all beams": {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 6, "length_penalty": 0.5},
    "early stopping": {"num_beams": 4, "early_stopping": True, "max_new_tokens": 8},
    "never early": {"num_beams": 2, "early_stopping": "never", "max_new_tokens": 6, "no_repeat_ngram_size": 2},
    "samples": {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 6, "top_k": 20},
    "sampled beams": {"do_sample": True, "num_beams": 3, "max_new_tokens": 5, "temperature": 1.5},
    "constrained": {"num_beams": 3, "max_new_tokens": 5, "repetition_penalty": 1.4, "min_new_tokens": 3},
}


@contextlib.contextmanager
def rows_read(language_model):
    """Shape (rows, tokens) of each pass of a language model."""
    passes = []

    def note(module, args, kwargs):
        inputs = kwargs.get("inputs_embeds")
        passes.append(tuple((inputs if inputs is not None else kwargs["input_ids"]).shape[:2]))

    handle = language_model.register_forward_pre_hook(note, with_kwargs=True)
    yield passes
    handle.remove()


def generate(model, inputs, **options):
    torch.manual_seed(7)
    return model.generate(**inputs, **options, return_dict_in_generate=True, output_scores=True, output_logits=True)


def same(ours, other, prompt_length=0):
    assert ours.sequences.tolist() == other.sequences[:, prompt_length:].tolist()
    for name in ("sequences_scores", "scores", "logits"):
        own, theirs = getattr(ours, name, None), getattr(other, name, None)
        assert (own is None) == (theirs is None)
        if own is not None:
            torch.testing.assert_close(own, theirs, atol=1e-5, rtol=1e-5)
    if getattr(other, "beam_indices", None) is not None:
        assert ours.beam_indices.tolist() == other.beam_indices.tolist()


@pytest.mark.parametrize("kind", ["llama", "opt", "gemma"])
@pytest.mark.parametrize("way", WAYS)
def test_as_if_every_copy_were_read(way, kind, monkeypatch):
    """Left padding, and rows of one and of two images."""
    model, inputs = tiny_models.our_model(kind), tiny_models.batch(**BATCH)
    with rows_read(model.language_model) as passes:
        once = generate(model, inputs, **WAYS[way])
    assert passes[0] == tuple(inputs["input_ids"].shape)
    copies = max(WAYS[way].get("num_beams", 1), WAYS[way].get("num_return_sequences", 1))
    assert passes[1] == (2 * copies, 1)
    monkeypatch.setattr(modeling_base, "prompts_read_once", lambda model: contextlib.nullcontext())
    with rows_read(model.language_model) as passes:
        plain = generate(model, inputs, **WAYS[way])
    assert passes[0] == (2 * copies, inputs["input_ids"].shape[1])
    same(once, plain)


@pytest.mark.parametrize("way", ["beams", "all beams", "early stopping", "samples"])
@pytest.mark.parametrize("family", ["instructblip", "blip-2", "llava"])
def test_as_stock_transformers(way, family):
    names = {"instructblip": ("our_model", "stock_model"), "blip-2": ("our_blip_2", "stock_blip_2")}
    ours, stock = (getattr(tiny_models, name)("llama") for name in names.get(family, ("our_llava", "stock_llava")))
    inputs = tiny_models.batch()
    if family != "instructblip":
        inputs = {name: value for name, value in inputs.items() if not name.startswith("qformer")}
    expected = generate(stock, inputs, **WAYS[way])
    own = generate(ours, inputs, **WAYS[way])
    same(own, expected)


def test_encoder_decoders_are_left_alone():
    model, inputs = tiny_models.our_model("t5"), tiny_models.batch(**BATCH)
    torch.testing.assert_close(
        generate(model, inputs, **WAYS["beams"]).sequences_scores,
        generate(tiny_models.stock_model("t5"), inputs, **WAYS["beams"]).sequences_scores,
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"cache_implementation": "static"}, "the cache is a StaticCache"),
        ({"output_hidden_states": True}, "hidden states or attentions"),
        ({"output_attentions": True}, "hidden states or attentions"),
        ({"past_key_values": "empty"}, None),
    ],
)
def test_what_cannot_be_repeated_is_read_as_before(options, reason, caplog):
    model, inputs = tiny_models.our_model("llama"), tiny_models.batch(**BATCH)
    model.set_attn_implementation("eager")
    plain = generate(model, inputs, **WAYS["beams"])
    if "past_key_values" in options:
        options = {"past_key_values": DynamicCache(config=model.language_model.config)}
    with caplog.at_level(logging.INFO, "instructblip_hf"), rows_read(model.language_model) as passes:
        other = generate(model, inputs, **WAYS["beams"], **options)
    assert other.sequences.tolist() == plain.sequences.tolist()
    assert passes[0][0] == (2 if reason is None else 6)
    assert (f"each of 3 copies of a prompt is read: {reason}" in caplog.text) == (reason is not None)
    if "output_hidden_states" in options:
        assert other.hidden_states[0][0].shape[0] == 6


def test_nothing_is_left_behind():
    model, inputs = tiny_models.our_model("llama"), tiny_models.batch()
    with pytest.raises(ValueError, match="num_return_sequences"):
        model.generate(**inputs, num_beams=2, num_return_sequences=3)
    generate(model, inputs, **WAYS["beams"])
    assert "_prefill" not in vars(model.language_model)
