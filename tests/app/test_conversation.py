"""Conversations: each answer is what `generate` gives on the turns so far, and stopping keeps what was said."""

import threading

import pytest
import torch
from PIL import Image

from instructblip_hf import Blip2ForConditionalGeneration, Blip2Processor
from instructblip_hf.app.conversation import Conversation
from instructblip_hf.app.streaming import settled, stream_text
from tiny_blip_2 import save_stages
from tiny_llava import tiny_llava, tiny_llava_processor
from tiny_shapes import tiny_model, tiny_processor


RED, BLUE = (Image.new("RGB", (30, 20), color) for color in ("red", "blue"))


def causal():
    return tiny_model("causal").eval(), tiny_processor()


def sequence_to_sequence():
    return tiny_model("seq2seq").eval(), tiny_processor()


@pytest.fixture(params=["causal", "seq2seq", "blip-2", "llava", "llava v1"])
def model_and_processor(request, tmp_path):
    if "llava" in request.param:
        options = {"chat_template": "v1"} if "v1" in request.param else {}
        return tiny_llava().eval(), tiny_llava_processor(**options)
    if request.param == "blip-2":
        folder = save_stages(tmp_path)["second_stage"]
        return Blip2ForConditionalGeneration.from_pretrained(folder), Blip2Processor.from_pretrained(folder)
    return causal() if request.param == "causal" else sequence_to_sequence()


def user(text, *images):
    parts = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def assistant(text):
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def generated(model, processor, messages, tokens):
    """The answer without a streamer, a thread, or anything of the conversation."""
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    ids = model.generate(**inputs, return_full_text=False, max_new_tokens=tokens, do_sample=False)
    return processor.batch_decode(ids, skip_special_tokens=True)[0].strip()


def test_streamed_answers_are_generates_turn_by_turn(model_and_processor):
    model, processor = model_and_processor
    talk = Conversation(model, processor, max_new_tokens=6)
    talk.show(RED)
    so_far = list(talk.ask("what color is it ?"))
    first = generated(model, processor, [user("what color is it ?", RED)], 6)
    assert so_far[-1] == first
    assert len(so_far) > 1
    assert all(first.startswith(settled(text)) for text in so_far)

    talk.add(BLUE)
    *_, second = talk.ask("and this ?")
    turns = [user("what color is it ?", RED), assistant(first), user("and this ?", BLUE)]
    assert second == generated(model, processor, turns, 6)
    assert talk.messages == [*turns, assistant(second)]

    talk.forget()
    *_, again = talk.ask("where is it ?")
    assert again == generated(model, processor, [user("where is it ?", RED, BLUE)], 6)
    talk.show(BLUE)
    *_, other = talk.ask("what color is it ?")
    assert other == generated(model, processor, [user("what color is it ?", BLUE)], 6)
    assert talk.images == [BLUE]


def test_without_an_image_the_language_model_answers():
    model, processor = causal()
    *_, answer = Conversation(model, processor, max_new_tokens=4).ask("what ?")
    assert answer == generated(model, processor, [user("what ?")], 4)


def test_closing_stops_and_keeps_the_beginning_of_the_answer():
    model, processor = causal()
    model.generation_config.eos_token_id = None
    model.config.text_config.max_position_embeddings = 10**6
    steps = []
    model.language_model.register_forward_hook(lambda *_: steps.append(1))
    talk = Conversation(model, processor, max_new_tokens=10_000)
    talk.show(RED)
    answer = talk.ask("what ?")
    next(answer)
    beginning = next(answer)
    answer.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("generate")]
    assert [message["role"] for message in talk.messages] == ["user", "assistant"]
    assert talk.messages[1]["content"][0]["text"] == beginning
    assert len(steps) < 10_000
    assert generated(model, processor, [user("what ?", RED)], 100).startswith(beginning)


def test_what_fails_leaves_the_conversation_as_it_was():
    model, processor = causal()
    talk = Conversation(model, processor, max_new_tokens=3)
    talk.show(RED)
    list(talk.ask("what ?"))
    before = list(talk.messages)
    with pytest.raises(ValueError, match="a question is empty"):
        list(talk.ask(" "))
    with pytest.raises(ValueError, match="the language model reads 256 at most: begin anew"):
        list(talk.ask("what " * 300))
    model.language_model.generate = lambda **_: (_ for _ in ()).throw(RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        list(talk.ask("where ?"))
    assert talk.messages == before


def test_an_answer_ends_where_the_positions_of_the_model_do():
    model, processor = causal()
    model.generation_config.eos_token_id = None
    talk = Conversation(model, processor, max_new_tokens=1000)
    list(talk.ask("what ?"))
    prompt = talk.inputs(talk.messages[:1])["input_ids"].shape[1]
    assert generated(model, processor, talk.messages[:1], 256 - prompt) == talk.messages[1]["content"][0]["text"]


def test_sampling_draws_with_torchs_seed():
    model, processor = causal()
    answers = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        talk = Conversation(model, processor, max_new_tokens=20, temperature=2.0)
        *_, answer = talk.ask("what ?")
        answers.append(answer)
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_options_out_of_range_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        Conversation(None, None, **options)


def speak(ids, prompt=(7, 7)):
    """A `generate` that says the same each time."""

    def generate(streamer, stopping_criteria):
        streamer.put(torch.tensor([prompt]))
        for token in ids:
            streamer.put(torch.tensor([token]))
        streamer.end()

    return generate


def test_characters_of_several_tokens_appear_whole():
    text = "a\nßß 語語 é"
    seen = list(stream_text(speak(text.encode()), lambda ids: bytes(ids).decode(errors="replace")))
    assert seen == [text[:end] for end in range(1, len(text) + 1)]


def test_the_beginning_of_an_ending_is_not_shown():
    def decode(ids):
        return bytes(ids).decode().partition("###")[0]

    seen = list(stream_text(speak(b"a # b##c###"), decode, ["###"]))
    assert seen == ["a", "a ", "a # b"[:4], "a # b", "a # b##c"]
    assert list(stream_text(speak(b"a#"), decode, ["###"])) == ["a", "a#"]


def test_half_a_character_at_the_end_is_shown_as_decoding_shows_it():
    (seen,) = stream_text(speak("é".encode()[:1]), lambda ids: bytes(ids).decode(errors="replace"))
    assert seen == "\ufffd"


def test_several_answers_at_once_are_refused():
    def generate(streamer, stopping_criteria):
        streamer.put(torch.tensor([[1], [2]]))
        streamer.put(torch.tensor([3, 4])[:, None])

    with pytest.raises(ValueError, match="one answer is streamed at a time, got tokens of 2"):
        list(stream_text(generate, str))
