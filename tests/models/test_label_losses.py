"""Losses at label positions: equal to those of full logits, with their gradients, for language models of all kinds."""

import pytest
import torch
import transformers
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from instructblip_hf.models.language_models import label_losses
from instructblip_hf.models.language_models.adapter import run_language_model
from tiny_models import batch, labels_for, our_model, randomise, text_config


VOCABULARY = 50
DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "intermediate_size": 48,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
# What is special about the head of each stands beside it.
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**DECODER),
    "llama tied": lambda: transformers.LlamaConfig(**DECODER, tie_word_embeddings=True),
    "opt": lambda: transformers.OPTConfig(**DECODER, ffn_dim=48, word_embed_proj_dim=16),  # project_out
    "qwen2": lambda: transformers.Qwen2Config(**DECODER, num_key_value_heads=2),
    "gemma2": lambda: transformers.Gemma2Config(  # capped by tanh
        **DECODER, num_key_value_heads=2, head_dim=8, final_logit_softcapping=1.5
    ),
    "cohere": lambda: transformers.CohereConfig(**DECODER, logit_scale=0.3),  # scaled
    "granite": lambda: transformers.GraniteConfig(**DECODER, logits_scaling=3.0),  # scaled
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**DECODER),
    "phi": lambda: transformers.PhiConfig(**DECODER),  # bias
    "gpt2": lambda: transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "mixtral": lambda: transformers.MixtralConfig(  # router logits beside the hidden states
        **DECODER, num_key_value_heads=2, num_local_experts=3, output_router_logits=True
    ),
    "t5": lambda: transformers.T5Config(**T5, tie_word_embeddings=True),  # hidden states scaled
    "t5 untied": lambda: transformers.T5Config(**T5, tie_word_embeddings=False, feed_forward_proj="gated-gelu"),
    "bart": lambda: transformers.BartConfig(  # a bias that is a buffer
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
    ),
}


def language_model(kind):
    config = CONFIGS[kind]()
    auto = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    model = randomise(auto.from_config(config)).eval()
    if kind == "bart":
        model.final_logits_bias.copy_(torch.linspace(-1, 1, VOCABULARY))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def inputs_for(model, rows=3, tokens=9, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    width = model.get_input_embeddings().embedding_dim
    embeds = (0.5 * torch.randn(rows, tokens, width, generator=generator)).to(dtype).requires_grad_()
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[0, 6:] = 0
    labels = torch.randint(
        3, VOCABULARY, (rows, 7 if model.config.is_encoder_decoder else tokens), generator=generator
    )
    labels[0, :2] = labels[1, 3:5] = labels[2, -3:] = -100
    labels[0, 6:] = -100
    return {"inputs_embeds": embeds, "attention_mask": mask, "labels": labels}


def run(model, inputs, **options):
    model.zero_grad()
    loss, outputs, losses = run_language_model(model, model.config.is_encoder_decoder, **inputs, **options)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    gradients["inputs_embeds"], inputs["inputs_embeds"].grad = inputs["inputs_embeds"].grad.clone(), None
    return loss.detach(), outputs, losses, gradients


def assert_equal(own, expected, atol=1e-6):
    torch.testing.assert_close(own[0], expected[0], rtol=0, atol=atol)
    assert own[3].keys() == expected[3].keys()
    for name, gradient in expected[3].items():
        torch.testing.assert_close(own[3][name], gradient, rtol=atol, atol=atol, msg=name)
    assert own[1].logits is None


@pytest.mark.parametrize("items", [None, 11], ids=["mean", "divided"])
@pytest.mark.parametrize("chunk", [None, 1, 3, 5], ids=lambda chunk: f"chunk={chunk}")
@pytest.mark.parametrize("kind", CONFIGS)
def test_loss_and_gradients_equal_those_of_full_logits(kind, chunk, items, monkeypatch):
    model = language_model(kind)
    inputs = inputs_for(model)
    expected = run(model, inputs, num_items_in_batch=items)
    if chunk is not None:
        monkeypatch.setattr(label_losses, "CHUNK_LOGITS", chunk * VOCABULARY)
    own = run(model, inputs, num_items_in_batch=items, logits_at_labels=True)
    assert_equal(own, expected)

    targets = inputs["labels"] if model.config.is_encoder_decoder else inputs["labels"][:, 1:]
    logits = expected[1].logits[:, : targets.shape[1]][targets != -100]
    each = nn.functional.cross_entropy(logits, targets[targets != -100], reduction="none")
    torch.testing.assert_close(own[2], each.detach(), rtol=0, atol=2e-6)
    assert not own[2].requires_grad


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_no_logits_beyond_a_chunk_ever_exist(kind, monkeypatch):
    monkeypatch.setattr(label_losses, "CHUNK_LOGITS", 3 * VOCABULARY)
    model = language_model(kind)
    sizes = []
    model.get_output_embeddings().register_forward_hook(lambda m, a, output: sizes.append(output[..., 0].numel()))
    label_losses.check_logits_at_labels(model, model.config.is_encoder_decoder)
    sizes.clear()
    run(model, inputs_for(model), logits_at_labels=True)
    labels = int((inputs_for(model)["labels"][:, 0 if kind == "t5" else 1 :] != -100).sum())
    assert max(sizes) == 3
    # One run with a position that stands for all, and each chunk forward and again backward.
    assert sum(sizes) == 1 + 2 * labels


@pytest.mark.parametrize("train_head", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "t5"])
def test_frozen_language_model_and_head_with_lora(kind, train_head, monkeypatch):
    monkeypatch.setattr(label_losses, "CHUNK_LOGITS", 4 * VOCABULARY)
    model = language_model(kind)
    model.requires_grad_(False)
    if train_head:
        torch.manual_seed(0)
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False), model)
    inputs = inputs_for(model)
    expected, own = run(model, inputs), run(model, inputs, logits_at_labels=True)
    assert_equal(own, expected)
    assert len(own[3]) == (3 if train_head else 1)


def test_dropout_of_the_head_is_drawn_again_alike(monkeypatch):
    """LoRA's dropout on a head: the second run of a chunk has the masks of the first."""
    monkeypatch.setattr(label_losses, "CHUNK_LOGITS", 4 * VOCABULARY)
    model = language_model("llama")
    inject_adapter_in_model(
        LoraConfig(r=2, target_modules=["lm_head"], lora_dropout=0.5, init_lora_weights=False), model
    )
    inputs = inputs_for(model)
    label_losses.check_logits_at_labels(model.train(), False)
    lora = model.lm_head.lora_A["default"].weight

    def loss_at(values):
        torch.manual_seed(1)
        with torch.no_grad():
            before = lora.clone()
            lora.copy_(values)
        loss = run(model, inputs, logits_at_labels=True)
        with torch.no_grad():
            lora.copy_(before)
        return loss

    step = torch.zeros_like(lora)
    step[0, 0] = 1e-2
    gradient = loss_at(lora.detach())[3]["lm_head.lora_A.default.weight"][0, 0]
    slope = (loss_at(lora.detach() + step)[0] - loss_at(lora.detach() - step)[0]) / 2e-2
    torch.testing.assert_close(gradient, slope, rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_bfloat16_within_its_rounding(kind):
    model = language_model(kind).to(torch.bfloat16)
    inputs = inputs_for(model, dtype=torch.bfloat16)
    expected, own = run(model, inputs), run(model, inputs, logits_at_labels=True)
    torch.testing.assert_close(own[0], expected[0], rtol=0, atol=1e-2)
    norm = expected[3]["inputs_embeds"].float().norm()
    assert (own[3]["inputs_embeds"].float() - expected[3]["inputs_embeds"].float()).norm() < 2e-2 * norm


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_no_labels_at_all(kind):
    model = language_model(kind)
    inputs = inputs_for(model)
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    own = run(model, inputs, logits_at_labels=True, num_items_in_batch=4)
    assert own[0] == 0
    assert own[2].shape == (0,)
    assert not own[3]["inputs_embeds"].any()
    without_divisor = run_language_model(model, kind == "t5", **inputs, logits_at_labels=True)
    assert without_divisor[0].isnan()
    assert run_language_model(model, kind == "t5", **inputs)[0].isnan()


def test_gradient_checkpointing_and_no_grad(monkeypatch):
    monkeypatch.setattr(label_losses, "CHUNK_LOGITS", 4 * VOCABULARY)
    model = language_model("llama")
    inputs = inputs_for(model)
    expected = run(model, inputs)
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    assert_equal(run(model, inputs, logits_at_labels=True), expected)
    with torch.no_grad():
        loss = run_language_model(model.eval(), False, **inputs, logits_at_labels=True)[0]
    torch.testing.assert_close(loss, expected[0], rtol=0, atol=1e-6)
    assert "forward" not in model.model.__dict__


class Neighbours(transformers.LlamaForCausalLM):
    """Logits that depend on the position before, as no function of one hidden state can give them."""

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = outputs.logits + outputs.logits.roll(1, dims=1)
        return outputs


class Centred(transformers.LlamaForCausalLM):
    """Logits that depend on how many positions there are."""

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = outputs.logits - outputs.logits.mean(dim=(0, 1), keepdim=True)
        return outputs


@pytest.mark.parametrize("architecture", [Neighbours, Centred])
def test_an_architecture_that_this_is_wrong_for_is_refused(architecture):
    model = randomise(architecture(CONFIGS["llama"]()))
    with pytest.raises(ValueError, match=f"{architecture.__name__} do not follow from its last hidden states"):
        run(model, inputs_for(model), logits_at_labels=True)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_the_whole_model(kind):
    model = our_model(kind)
    inputs = batch(padding_side="right")
    inputs["labels"] = labels_for(kind, inputs)
    results = []
    for at_labels in (False, True):
        model.zero_grad()
        outputs = model(**inputs, logits_at_labels=at_labels)
        outputs.loss.backward()
        results.append((outputs, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
    (full, expected), (own, gradients) = results
    assert own.logits is None
    assert full.label_losses is None
    torch.testing.assert_close(own.loss, full.loss, rtol=0, atol=1e-6)
    torch.testing.assert_close(own.label_losses.mean(), full.loss.detach(), rtol=0, atol=1e-6)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
    with pytest.raises(ValueError, match="logits_at_labels=True needs labels"):
        model(**{key: value for key, value in inputs.items() if key != "labels"}, logits_at_labels=True)


def test_every_language_model_of_the_tests():
    for kind in ("llama", "qwen", "gemma", "opt", "t5"):
        config = text_config(kind)
        auto = transformers.AutoModelForSeq2SeqLM if kind == "t5" else transformers.AutoModelForCausalLM
        label_losses.check_logits_at_labels(randomise(auto.from_config(config)), kind == "t5")
