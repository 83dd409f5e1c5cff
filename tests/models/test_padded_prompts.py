"""A cache of fixed size: tokens and scores of the plain path, and few compilations however long the prompts are."""

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig, GenerationConfig
from transformers.generation.streamers import BaseStreamer

import tiny_models


RAGGED = {"images_per_row": (1, 2, 1), "text_lengths": (6, 3, 9), "instruction_lengths": (7, 4, 2)}
MODELS = {
    "llama": lambda: tiny_models.our_model("llama"),
    "opt": lambda: tiny_models.our_blip_2("opt"),
    "t5": lambda: tiny_models.our_model("t5"),
    "llava": lambda: tiny_models.our_llava("qwen"),
}


def inputs_for(name, **options):
    inputs = tiny_models.batch(**{**RAGGED, **options})
    return inputs if name in ("llama", "t5") else {key: value for key, value in inputs.items() if "qformer" not in key}


def generate(model, inputs, **options):
    torch.manual_seed(3)
    options = {"max_new_tokens": 6, **options}
    return model.generate(**inputs, **options, return_dict_in_generate=True, output_scores=True)


@pytest.mark.parametrize("way", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
@pytest.mark.parametrize("name", MODELS)
def test_a_cache_of_fixed_size_answers_alike(name, way):
    model, inputs = MODELS[name](), inputs_for(name)
    with torch.no_grad():
        plain = generate(model, inputs, **way)
        for options in ({"cache_implementation": "static"}, {"pad_to_multiple_of": 16}):
            other = generate(model, inputs, **way, **options)
            assert other.sequences.tolist() == plain.sequences.tolist()
            torch.testing.assert_close(other.scores, plain.scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_the_prompt_is_cut_off_or_returned_without_padding(name):
    model, inputs = MODELS[name](), inputs_for(name)
    for return_full_text in (True, False):
        options = {"max_new_tokens": 4, "return_full_text": return_full_text}
        plain = model.generate(**inputs, **options)
        padded = model.generate(**inputs, **options, cache_implementation="static")
        assert padded.tolist() == plain.tolist()


def compilations(model, lengths, **options):
    torch._dynamo.reset()
    counters.clear()
    # On a GPU transformers compiles by itself, with CUDA graphs; here every shape gets a graph of its own.
    config = CompileConfig(backend="eager", mode=None, dynamic=False)
    config._compile_all_devices = True
    for length in lengths:
        inputs = tiny_models.batch(text_lengths=(length, length - 2))
        plain = model.generate(**inputs, max_new_tokens=4)
        compiled = model.generate(
            **inputs, max_new_tokens=4, cache_implementation="static", compile_config=config, **options
        )
        assert compiled.tolist() == plain.tolist()
    # Beside the language model's steps the vision tower and the Q-Former, which see the same shapes every time.
    return counters["stats"]["unique_graphs"] - 2


def test_ragged_prompts_are_no_recompilation_storm():
    lengths = range(6, 30, 4)
    assert compilations(tiny_models.our_model("llama"), lengths, pad_to_multiple_of=1) == len(lengths)
    assert compilations(tiny_models.our_model("llama"), lengths, pad_to_multiple_of=16) == 2  # 16 and 32 tokens
    assert compilations(tiny_models.our_model("llama"), lengths) == 1  # 64


def test_lengths_that_count_the_prompt():
    model, inputs = tiny_models.our_model("llama"), tiny_models.batch()
    length = inputs["input_ids"].shape[1] + 3
    plain = model.generate(**inputs, max_length=length)
    assert model.generate(**inputs, max_length=length, cache_implementation="static").tolist() == plain.tolist()
    with pytest.raises(ValueError, match=r"max_length counts the prompt: give max_new_tokens"):
        model.generate(**inputs, max_length=length, pad_to_multiple_of=8)
    with pytest.raises(ValueError, match=r"pad_to_multiple_of is 0; it must be at least 1"):
        model.generate(**inputs, pad_to_multiple_of=0)


@pytest.mark.parametrize("name", MODELS)
def test_the_length_of_the_model_where_a_configuration_says_none(name):
    """transformers fills in what a configuration leaves out from the model's own."""
    model, inputs = MODELS[name](), inputs_for(name)
    model.generation_config.max_length = inputs["input_ids"].shape[1] + 4
    model.generation_config.eos_token_id = None
    options = {"generation_config": GenerationConfig(num_beams=2, pad_token_id=0)}
    if name == "t5":
        options["generation_config"].decoder_start_token_id = 0
    plain = model.generate(**inputs, **options)
    assert model.generate(**inputs, **options, cache_implementation="static").tolist() == plain.tolist()


@pytest.mark.parametrize("name", MODELS)
def test_a_min_length_of_the_configuration_counts_the_prompt(name):
    """The end is as far away as it is without padding; an encoder's prompt is not counted."""
    model, inputs = MODELS[name](), inputs_for(name)
    model.generation_config.eos_token_id = list(range(3, 90))
    length = inputs["input_ids"].shape[1]
    for min_length in (length - 3, length + 5):
        model.generation_config.min_length = min_length
        plain = generate(model, inputs, max_new_tokens=8)
        other = generate(model, inputs, max_new_tokens=8, cache_implementation="static")
        assert other.sequences.tolist() == plain.sequences.tolist()
    if name == "t5":
        generate(model, inputs, max_new_tokens=8, pad_to_multiple_of=16)
    else:
        with pytest.raises(ValueError, match=r"generation_config.min_length counts the prompt: give max_new_tokens"):
            generate(model, inputs, max_new_tokens=8, pad_to_multiple_of=16)


class Streamed(BaseStreamer):
    def __init__(self):
        self.seen = []

    def put(self, value):
        self.seen.append(value.tolist())

    def end(self):
        self.seen.append("end")


@pytest.mark.parametrize("name", MODELS)
def test_a_streamer_gets_the_prompt_without_padding(name):
    model = MODELS[name]()
    inputs = inputs_for(name, images_per_row=(1,), text_lengths=(6,), instruction_lengths=(7,))
    plain, padded = Streamed(), Streamed()
    model.generate(**inputs, max_new_tokens=4, streamer=plain)
    model.generate(**inputs, max_new_tokens=4, streamer=padded, cache_implementation="static")
    assert padded.seen == plain.seen
