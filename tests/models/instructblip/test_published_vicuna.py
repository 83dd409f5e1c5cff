"""The traps of published Vicuna checkpoints: bos = eos = unk = ``</s>``, padding 32000, and id 0 as filler.

LAVIS trains with such a tokenizer, while the language model's own configuration says bos 1, eos 2, pad 0, so a row
of a batch that ends early goes on with zeros: the piece ``<unk>``, no special token of this tokenizer.
"""

from __future__ import annotations

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from instructblip_hf.models.instructblip import (
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
)
from tiny_models import IMAGE_SIZE, NUM_QUERY_TOKENS, VOCABULARY, config_dict, randomise
from tiny_processors import qformer_tokenizer


END = "</s>"
PADDING_ID, IMAGE_ID = VOCABULARY - 2, VOCABULARY - 1


def vicuna_processor() -> InstructBlipProcessor:
    pieces = ["<unk>", "<s>", END, *(f"w{index}" for index in range(3, PADDING_ID))]
    backend = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(pieces)}, unk_token=END))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 2)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=END, eos_token=END, unk_token=END, padding_side="left"
    )
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == PADDING_ID
    return InstructBlipProcessor(
        transformers.BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        tokenizer,
        qformer_tokenizer(),
        num_query_tokens=NUM_QUERY_TOKENS,
    )


@pytest.fixture(params=[0, None, PADDING_ID])
def vicuna(request):
    """Model, processor and a batch whose first row ends early."""
    processor = vicuna_processor()
    assert processor.image_token_id == IMAGE_ID
    model = InstructBlipForConditionalGeneration(InstructBlipConfig(**config_dict("llama")))
    randomise(model).eval()
    model.generation_config.pad_token_id = request.param
    images = [torch.rand(3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    texts = ["w5 w6 w7", "w9 w10 w11 w12 w13 w14 w15"]
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
    free = model.generate(**inputs, max_new_tokens=8, return_full_text=False, eos_token_id=None)
    early = next(
        token for token in free[0, 1:5].tolist() if token not in free[1] and token != free[0, 0] and token > 2
    )
    # Give the token that ends the first row early the end token's place.
    with torch.no_grad():
        swap = torch.arange(VOCABULARY)
        swap[[2, early]] = swap[[early, 2]]
        model.language_model.lm_head.weight.copy_(model.language_model.lm_head.weight[swap])
    return model, processor, images, texts


def test_batched_decoding_equals_single(vicuna):
    model, processor, images, texts = vicuna
    together = processor(images=images, text=texts, padding=True, return_tensors="pt")
    for full in (True, False):
        options = {"max_new_tokens": 8, "return_full_text": full, "eos_token_id": 2}
        batched = model.generate(**together, **options)
        assert (batched[0] == 2).any()
        answers = processor.batch_decode(batched, skip_special_tokens=True)
        for index, (image, text) in enumerate(zip(images, texts)):
            alone = processor(images=image, text=text, return_tensors="pt")
            single = model.generate(**alone, **options)
            assert processor.batch_decode(single, skip_special_tokens=True)[0] == answers[index]
            assert "<unk>" not in answers[index]
            assert answers[index].split()
        assert len(answers[0].split()) < len(answers[1].split())


def test_the_prompt_begins_with_the_end_token():
    ids = vicuna_processor()(text="w5 w6", return_tensors="pt")["input_ids"][0].tolist()
    assert ids == [2, 5, 6]
