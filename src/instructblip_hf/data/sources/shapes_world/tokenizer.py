"""The word-level tokenizer of the shapes world: about 170 words, lower case, punctuation apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from instructblip_hf.constants import IMAGE_TOKEN

from .scenes import CELLS, COLORS, NOUNS, NUMBERS, SIZES
from .tasks import LETTERS, NOTHING, PLURALS, RELATIONS
from .wordings import all_texts, simplify


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


PAD, BOS, EOS, UNK, CLS, SEP = "<pad>", "<bos>", "<eos>", "<unk>", "<cls>", "<sep>"
SPECIAL_TOKENS = (PAD, BOS, EOS, UNK, IMAGE_TOKEN, CLS, SEP)
PUNCTUATION = tuple("?.,:()")


def vocabulary() -> dict[str, int]:
    """Words to ids: special tokens, punctuation, then every word of the seen wordings and of answers, sorted."""
    words: set[str] = set()
    answers = [*COLORS, *NOUNS, *SIZES, *NUMBERS, *CELLS, *LETTERS, *RELATIONS, *PLURALS.values()]
    for text in [*all_texts("seen"), *answers, NOTHING, "objects", "yes", "no", "where is the"]:
        words.update(simplify(text).split())
    return {token: index for index, token in enumerate((*SPECIAL_TOKENS, *PUNCTUATION, *sorted(words)))}


def build_tokenizer(for_qformer: bool = False, model_max_length: int = 128) -> PreTrainedTokenizerFast:
    """Builds the tokenizer.

    Args:
        for_qformer (`bool`, *optional*, defaults to `False`): Frame a text as ``<cls> ... <sep>``, as the Q-Former's
            BERT tokenizer does, instead of opening it with ``<bos>`` as the LLM's does. Ids are the same.
        model_max_length (`int`, *optional*, defaults to 128): Longest sequence that the model can read.

    Returns:
        `PreTrainedTokenizerFast`: It lower-cases, splits punctuation off and maps unknown words to ``<unk>``.
        Decoding puts punctuation back: ``"red circle, blue digit"``.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = vocabulary()
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNK))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    single, specials = (f"{CLS} $A {SEP}", (CLS, SEP)) if for_qformer else (f"{BOS} $A", (BOS,))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(token, vocab[token]) for token in specials]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokens = {"cls_token": CLS, "sep_token": SEP} if for_qformer else {"bos_token": BOS, "eos_token": EOS}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=model_max_length,
        padding_side="right",
        pad_token=PAD,
        unk_token=UNK,
        extra_special_tokens=[IMAGE_TOKEN],
        **tokens,
    )
