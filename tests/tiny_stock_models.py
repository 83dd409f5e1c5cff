"""Tiny models of stock transformers, of the published module trees."""

import transformers


VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QFORMER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "encoder_hidden_size": 16,
    "vocab_size": 50,
}
TEXT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def blip2():
    config = transformers.Blip2Config(
        vision_config=VISION, qformer_config=QFORMER, text_config=transformers.LlamaConfig(**TEXT).to_dict()
    )
    return transformers.Blip2ForConditionalGeneration(config)


def llava():
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION), text_config=transformers.LlamaConfig(**TEXT)
    )
    return transformers.LlavaForConditionalGeneration(config)
