"""What the page does, without the page: answers, rankings and looks are those of the model's own methods."""

import pytest
import torch
from PIL import Image

from instructblip_hf import query_attention
from instructblip_hf.app.actions import MEAN_OVER_LAYERS, Actions
from instructblip_hf.app.looks import looks_html
from instructblip_hf.pipelines.vocabulary_ranking import VocabularyRankingPipeline
from tiny_llava import tiny_llava, tiny_llava_processor
from tiny_models import our_blip_2
from tiny_shapes import tiny_model, tiny_processor


QFORMER = {
    "projector_type": "qformer",
    "num_query_tokens": 3,
    "qformer_config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
}


@pytest.fixture
def image(tmp_path):
    file = tmp_path / "image.png"
    Image.effect_noise((40, 30), 90).save(file)
    return str(file)


@pytest.fixture(scope="module")
def actions():
    return Actions(tiny_model().eval(), tiny_processor(), max_new_tokens=4)


def text(turn):
    return "".join(part.get("text", "") for part in turn["content"])


def test_a_conversation_goes_on_from_the_turns_of_the_page(actions, image):
    *_, turns = actions.answer("what ?", image, [])
    *_, turns = actions.answer("where ?", image, turns)
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    talk = actions.new_conversation()
    talk.show(Image.open(image).convert("RGB"))
    expected = [list(talk.ask(question))[-1] for question in ("what ?", "where ?")]
    assert [text(turn) for turn in turns[1::2]] == expected
    assert sum(part["type"] == "image" for turn in turns for part in turn["content"]) == 1


def test_ranking_is_rank_candidates(actions, image):
    found = actions.rank("what ?", "red, green\nred square,red", image)
    model, processor = actions.model, actions.processor
    inputs = processor(images=image, text="what ?", return_tensors="pt")
    scores = model.rank_candidates(processor.encode_candidates(["red", "green", "red square"]), **inputs).scores[0]
    expected = torch.softmax(scores, -1).tolist()
    assert found == pytest.approx(dict(zip(["red", "green", "red square"], expected)), rel=1e-4)


def test_looks_are_query_attentions(actions, image):
    assert actions.can_look
    assert actions.layers == [MEAN_OVER_LAYERS, "layer 0"]
    looks = actions.look("what ?\n\nwhere ?", "layer 0", image)
    assert [instruction for instruction, _ in looks] == ["what ?", "where ?"]
    expected = query_attention(actions.model, actions.processor, image, "where ?", layer=0)
    assert torch.equal(looks[1][1].maps, expected.maps)


def test_looks_are_shown_for_every_query_and_what_was_entered_is_no_html(actions, image):
    shown = looks_html(actions.look("what ?\n<script>alert(1)</script>", MEAN_OVER_LAYERS, image))
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    assert shown.count("<img ") == 2 * (1 + 4)


def test_layers_are_those_with_cross_attention():
    model = our_blip_2(num_hidden_layers=5, cross_attention_frequency=2)
    blip_2 = Actions(model, tiny_processor())
    assert blip_2.layers == [MEAN_OVER_LAYERS, "layer 0", "layer 2", "layer 4"]
    assert not blip_2.reads_instruction


def test_a_connector_without_queries_has_no_looks(image):
    llava = Actions(tiny_llava().eval(), tiny_llava_processor(), max_new_tokens=2)
    assert not llava.can_look
    assert list(llava.answer("what ?", image, []))
    template = "{% for m in messages %}<image> answer this : {{ m['content'][-1]['text'] }}{% endfor %}"
    worded = Actions(tiny_llava().eval(), tiny_llava_processor(chat_template=template))
    ranker = VocabularyRankingPipeline(model=worded.model, processor=worded.processor)
    entries = ranker(image, prompt="<image> answer this : what ?", candidates=["red", "blue"])
    assert worded.rank("what ?", "red,blue", image) == {entry["label"]: entry["score"] for entry in entries}
    assert worded.rank("what ?", "red,blue", image) != llava.rank("what ?", "red,blue", image)
    assert Actions(tiny_llava(**QFORMER).eval(), tiny_llava_processor(num_query_tokens=3)).can_look


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda actions, image: list(actions.answer(" ", image, [])), "a question is empty"),
        (lambda actions, image: actions.rank("what ?", "red", image), "at least two answers"),
        (lambda actions, image: actions.rank(" ", "red,blue", image), "Enter a question"),
        (lambda actions, image: actions.rank("what ?", "red,blue", None), "Choose an image first"),
        (lambda actions, image: actions.look("", MEAN_OVER_LAYERS, image), "Enter an instruction"),
        (lambda actions, image: actions.look("what ?", MEAN_OVER_LAYERS, None), "Choose an image first"),
        (lambda actions, image: actions.look("\n".join("abcdefg"), MEAN_OVER_LAYERS, image), "there are 7"),
    ],
)
def test_what_cannot_be_used_is_told(actions, image, act, message):
    with pytest.raises(ValueError, match=message):
        act(actions, image)
