"""Tokenizers of each family, trained in memory on a few sentences, for the tests of processors."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


SENTENCES = [
    "What color is the circle? The circle is red.",
    "Is there a blue square to the left of the green digit? Yes, there is.",
    "Describe the image in detail. A photo of a cat on a mat, with a hat and a bat.",
    "Question: how many shapes are there? Short answer: three",
    "Where is it? It is in the upper right corner, below the yellow triangle.",
]
LANGUAGE_TOKENIZERS = ("llama", "llama_legacy", "t5", "gpt2", "opt", "vicuna")


@cache
def _backend(kind: str) -> str:
    """The trained tokenizer as JSON, so that every test gets a fresh copy."""
    if kind == "bert":
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        trainer: Any = trainers.WordPieceTrainer(
            vocab_size=120, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
        )
        backend.train_from_iterator(SENTENCES, trainer)
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        return backend.to_str()
    if kind in ("gpt2", "opt"):
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        special = ["<s>", "<pad>", "</s>"]
        trainer = trainers.BpeTrainer(
            vocab_size=350,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(SENTENCES, trainer)
        if kind == "opt":
            backend.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
        return backend.to_str()
    # SentencePiece kinds.
    special = ["<pad>", "</s>", "<unk>"] if kind == "t5" else ["<unk>", "<s>", "</s>"]
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    if kind == "llama_legacy":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(
            prepend_scheme="always" if kind == "t5" else "first", split=kind == "t5"
        )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=special, show_progress=False, max_token_length=8)
    words = [word for sentence in SENTENCES for word in sentence.split()]
    backend.train_from_iterator(words, trainer)
    template = {"t5": ("$A </s>", ("</s>", 1)), "vicuna": ("</s> $A", ("</s>", 2))}
    single, token = template.get(kind, ("<s> $A", ("<s>", 1)))
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=[token])
    content = json.loads(backend.to_str())
    if kind == "vicuna":
        # A plain piece here: the tokenizer's unknown token is another one.
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<unk>"]
    return json.dumps(content)


def language_tokenizer(kind: str, **options: Any) -> PreTrainedTokenizerFast:
    """Tokenizer of a language model.

    Args:
        kind (`str`): `"llama"` and `"llama_legacy"` put `<s>` in front and mark word starts; `"vicuna"` is that with
            `</s>` as beginning, end and unknown token and a padding token of its own, as in published checkpoints;
            `"opt"` is byte-level with `</s>` in front, `"gpt2"` puts nothing; `"t5"` puts `</s>` at the end.
        options: As for `PreTrainedTokenizerFast`.
    """
    special = {
        "llama": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"},
        "vicuna": {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "[PAD]"},
        "gpt2": {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"},
        "t5": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    }
    special["llama_legacy"], special["opt"] = special["llama"], special["gpt2"]
    backend = Tokenizer.from_str(_backend(kind))
    if kind == "vicuna":
        backend.add_special_tokens([AddedToken("[PAD]", special=True, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **{**special[kind], **options}
    )


def qformer_tokenizer(model_max_length: int = 512, **options: Any) -> PreTrainedTokenizerFast:
    """BERT-like tokenizer with CLS and SEP."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend("bert")),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=model_max_length,
        **options,
    )
