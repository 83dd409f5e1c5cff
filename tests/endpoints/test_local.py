"""A local model as an endpoint, judged by transformers' own generation of single rows, and by the distribution of draws."""

import pytest
import torch
import transformers

from instructblip_hf.endpoints import (
    AnswerCache,
    Asker,
    ChatFailure,
    ChatOptions,
    ChatRequest,
    EndpointError,
    EndpointOptions,
    LocalModel,
    open_asker,
)
from tiny_models import randomise
from tiny_tokenizers import language_tokenizer


TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}it: {% endif %}"
)


def parts(seed=0):
    tokenizer = language_tokenizer("llama")
    tokenizer.chat_template = TEMPLATE
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    return randomise(transformers.LlamaForCausalLM(config), seed), tokenizer


@pytest.fixture(scope="module")
def local():
    return LocalModel(*parts(), name="tiny", batch_size=4)


def ask(text, sample=0, **options):
    return ChatRequest([{"role": "user", "content": text}], ChatOptions(**{"max_tokens": 12, **options}), sample)


QUESTIONS = ["What color is the circle?", "Where?", "Is there a blue square to the left of the green digit?", "a", "b"]


def test_greedy_answers_are_those_of_single_rows(local):
    found = local.answer([ask(text, temperature=0.0) for text in QUESTIONS])
    for text, answer in zip(QUESTIONS, found):
        ids = local.tokenizer(f"user: {text}\nit: ", add_special_tokens=False, return_tensors="pt")["input_ids"]
        alone = local.model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        end = local.tokenizer.eos_token_id
        assert answer.text == local.tokenizer.decode(alone, skip_special_tokens=True)
        assert answer.prompt_tokens == ids.shape[1]
        assert answer.finish_reason == ("stop" if end in alone else "length")
        assert answer.completion_tokens == len(alone)


def test_an_answer_that_ends():
    model, tokenizer = parts()
    local = LocalModel(model, tokenizer, "tiny")
    plain = local.answer([ask("Where?", temperature=0.0), ask("a", temperature=0.0)])
    ids = tokenizer(f"user: Where?\nit: {plain[0].text}", add_special_tokens=False)["input_ids"]
    ids = model.generate(torch.tensor([local._prompt(ask("Where?"))]), max_new_tokens=12, do_sample=False)[0, -12:]
    local.model.generation_config.eos_token_id = [int(ids[5])]
    end = ids.tolist().index(int(ids[5]))
    ended = local.answer([ask("Where?", temperature=0.0), ask("a", temperature=0.0)])
    assert (ended[0].finish_reason, ended[0].completion_tokens) == ("stop", end + 1)
    assert ended[0].text == tokenizer.decode(ids[:end], skip_special_tokens=True)


def test_samples_do_not_depend_on_their_batch(local):
    asked = [ask(text, sample, temperature=0.9, top_p=0.95) for text in QUESTIONS for sample in range(2)]
    together = local.answer(asked)
    assert together == [local.answer([request])[0] for request in asked]
    assert len({answer.text for answer in together}) > 5
    assert local.answer([ask(QUESTIONS[0], temperature=0.9, top_p=0.95, seed=1)])[0] != together[0]


def test_samples_have_the_models_distribution(local):
    """The first token of 3,000 samples against softmax(scores / temperature) cut to the nucleus."""
    prompt = torch.tensor([local._prompt(ask("Where?"))])
    with torch.inference_mode():
        scores = local.model(prompt).logits[0, -1].double() / 0.7
    ordered, words = scores.softmax(-1).sort(descending=True)
    kept = ordered.cumsum(-1) - ordered < 0.8
    expected = torch.zeros(len(scores), dtype=torch.float64).scatter(
        0, words[kept], ordered[kept] / ordered[kept].sum()
    )
    drawn = torch.zeros(len(scores), dtype=torch.float64)
    requests = [ask("Where?", sample, temperature=0.7, top_p=0.8, max_tokens=1) for sample in range(3000)]
    processors = local._sampling(requests)
    noisy = scores.float()[None].mul(0.7).repeat(3000, 1)
    for processor in processors:
        noisy = processor(prompt, noisy)
    for token in noisy.argmax(-1).tolist():
        drawn[token] += 1 / 3000
    assert not drawn[expected == 0].any()
    # Five standard deviations of a share of 3,000 draws.
    assert (drawn - expected).abs().max() < 5 * (0.25 / 3000) ** 0.5
    assert (drawn - expected).abs().max() < expected.max() / 3


def test_what_does_not_fit_is_refused_and_the_rest_answered(local):
    found = local.answer([ask("a b " * 200), ask("a")])
    assert isinstance(found[0], ChatFailure)
    assert "do not fit into the 256" in found[0].detail
    assert found[1] == local.answer([ask("a")])[0]


def test_a_template_that_refuses_a_role():
    model, tokenizer = parts()
    tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}a"
    local = LocalModel(model, tokenizer, "tiny")
    request = ChatRequest([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])
    with pytest.raises(EndpointError, match="template of tiny does not take messages of system, user: no system"):
        list(Asker(local).ask([request]))


def test_no_template():
    model, tokenizer = parts()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        LocalModel(model, tokenizer, "tiny")


def test_through_a_folder_and_the_cache(local, tmp_path):
    local.model.save_pretrained(tmp_path / "model")
    local.tokenizer.save_pretrained(tmp_path / "model")
    options = EndpointOptions(local=str(tmp_path / "model"), device="cpu", batch_size=3)
    asker = open_asker(options, tmp_path / "cache")
    asked = [ask(text, temperature=0.0) for text in QUESTIONS]
    found = [answer for _, answer in asker.ask(asked)]
    assert found == local.answer(asked)
    asker.cache.close()
    asker.endpoint.answer = None  # everything is there
    with AnswerCache(tmp_path / "cache") as cache:
        assert [answer for _, answer in Asker(asker.endpoint, cache).ask(asked)] == found
    other = LocalModel(*parts(seed=1), name=str(tmp_path / "model"))
    assert asked[0].key(other.facts) != asked[0].key(asker.endpoint.facts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either the model of an endpoint or a local model"),
        ({"model": "a", "local": "b"}, "either the model of an endpoint or a local model"),
        ({"local": "b", "base_url": "http://a"}, "no address"),
        ({"model": "a", "max_tokens_field": "length"}, "max_tokens_field is 'length'"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        EndpointOptions(**options)
