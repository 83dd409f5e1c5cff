"""Continuous batching: every request is answered as alone, images and all."""

import copy
import threading

import pytest
import torch
import transformers
from transformers.generation.configuration_utils import ContinuousBatchingConfig

import tiny_models
from instructblip_hf import InstructBlipConfig, InstructBlipForConditionalGeneration
from instructblip_hf.models.language_models.continuous_batching import sized_config


SMALL = {"num_blocks": 16, "max_batch_tokens": 48, "use_cuda_graph": False}


@pytest.mark.parametrize(
    ("family", "kind"),
    [("our_model", "llama"), ("our_blip_2", "llama"), ("our_llava", "llama"), ("our_blip_2", "opt")],
)
def test_answers_are_those_of_generate(family, kind):
    """Rows of one, two and no images, more tokens than one pass takes, padding on the left."""
    model = getattr(tiny_models, family)(kind)
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


def read(answers):
    return [answer.generated_tokens for answer in answers]


@pytest.mark.parametrize("family", ["our_model", "our_blip_2", "our_llava"])
def test_requests_are_collected_batch_by_batch_from_images_that_are_kept(family):
    """Two batches about two images, encoded once, and rows without an image: answered in one call, two at the same time."""
    model = getattr(tiny_models, family)("llama")
    model.generation_config.eos_token_id = None
    pixels = tiny_models.batch(images_per_row=(1, 1))["pixel_values"]
    cache = model.encode_images(pixels)
    requests, expected = [], []
    for images, lengths, index in (((1, 0, 1), (6, 9, 3), [1, 0]), ((1, 1, 1), (2, 20, 5), [0, 0, 1])):
        inputs = tiny_models.batch(images, text_lengths=lengths, instruction_lengths=(2, 4, 3))
        if family != "our_model":
            inputs = {name: value for name, value in inputs.items() if not name.startswith("qformer")}
        inputs["pixel_values"] = pixels[index]
        expected += model.generate(**inputs, max_new_tokens=5, return_full_text=False).tolist()
        del inputs["pixel_values"]
        kept = {**inputs, "image_cache": cache, "image_index": torch.tensor(index)}
        requests += model.encode_requests(**kept)
    assert read(model.generate_batch(requests=requests, max_new_tokens=5, rows_at_once=2)) == expected
    assert read(model.generate_batch(**kept, max_new_tokens=5)) == expected[3:]
    assert model.generate_batch(requests=[]) == []


def many_requests(model, rows=12):
    """Of different lengths, in answers too."""
    model.generation_config.eos_token_id = list(range(40))
    lengths = tuple(3 + (5 * row) % 17 for row in range(rows))
    return tiny_models.batch((1,) * rows, text_lengths=lengths, instruction_lengths=(4,) * rows)


@pytest.mark.parametrize("rows", [1, 3, 12])
def test_so_many_rows_are_in_the_model_at_once(rows):
    model = tiny_models.our_model("llama")
    inputs = many_requests(model)
    passes = []
    last = model.language_model.model.layers[-1]
    # What each pass has of rows: lengths of their queries, in a sum that goes on.
    handle = last.register_forward_pre_hook(
        lambda module, arguments, options: passes.append(options["cu_seq_lens_q"].diff().count_nonzero().item()),
        with_kwargs=True,
    )
    answers = read(model.generate_batch(**inputs, max_new_tokens=9, rows_at_once=rows))
    handle.remove()
    assert max(passes) == rows
    assert len({len(answer) for answer in answers}) > 2
    for answer, one in zip(answers, model.generate(**inputs, max_new_tokens=9, return_full_text=False).tolist()):
        assert answer == one[: len(answer)]
        assert len(answer) == 9 or answer[-1] < 40
    # Fewer passes than in batches of so many, each as long as its longest answer.
    batches = [answers[start : start + rows] for start in range(0, 12, rows)]
    assert len(passes) <= sum(max(map(len, batch)) for batch in batches)


def test_a_cache_has_room_for_so_many_of_the_longest():
    model = tiny_models.our_model("llama")
    requests = model.encode_requests(**many_requests(model))
    longest = max(map(len, requests))
    config = sized_config(requests, 50, 3, model.language_model)
    assert config.max_requests_per_batch == 3
    assert 3 * (longest + 50) <= 32 * config.num_blocks <= 3 * (longest + 50 + 64)
    assert config.max_batch_tokens == 3 * longest
    assert sized_config(requests, 50, 100, model.language_model).max_requests_per_batch == 12


def test_who_fails_and_who_stops_leaves_no_thread_behind(monkeypatch):
    model = tiny_models.our_model("llama")
    inputs = many_requests(model)
    words = model.get_input_embeddings()
    asked = []

    def broken(module, arguments):
        asked.append(len(arguments))
        if len(asked) == 3:
            raise OSError("the disk is gone")

    handle = model.language_model.model.norm.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match=r"1?[0-9] of 12 requests got no answer: the disk is gone"):
        model.generate_batch(**inputs, max_new_tokens=9, rows_at_once=4)
    handle.remove()
    manager = "transformers.generation.continuous_batching.continuous_api.ContinuousBatchingManager"

    def interrupted(self, timeout=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"{manager}.get_result", interrupted)
        passes = []
        handle = model.language_model.model.norm.register_forward_pre_hook(lambda *arguments: passes.append(1))
        model.generation_config.eos_token_id = None
        with pytest.raises(KeyboardInterrupt):
            model.generate_batch(**inputs, max_new_tokens=100)
        handle.remove()
    assert len(passes) < 50  # it does not answer the rest first
    assert [thread.name for thread in threading.enumerate() if "_run_generation_loop" in thread.name] == []
    assert model.get_input_embeddings() is words
    assert len(model.generate_batch(**inputs, max_new_tokens=2)) == 12


def test_the_same_rows_go_through_the_model_together_every_time():
    """Rounding depends on the rows beside one's own."""
    model = tiny_models.our_model("llama")
    inputs = many_requests(model)
    seen = []
    for _ in range(2):
        passes = []
        handle = model.get_input_embeddings().register_forward_pre_hook(
            lambda module, arguments, passes=passes: passes.append(arguments[0].tolist())
        )
        model.generate_batch(**inputs, max_new_tokens=6, rows_at_once=5)
        handle.remove()
        seen.append(passes)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("given", [{}, {"max_new_tokens": 4}, {"max_new_tokens": 4, "eos_token_id": 5}])
def test_what_a_configuration_leaves_out_is_the_models(given):
    model = tiny_models.our_model("llama")
    inputs = many_requests(model)
    model.generation_config.max_new_tokens = 7
    config = transformers.GenerationConfig(**given)
    answers = read(model.generate_batch(**inputs, generation_config=config))
    ends = [given["eos_token_id"]] if "eos_token_id" in given else range(40)
    expected = model.generate(**inputs, generation_config=config, return_full_text=False).tolist()
    for answer, one in zip(answers, expected, strict=True):
        assert answer == one[: len(answer)]
        assert len(answer) == given.get("max_new_tokens", 7) or answer[-1] in ends


@pytest.mark.parametrize(
    ("name", "value"),
    [("repetition_penalty", 1.5), ("min_new_tokens", 1), ("min_length", 3), ("no_repeat_ngram_size", 2)]
    + [("bad_words_ids", [[3]]), ("guidance_scale", 2.0), ("num_return_sequences", 2), ("stop_strings", ["a"])],
)
def test_options_that_transformers_would_drop_are_refused(name, value):
    model = tiny_models.our_model("llama")
    config = copy.deepcopy(model.generation_config)
    setattr(config, name, value)
    with pytest.raises(ValueError, match=f"{name} is .*; generate_batch takes .*: use generate"):
        model.generate_batch(**tiny_models.batch(), generation_config=config)


def test_arguments_that_do_not_go_together():
    model, inputs = tiny_models.our_model("llama"), tiny_models.batch()
    requests = model.encode_requests(**inputs)
    with pytest.raises(ValueError, match="give one of input_ids and requests"):
        model.generate_batch(**inputs, requests=requests)
    with pytest.raises(ValueError, match="give one of input_ids and requests"):
        model.generate_batch()
    with pytest.raises(ValueError, match="have their images already: pixel_values cannot come beside them"):
        model.generate_batch(requests=requests, pixel_values=inputs["pixel_values"])
    with pytest.raises(ValueError, match="give one of rows_at_once and continuous_batching_config"):
        model.generate_batch(**inputs, rows_at_once=3, continuous_batching_config=ContinuousBatchingConfig(**SMALL))
    with pytest.raises(ValueError, match="rows_at_once is 0; it must be at least 1"):
        model.generate_batch(**inputs, rows_at_once=0)
    with pytest.raises(ValueError, match="which autocast does not reach"), torch.autocast("cpu", torch.bfloat16):
        model.generate_batch(**inputs)


def test_what_it_does_not_take():
    with pytest.raises(ValueError, match="for causal language models"):
        tiny_models.our_model("t5").generate_batch(**tiny_models.batch())
    mpt = transformers.MptConfig(vocab_size=100, d_model=32, n_heads=2, n_layers=1, max_seq_len=64)
    gemma = transformers.Gemma2Config(
        vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16
    )
    for text, message in (
        (mpt, "MptForCausalLM has an attention of its own, which continuous batching does not reach"),
        (gemma, "Gemma2ForCausalLM caps the scores of its attention"),
    ):
        config = InstructBlipConfig(**{**tiny_models.config_dict("llama"), "text_config": text.to_dict()})
        with pytest.raises(ValueError, match=message):
            InstructBlipForConditionalGeneration(config).generate_batch(**tiny_models.batch())
    model = tiny_models.our_model("llama")
    model.generation_config.num_beams = 5
    with pytest.raises(ValueError, match="num_beams is 5; generate_batch takes 1"):
        model.generate_batch(**tiny_models.batch())
