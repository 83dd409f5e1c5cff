"""Captions: those that the model says word by word, whatever is in the batch."""

import pytest
import torch

from instructblip_hf.capfilt import Captioner, CaptionOptions
from tiny_capfilt import captioner, drawn, picture
from tiny_llava import tiny_llava, tiny_llava_processor
from tiny_retrieval import retrieval_model, retrieval_processor


MODELS = [("opt", "blip-2"), ("t5", "blip-2"), ("llama", "instructblip")]
IMAGES = [picture(number) for number in range(3)]
KEYS = ["x", "y", "z"]


@torch.no_grad()
def said(maker, image, key, number):
    """A sampled caption of one image, by whole forwards without a cache, and draws hashed as the module tells."""
    import hashlib

    options, model = maker.options, maker.model
    inputs = dict(maker.processor(images=[[image]], text=[maker.prompt], return_tensors="pt"))
    seq2seq = model.config.is_encoder_decoder
    ids = torch.tensor([[0]]) if seq2seq else inputs["input_ids"]
    begin, end = ids.shape[1], 1 if seq2seq else 2
    for token in range(options.max_new_tokens):
        if seq2seq:
            logits = model(**inputs, decoder_input_ids=ids).logits[0, -1]
        else:
            inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            logits = model(**inputs).logits[0, -1]
        hashed = hashlib.blake2b(f"{options.seed}/{key}/{number}/{token}".encode(), digest_size=8).digest()
        word = drawn(logits, (int.from_bytes(hashed, "big") >> 11) / 2**53, options.top_p, options.temperature)
        ids = torch.cat([ids, torch.tensor([[word]])], 1)
        if word == end:
            break
    return maker.processor.batch_decode(ids[:, begin:], skip_special_tokens=True)[0].strip()


@pytest.mark.parametrize(("kind", "family"), MODELS)
def test_sampled_captions_are_said_word_by_word(kind, family):
    maker = captioner(kind, family, sampled=4, temperature=0.8, seed=5)
    captions = maker.captions(IMAGES, KEYS)
    assert captions == [[said(maker, image, key, number) for number in range(4)] for image, key in zip(IMAGES, KEYS)]
    assert len({caption for of_image in captions for caption in of_image}) > 6


def test_captions_end_where_the_chat_template_ends_answers(monkeypatch):
    answer = "{% generation %}{{ m['content'][0]['text'] }} red{% endgeneration %}"
    template = (
        f"{{% for m in messages %}}<image>{{% if m['role'] == 'assistant' %}}{answer}{{% endif %}}{{% endfor %}}"
    )
    processor = tiny_llava_processor(chat_template=template)
    maker = Captioner(tiny_llava(), processor, CaptionOptions(beam=0, sampled=1))
    assert processor.stop_strings == ["red"]
    said = processor.tokenizer("blue circle red square", add_special_tokens=False, return_tensors="pt")["input_ids"]
    asked = {}

    def generate(**options):
        asked.update(options)
        return said.repeat(len(IMAGES), 1)

    monkeypatch.setattr(maker.model, "generate", generate)
    assert maker.captions(IMAGES, KEYS) == [["blue circle"]] * len(IMAGES)
    stops = asked["stopping_criteria"](said, None)
    assert stops.tolist() == [False]
    assert asked["stopping_criteria"](said[:, :-1], None).tolist() == [True]


@pytest.mark.parametrize(("kind", "family"), MODELS)
def test_beam_captions_are_the_models_beams(kind, family):
    maker = captioner(kind, family, sampled=1, beam=2, num_beams=4)
    captions = maker.captions(IMAGES, KEYS)
    for image, of_image in zip(IMAGES, captions):
        inputs = maker.processor(images=[[image]], text=[maker.prompt], return_tensors="pt")
        ids = maker.model.generate(
            **inputs, num_beams=4, num_return_sequences=2, do_sample=False, max_new_tokens=6, return_full_text=False
        )
        assert of_image[:2] == [text.strip() for text in maker.processor.batch_decode(ids, skip_special_tokens=True)]
        assert len(of_image) == 3


def test_captions_do_not_depend_on_what_else_there_is():
    maker = captioner()
    captions = maker.captions(IMAGES, KEYS)
    torch.manual_seed(1)
    assert maker.captions(IMAGES[::-1], KEYS[::-1]) == captions[::-1]
    assert [maker.captions([image], [key])[0] for image, key in zip(IMAGES, KEYS)] == captions
    more = captioner(sampled=5).captions(IMAGES[:1], KEYS[:1])[0]
    assert more[:3] == captions[0]
    assert captioner(seed=1).captions(IMAGES, KEYS) != captions


def test_the_global_generator_is_left_alone():
    maker = captioner(beam=1)
    state = torch.get_rng_state()
    maker.captions(IMAGES, KEYS)
    assert torch.equal(torch.get_rng_state(), state)


def test_settings_of_the_checkpoint_do_not_count():
    maker = captioner()
    expected = maker.captions(IMAGES, KEYS)
    maker.model.generation_config.update(num_beams=3, temperature=0.1, top_k=1, top_p=0.1)
    assert maker.captions(IMAGES, KEYS) == expected


def test_shortest_captions(monkeypatch):
    ends = []
    for shortest in (0, 6):
        maker = captioner(sampled=20, min_new_tokens=shortest)
        generate = maker.model.generate

        def counted(generate=generate, **inputs):
            ids = generate(**inputs)
            ends.append(int((ids == 2).any(-1).sum()))
            return ids

        monkeypatch.setattr(maker.model, "generate", counted)
        maker.captions(IMAGES, KEYS)
    assert ends[0] > 0
    assert ends[1] == 0


def test_prompts_by_family():
    assert captioner(prompt=None).prompt == "a photo of"
    assert captioner("llama", "instructblip", prompt=None).prompt == "Describe the image."
    assert captioner(prompt="").prompt == ""
    assert len(captioner(prompt="").captions(IMAGES, KEYS)[2]) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampled": 0}, "sampled and beam are both 0"),
        ({"sampled": -1}, "sampled is -1; it must be at least 0"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be positive"),
        ({"min_new_tokens": 40}, "min_new_tokens is 40, more than max_new_tokens 30"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        CaptionOptions(**options)


def test_a_model_without_words_is_no_captioner():
    with pytest.raises(ValueError, match="Blip2ForImageTextRetrieval has no language model"):
        Captioner(retrieval_model(), retrieval_processor())
