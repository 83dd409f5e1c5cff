"""Ranking against brute force in float64: every candidate alone, after every prompt alone."""

import copy

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from instructblip_hf.models import prompt_state, ranking
from instructblip_hf.models.ranking import label_scores, lavis_segment_scores, rank_continuations
from tiny_models import VOCABULARY, text_config


COMMON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
CONFIGS = {
    "gemma2": lambda: transformers.Gemma2Config(
        vocab_size=VOCABULARY, num_key_value_heads=2, head_dim=8, sliding_window=6, **COMMON
    ),
    "mistral": lambda: transformers.MistralConfig(
        vocab_size=VOCABULARY, num_key_value_heads=2, sliding_window=5, **COMMON
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(vocab_size=VOCABULARY, **COMMON),
    "bloom": lambda: transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "falcon": lambda: transformers.FalconConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True
    ),
    "bart": lambda: transformers.BartConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=128,
    ),
    "umt5": lambda: transformers.UMT5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
    ),
}
TREES = ("llama", "opt", "qwen", "gemma", "gpt_neox", "t5")
ROWS = ("gemma2", "mistral", "bloom", "falcon", "bart", "umt5")
MODELS = {}


def language_model(kind):
    """A tiny random model, with weights large enough for its probabilities to differ (T5's are from the start)."""
    if kind not in MODELS:
        torch.manual_seed(0)
        config = CONFIGS[kind]() if kind in CONFIGS else text_config(kind)
        auto = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
        model = auto.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1 and "t5" not in kind:
                    parameter.mul_(3)
        MODELS[kind] = model, copy.deepcopy(model).double()
    return MODELS[kind]


def brute_force(model, embeds, mask, candidates):
    """Sums of log-probabilities, shape (candidates,), for a single prompt without its padding."""
    prompt = embeds[mask.bool()][None].double()
    sums = []
    for candidate in candidates:
        ids = torch.tensor([candidate])
        with torch.no_grad():
            if model.config.is_encoder_decoder:
                start = torch.tensor([[model.config.decoder_start_token_id, *candidate[:-1]]])
                logits = model(inputs_embeds=prompt, decoder_input_ids=start).logits
            else:
                whole = torch.cat([prompt, model.get_input_embeddings()(ids)], dim=1)
                logits = model(inputs_embeds=whole).logits[:, prompt.shape[1] - 1 : -1]
        sums.append(logits.log_softmax(-1).gather(2, ids.unsqueeze(-1)).sum())
    return torch.stack(sums)


def prompts(lengths, width, seed=0):
    """Random prompts with their padding on the right."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(len(lengths), width, 32, generator=generator) / 3
    return embeds, (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()


def rank(kind, embeds, mask, candidates, **options):
    model = language_model(kind)[0]
    return rank_continuations(model, model.config.is_encoder_decoder, embeds, mask, candidates, **options)


def random_candidates(number, seed=0, alphabet=8, longest=5):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (number,), generator=generator).tolist()
    return [torch.randint(3, 3 + alphabet, (length,), generator=generator).tolist() for length in lengths]


def check_stock_cache(kind):
    """Skips for a language model that in this version of transformers predicts otherwise with its cache than without."""
    model = language_model(kind)[0]
    if not model.config.is_encoder_decoder:
        return
    ids, targets = torch.tensor([[5, 9, 7]]), torch.tensor([[0, 5, 8, 6]])
    with torch.no_grad():
        first = model(input_ids=ids, decoder_input_ids=targets[:, :1], use_cache=True)
        rest = model(input_ids=ids, decoder_input_ids=targets[:, 1:], past_key_values=first.past_key_values).logits
        expected = model(input_ids=ids, decoder_input_ids=targets).logits[:, 1:]
    if (rest - expected).abs().max() > 1e-3:
        pytest.skip(f"{kind} of transformers {transformers.__version__} predicts otherwise with its own cache")


@pytest.mark.parametrize("kind", [*TREES, *ROWS])
def test_equals_brute_force(kind):
    check_stock_cache(kind)
    embeds, mask = prompts([7, 4, 9], 9)
    candidates = random_candidates(30)
    output = rank(kind, embeds, mask, candidates, chunk_size=7)
    assert output.scores.dtype == torch.float32
    assert output.scores.shape == (3, 30)
    for row in range(3):
        expected = brute_force(language_model(kind)[1], embeds[row], mask[row], candidates)
        torch.testing.assert_close(output.scores[row].double(), expected, rtol=0, atol=1e-4)
        assert output.order[row].tolist() == output.scores[row].argsort(descending=True, stable=True).tolist()


def greedy_tokens(model, embeds, mask, number, begin=()):
    """The likeliest token, one after the other, each from the whole sequence anew."""
    prompt, tokens = embeds[mask.bool()][None].double(), list(begin)
    for _ in range(number):
        with torch.no_grad():
            if model.config.is_encoder_decoder:
                read = torch.tensor([[model.config.decoder_start_token_id, *tokens]])
                logits = model(inputs_embeds=prompt, decoder_input_ids=read).logits
            else:
                read = model.get_input_embeddings()(torch.tensor([tokens], dtype=torch.long))
                logits = model(inputs_embeds=torch.cat([prompt, read], dim=1)).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens


@pytest.mark.parametrize("kind", ["llama", "t5", "gemma2", "bart"])
def test_what_greedy_decoding_begins_with(kind):
    embeds, mask = prompts([5, 3], 5)
    greedy = [greedy_tokens(language_model(kind)[1], embeds[row], mask[row], 3) for row in range(2)]
    one, two = greedy
    other = next(token for token in range(3, 9) if token not in one + two)
    candidates = [one, two, one[:1], one[:2], [*one[:2], other], two[:2], [other]]
    # A beginning that is not greedy, with what is likeliest after it.
    candidates += [greedy_tokens(language_model(kind)[1], embeds[row], mask[row], 2, [other]) for row in range(2)]

    def expected(row, group):
        return [candidate == greedy[row][: len(candidate)] for candidate in group]

    output = rank(kind, embeds, mask, candidates, return_greedy=True)
    assert output.is_greedy.tolist() == [expected(row, candidates) for row in range(2)]
    assert rank(kind, embeds, mask, candidates).is_greedy is None
    # Lists of different lengths are filled up with what is not greedy.
    own = rank(kind, embeds, mask, [[one], [two, [other], two[:1]]], return_greedy=True).is_greedy
    assert own.tolist() == [[True, False, False], [True, False, True]]


@pytest.mark.parametrize("kind", [*TREES, *ROWS])
def test_which_models_take_trees(kind):
    model = language_model(kind)[0]
    state = prompt_state.Seq2SeqPromptState if model.config.is_encoder_decoder else prompt_state.CausalPromptState
    assert state.takes_trees(model) == (kind in TREES)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_prompt_and_first_chunk_are_one_pass(kind):
    """The decoder runs once for a small tree, whether the samples share it or not, and once more for each further chunk."""
    embeds, mask = prompts([7, 4], 7)
    calls = []
    handle = language_model(kind)[0].get_decoder().register_forward_hook(lambda *_: calls.append(1))
    try:
        for candidates, chunk_size, passes in (
            ([[5], [6]], 128, 1),
            ([[5, 6, 7], [5, 8], [9, 3]], 128, 1),
            ([[[5, 6, 7], [5, 8]], [[9, 3, 3, 4]]], 128, 1),
            ([[number, 3] for number in range(4, 14)], 4, 3),  # 10 inner nodes: 4 with the prompt, 3 and 3
        ):
            calls.clear()
            rank(kind, embeds, mask, candidates, chunk_size=chunk_size)
            assert len(calls) == passes
    finally:
        handle.remove()


def test_large_batches_read_fewer_nodes_at_once(monkeypatch):
    embeds, mask = prompts([7, 4, 5, 6], 7)
    candidates = [[[first, second, 3] for first in range(4, 9) for second in range(4, 9)]] * 4
    expected = rank("llama", embeds, mask, candidates).scores
    monkeypatch.setattr(ranking, "MOST_LOGITS", 4 * VOCABULARY * 5)
    formed = []
    handle = language_model("llama")[0].lm_head.register_forward_hook(lambda _, __, out: formed.append(out.numel()))
    try:
        scores = rank("llama", embeds, mask, candidates).scores
    finally:
        handle.remove()
    assert max(formed) <= 4 * VOCABULARY * (5 + 1)  # one more each for the prompt
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "mistral", "t5", "bart"])
def test_a_model_that_predicts_nan_is_told(kind):
    embeds, mask = prompts([7, 4], 7)
    handle = language_model(kind)[0].get_output_embeddings().register_forward_hook(lambda _, __, out: out * torch.nan)
    try:
        with pytest.raises(ValueError, match=r"predicts NaN in torch\.float32"):
            rank(kind, embeds, mask, [[5, 6], [7]])
    finally:
        handle.remove()


def test_rows_copy_few_prompts_at_once(monkeypatch):
    embeds, mask = prompts([7], 7)
    candidates = [[first, second, 3] for first in range(4, 9) for second in range(4, 9)]
    expected = rank("mistral", embeds, mask, candidates).scores
    monkeypatch.setattr(ranking, "MOST_COPIED_TOKENS", 7 * 4)
    rows = []
    handle = language_model("mistral")[0].lm_head.register_forward_hook(lambda _, __, out: rows.append(len(out)))
    try:
        scores = rank("mistral", embeds, mask, candidates).scores
    finally:
        handle.remove()
    assert max(rows) == 4
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_model_that_reads_trees_reads_rows_too(kind, monkeypatch):
    embeds, mask = prompts([7, 4], 7)
    candidates = random_candidates(12)
    by_tree = rank(kind, embeds, mask, candidates)
    for name in ("CausalPromptState", "Seq2SeqPromptState"):
        monkeypatch.setattr(getattr(prompt_state, name), "takes_trees", staticmethod(lambda model: False))
        monkeypatch.setattr(getattr(prompt_state, name), "tree", None)
    by_rows = rank(kind, embeds, mask, candidates)
    torch.testing.assert_close(by_tree.scores, by_rows.scores, rtol=0, atol=1e-4)


token_lists = st.lists(st.integers(3, 7), min_size=1, max_size=6)


@pytest.mark.parametrize("kind", ["llama", "t5"])
@settings(max_examples=25, deadline=None)
@given(candidates=st.lists(token_lists, min_size=1, max_size=20), data=st.data())
def test_depends_on_prompt_and_candidate_alone(kind, candidates, data):
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    embeds, mask = prompts(lengths, max(lengths) + data.draw(st.integers(0, 2)))
    chunk_size = data.draw(st.integers(1, 40))
    penalty = data.draw(st.sampled_from([0.0, 1.0, -1.0]))
    scores = rank(kind, embeds, mask, candidates, chunk_size=chunk_size, length_penalty=penalty).scores

    row = data.draw(st.integers(0, len(lengths) - 1))
    alone = rank(kind, embeds[row : row + 1], mask[row : row + 1], candidates, length_penalty=penalty).scores[0]
    torch.testing.assert_close(scores[row], alone, rtol=1e-5, atol=1e-4)

    order = data.draw(st.permutations(range(len(candidates))))
    moved = rank(kind, embeds, mask, [candidates[index] for index in order], length_penalty=penalty).scores
    torch.testing.assert_close(scores[:, order], moved, rtol=1e-5, atol=1e-4)

    turned = rank(kind, embeds.flip(1), mask.flip(1), candidates, length_penalty=penalty).scores
    unpadded = [brute_force(language_model(kind)[1], e.flip(0), m.flip(0), candidates) for e, m in zip(embeds, mask)]
    sizes = torch.tensor([len(candidate) for candidate in candidates]).double() ** penalty
    torch.testing.assert_close(turned.double(), torch.stack(unpadded) / sizes, rtol=1e-5, atol=1e-4)

    k = data.draw(st.integers(1, len(candidates)))
    best = rank(kind, embeds, mask, candidates, chunk_size=chunk_size, length_penalty=penalty, top_k=k)
    assert best.order.shape == (len(lengths), k)
    torch.testing.assert_close(
        best.scores.gather(1, best.order), scores.sort(1, descending=True).values[:, :k], rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_candidates_of_each_sample(kind):
    embeds, mask = prompts([5, 3], 6)
    own = [random_candidates(4, seed=1), random_candidates(9, seed=2)]
    output = rank(kind, embeds, mask, own)
    assert output.scores.shape == (2, 9)
    assert output.scores[0, 4:].isneginf().all()
    assert output.order[0, :4].sort().values.tolist() == [0, 1, 2, 3]
    for row in range(2):
        expected = rank(kind, embeds, mask, own[row]).scores[row]
        torch.testing.assert_close(output.scores[row, : len(own[row])], expected, rtol=0, atol=1e-4)


def test_the_best_are_found_without_reading_all():
    embeds, mask = prompts([5], 5)
    candidates = random_candidates(300, alphabet=60, longest=4)
    model = language_model("llama")[0]
    read = []
    hook = model.lm_head.register_forward_hook(lambda module, args, output: read.append(output.shape[1]))
    try:
        whole = rank("llama", embeds, mask, candidates)
        in_full = sum(read)
        read.clear()
        best = rank("llama", embeds, mask, candidates, top_k=3)
    finally:
        hook.remove()
    assert best.order[0].tolist() == whole.order[0, :3].tolist()
    assert sum(read) < in_full / 2


def test_memory_is_bounded_by_the_chunk():
    embeds, mask = prompts([5], 5)
    model = language_model("llama")[0]
    read = []
    hook = model.lm_head.register_forward_hook(lambda module, args, output: read.append(output.shape[1]))
    try:
        rank("llama", embeds, mask, random_candidates(200, alphabet=60, longest=6), chunk_size=10)
    finally:
        hook.remove()
    assert max(read) <= 10 + 5, "a chunk and the beginnings before it"


@pytest.mark.parametrize(
    ("candidates", "options", "message"),
    [
        ([], {}, "candidates is empty"),
        ([[4], []], {}, "candidate 1 is empty"),
        ([[4], [VOCABULARY]], {}, f"token id {VOCABULARY}; the vocabulary has {VOCABULARY}"),
        ([[4], [-1]], {}, "token id -1"),
        ([[[4]]], {}, "lists for 1 samples, the batch has 2"),
        ([[[4]], [4]], {}, "not both"),
        ([[4]], {"top_k": 0}, "top_k is 0"),
        ([[4]], {"chunk_size": 0}, "chunk_size is 0"),
    ],
)
def test_refuses(candidates, options, message):
    embeds, mask = prompts([5, 3], 6)
    with pytest.raises(ValueError, match=message):
        rank("llama", embeds, mask, candidates, **options)


def test_labels_of_several_candidates():
    scores = torch.tensor([[0.1, 0.2, 0.3, 0.25]]).log()
    labels = [0, 0, 1, 1]
    torch.testing.assert_close(label_scores(scores, labels).exp(), torch.tensor([[0.3, 0.55]]))
    torch.testing.assert_close(label_scores(scores, labels, reduction="max").exp(), torch.tensor([[0.2, 0.3]]))
    with pytest.raises(ValueError, match="3 labels for 4 candidates"):
        label_scores(scores, [0, 0, 1])


def test_order_of_lavis_with_segments():
    # Its loss is a mean over the padded row, so that the longest candidate of a segment divides them all.
    scores = torch.tensor([[-6.0, -8.0, -9.0, -12.0]])
    divided = lavis_segment_scores(scores, torch.tensor([10]), [1, 2, 3, 9], segments=2)
    torch.testing.assert_close(divided, torch.tensor([[-6 / 11, -8 / 11, -9 / 18, -12 / 18]]))
    assert divided.argsort(descending=True).tolist() == [[2, 0, 3, 1]]
