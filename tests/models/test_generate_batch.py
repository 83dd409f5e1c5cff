"""Continuous batching: every request is answered as alone, images and all."""

import pytest
import torch
from transformers.generation.configuration_utils import ContinuousBatchingConfig

import tiny_models


SMALL = {"num_blocks": 16, "max_batch_tokens": 48, "use_cuda_graph": False}


@pytest.mark.parametrize("family", ["our_model", "our_blip_2", "our_llava"])
def test_answers_are_those_of_generate(family):
    """Rows of one, two and no images, more tokens than one pass takes, padding on the left."""
    model = getattr(tiny_models, family)("llama")
    inputs = tiny_models.batch(
        images_per_row=(1, 2, 0, 1), text_lengths=(6, 3, 9, 20), instruction_lengths=(7, 4, 2, 5)
    )
    if family != "our_model":
        inputs = {name: value for name, value in inputs.items() if not name.startswith("qformer")}
    before = model.language_model.get_input_embeddings(), model.language_model.config._attn_implementation
    answers = model.generate_batch(
        **inputs, max_new_tokens=6, continuous_batching_config=ContinuousBatchingConfig(**SMALL)
    )
    expected = model.generate(**inputs, max_new_tokens=6, return_full_text=False)
    end = model.generation_config.eos_token_id
    for answer, row in zip(answers, expected.tolist(), strict=True):
        row = row[: row.index(end) + 1] if end in row else row
        assert answer.generated_tokens == row
    after = model.language_model.get_input_embeddings(), model.language_model.config._attn_implementation
    assert before[0] is after[0]
    assert before[1] == after[1]


def test_prompts_that_look_alike_are_told_apart():
    """The same words about other images: keys and values of equal token ids would be shared."""
    model = tiny_models.our_model("llama")
    inputs = tiny_models.batch(images_per_row=(1, 1), text_lengths=(20, 20), instruction_lengths=(4, 4))
    inputs["input_ids"][1] = inputs["input_ids"][0]
    inputs["pixel_values"][1] *= -5
    config = ContinuousBatchingConfig(**SMALL, block_size=8)
    answers = model.generate_batch(**inputs, max_new_tokens=8, continuous_batching_config=config)
    expected = model.generate(**inputs, max_new_tokens=8, return_full_text=False)
    assert [answer.generated_tokens for answer in answers] == expected.tolist()
    assert not torch.equal(expected[0], expected[1])


def test_answers_are_as_long_as_those_of_generate_where_nobody_says():
    model, inputs = tiny_models.our_model("llama"), tiny_models.batch()
    model.generation_config.eos_token_id = None
    answers = model.generate_batch(**inputs, continuous_batching_config=ContinuousBatchingConfig(**SMALL))
    expected = model.generate(**inputs, return_full_text=False).tolist()
    assert [answer.generated_tokens for answer in answers] == expected
    model.generation_config.max_length = 30
    with pytest.raises(ValueError, match="max_length is 30 and counts the prompt: give max_new_tokens"):
        model.generate_batch(**inputs)


def test_what_it_does_not_take():
    with pytest.raises(ValueError, match="for causal language models"):
        tiny_models.our_model("t5").generate_batch(**tiny_models.batch())
    model = tiny_models.our_model("llama")
    model.generation_config.num_beams = 5
    with pytest.raises(ValueError, match="num_beams is 5; generate_batch takes 1"):
        model.generate_batch(**tiny_models.batch())
