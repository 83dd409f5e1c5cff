"""BLIP-2's first stage: losses and gradients are LAVIS's, and those of many processes are those of one."""

from __future__ import annotations

import multiprocessing
import socket

import pytest
import torch

from instructblip_hf.models.blip_2 import (
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2ForPreTraining,
    PreTrainingOptions,
)
from instructblip_hf.models.blip_2.attention_masks import (
    bi_directional_mask,
    contrastive_and_generative_mask,
    multimodal_causal_mask,
    uni_modal_mask,
)
from instructblip_hf.models.blip_2.pretraining_losses import sample_negatives
from lavis_first_stage import lavis_batch, lavis_model, our_name, run_rank, section
from tiny_models import first_stage_config, randomise


LOSSES = ("loss_itc", "loss_itm", "loss_itg")
LAVIS = {"gather_with_gradient": False}


def drawn(case, rank=0):
    return {name: section(f"{case}.{rank}")[name] for name in ("negative_images", "negative_texts")}


def run_processes(tmp_path, sizes, cases):
    """Results of each case, of each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=run_rank, args=(rank, port, sizes, cases, str(tmp_path))) for rank in range(len(sizes))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    by_rank = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(sizes))]
    return [[of_rank[case] for of_rank in by_rank] for case in range(len(cases))]


# --- against LAVIS ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa", "triton"])
@pytest.mark.parametrize("case", ["one", "one_ids"])
def test_losses_are_lavis(case, attn_implementation, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # "triton" in plain torch: interpreting takes 20 seconds
    model = lavis_model(**LAVIS)
    model.set_attn_implementation(attn_implementation)
    outputs = model(**lavis_batch(with_image_ids=case == "one_ids"), **drawn(case))
    expected = section(f"{case}.0")
    for name in LOSSES:
        torch.testing.assert_close(outputs[name], expected[name], atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.loss, sum(expected[name] for name in LOSSES), atol=2e-5, rtol=0)


def test_logits_and_gradients_are_lavis():
    model = lavis_model(**LAVIS)
    outputs = model(**lavis_batch(), **drawn("one"))
    mask = lavis_batch()["attention_mask"].bool()
    torch.testing.assert_close(outputs.logits[mask], section("one.0")["logits"][mask], atol=1e-5, rtol=1e-5)
    outputs.loss.backward()
    gradients = section("one.gradients")
    assert len(gradients) == 10
    for name, expected in gradients.items():
        actual = model.get_parameter(our_name(name)).grad
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_two_processes_are_lavis_two_processes(tmp_path):
    (plain, with_ids) = run_processes(tmp_path, [3, 3], [(LAVIS, False, "two"), (LAVIS, True, "two_ids")])
    for case, results in (("two", plain), ("two_ids", with_ids)):
        for rank, result in enumerate(results):
            for name in LOSSES:
                expected = section(f"{case}.{rank}")[name]
                torch.testing.assert_close(result["losses"][name], expected, atol=1e-5, rtol=0)
    for name, expected in section("two.gradients").items():
        actual = plain[0]["gradients"][our_name(name)]
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


# --- many processes are one ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[3, 3], [4, 1, 1]], ids=str)
def test_processes_train_as_one_does_on_the_whole_batch(sizes, tmp_path):
    """Also with local batches of one row, and batches and captions of different lengths."""
    results = run_processes(tmp_path, sizes, [({}, False, "one.0"), ({}, True, "one_ids.0")])
    for (case, ids), of_ranks in zip((("one", False), ("one_ids", True)), results):
        model = lavis_model()
        outputs = model(**lavis_batch(with_image_ids=ids), **drawn(case))
        outputs.loss.backward()
        for name in LOSSES:
            mean = sum(result["losses"][name] for result in of_ranks) / len(sizes)
            torch.testing.assert_close(mean, outputs[name].detach(), atol=1e-5, rtol=0)
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert gradients.keys() == of_ranks[0]["gradients"].keys()
        for name, expected in gradients.items():
            actual = of_ranks[0]["gradients"][name]
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_the_gradient_through_both_sides_is_that_of_the_written_loss():
    """In float64, against autograd on the formula of section 3.2 with nothing held constant."""
    model = lavis_model(objectives=("itc",)).double()
    batch = lavis_batch()
    batch["image_states"] = batch["image_states"].double()
    outputs = model(**batch)
    outputs.loss.backward()
    gradient = model.vision_projection.weight.grad.clone()
    model.zero_grad()
    images = model.get_image_features(
        image_embeds=model.vision_model.post_layernorm(batch["image_states"])
    ).image_embeds
    texts = model.get_text_features(batch["input_ids"], batch["attention_mask"]).text_embeds
    similarity = torch.stack([(images @ text).amax(-1) for text in texts], dim=1) / model.temp
    rows = torch.arange(6)
    loss = (
        sum(torch.nn.functional.cross_entropy(s, rows, label_smoothing=0.1) for s in (similarity, similarity.t())) / 2
    )
    torch.testing.assert_close(outputs.loss, loss)
    loss.backward()
    torch.testing.assert_close(model.vision_projection.weight.grad, gradient)


# --- masks --------------------------------------------------------------------------------------------------------


def test_masks_by_the_definition():
    text_mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    masks = {
        "uni": uni_modal_mask(text_mask, 2, torch.float32),
        "bi": bi_directional_mask(text_mask, 2, torch.float32),
        "causal": multimodal_causal_mask(text_mask, 2, torch.float32),
    }
    rules = {
        "uni": lambda i, j: (i < 2) == (j < 2),
        "bi": lambda i, j: True,
        "causal": lambda i, j: j < 2 if i < 2 else j <= i,
    }
    for name, mask in masks.items():
        assert mask.shape == (2, 1, 5, 5)
        for row in range(2):
            for i in range(5):
                for j in range(5):
                    is_padding = j >= 2 and not text_mask[row, j - 2]
                    allowed = rules[name](i, j) and not is_padding
                    assert mask[row, 0, i, j] == (0.0 if allowed else torch.finfo(torch.float32).min), (name, i, j)


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_one_pass_for_two_objectives_is_a_pass_for_each(attn_implementation):
    model = lavis_model()
    model.set_attn_implementation(attn_implementation)
    batch = lavis_batch()
    states = model.vision_model.post_layernorm(batch["image_states"])
    queries = model.query_tokens.expand(6, -1, -1)
    compared, generated = model.embeddings(batch["input_ids"]), model.embeddings(batch["decoder_input_ids"])

    def read(pieces, mask):
        embeds = torch.cat([queries, *pieces], dim=1)
        outputs = model.qformer(embeds, 4, mask, encoder_hidden_states=states, return_dict=True)
        return outputs.last_hidden_state

    with torch.no_grad():
        text_mask = batch["attention_mask"]
        both = read([compared, generated], contrastive_and_generative_mask(text_mask, 4, torch.float32))
        apart = read([compared], uni_modal_mask(text_mask, 4, torch.float32))
        left_to_right = read([generated], multimodal_causal_mask(text_mask, 4, torch.float32))
        logits = model.cls(left_to_right[:, 4:])
        torch.testing.assert_close(both[:, :11], apart, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(both[:, 11:], left_to_right[:, 4:], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(both[:, :4], left_to_right[:, :4], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(**batch).logits, logits, atol=1e-5, rtol=1e-5)
        # A later word changes nothing before it.
        changed = {**batch, "decoder_input_ids": batch["decoder_input_ids"].clone()}
        changed["decoder_input_ids"][:, 3] = 7
        torch.testing.assert_close(model(**changed).logits[:, :3], logits[:, :3], atol=1e-5, rtol=1e-5)


def test_a_boolean_mask_of_four_dimensions_is_refused():
    model = lavis_model()
    with pytest.raises(ValueError, match=r"must be of a floating type, got torch\.bool"):
        model.qformer(torch.zeros(1, 3, 16), 0, torch.ones(1, 1, 3, 3, dtype=torch.bool))


# --- hard negatives -----------------------------------------------------------------------------------------------


def test_negatives_are_drawn_by_similarity_and_never_positive():
    torch.manual_seed(0)
    similarity = torch.tensor([[9.0, 1.0, 2.0, 2.0]]).expand(20_000, -1)
    is_positive = torch.tensor([[True, False, False, False]]).expand(20_000, -1)
    counts = torch.bincount(sample_negatives(similarity, is_positive), minlength=4) / 20_000
    expected = torch.tensor([0.0, *torch.tensor([1.0, 2.0, 2.0]).softmax(0).tolist()])
    torch.testing.assert_close(counts, expected, atol=0.015, rtol=0)
    assert counts[0] == 0
    everything = torch.ones(2, 3, dtype=torch.bool)
    assert sample_negatives(torch.zeros(2, 3), everything).tolist() == [-1, -1]


def test_a_batch_of_one_row_has_no_negative():
    model = lavis_model()
    outputs = model(**lavis_batch(slice(0, 1)))
    assert outputs.itm_labels.tolist() == [1]
    assert outputs.loss.isfinite()
    outputs.loss.backward()
    assert model.query_tokens.grad.isfinite().all()


def test_rows_of_one_image_are_no_negatives_of_each_other():
    model = lavis_model()
    batch = lavis_batch()
    batch["image_ids"] = torch.tensor([1, 1, 1, 1, 2, 2])
    for _ in range(5):
        outputs = model(**batch)
        assert outputs.itm_labels.tolist() == [1] * 6 + [0] * 12


# --- the model ----------------------------------------------------------------------------------------------------


def test_what_is_saved_opens_and_the_retrieval_model_opens_it_too(tmp_path):
    model = randomise(Blip2ForPreTraining(Blip2Config(**first_stage_config()))).eval()
    model.save_pretrained(tmp_path)
    again, info = Blip2ForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert again.cls.predictions.decoder.weight is again.embeddings.word_embeddings.weight
    assert again.cls.predictions.decoder.bias is again.cls.predictions.bias
    retrieval = Blip2ForImageTextRetrieval.from_pretrained(tmp_path)
    for name, value in retrieval.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    retrieval.save_pretrained(tmp_path / "retrieval")
    with pytest.raises(KeyError, match=r"missing keys: cls\.predictions\.bias.*temp"):
        Blip2ForPreTraining.from_pretrained(tmp_path / "retrieval")


def test_new_weights_are_as_the_stage_begins():
    model = Blip2ForPreTraining(Blip2Config(**first_stage_config()))
    assert model.temp.item() == pytest.approx(0.07)
    assert model.query_tokens.std().item() == pytest.approx(0.02, rel=0.3)
    assert not model.cls.predictions.bias.any()
    assert model.cls.predictions.decoder.weight is model.embeddings.word_embeddings.weight
    model.resize_token_embeddings(64)
    assert model.cls.predictions.decoder.weight.shape == (64, 32)
    assert model.cls.predictions.bias.shape == (64,)
    assert model.config.qformer_config.vocab_size == 64


def test_bad_options_and_inputs_are_named():
    with pytest.raises(ValueError, match=r"objectives are \['mlm'\]; allowed are some of: itc, itm, itg"):
        PreTrainingOptions(objectives=("mlm",))
    with pytest.raises(ValueError, match="objective itm needs itc"):
        PreTrainingOptions(objectives=("itm",))
    with pytest.raises(ValueError, match=r"label_smoothing is 1\.0"):
        PreTrainingOptions(label_smoothing=1.0)
    model, batch = lavis_model(), lavis_batch()
    del batch["decoder_input_ids"]
    with pytest.raises(ValueError, match="decoder_input_ids are needed"):
        model(**batch)
    with pytest.raises(ValueError, match="2 images and 6 captions do not make pairs"):
        model(**{**lavis_batch(), "image_states": lavis_batch()["image_states"][:2]})


def test_rows_that_share_an_image_by_index_are_no_negatives_of_each_other():
    model, batch = lavis_model(), lavis_batch()
    batch["image_states"] = batch["image_states"][:2]
    index = torch.tensor([0, 0, 0, 1, 1, 1])
    by_index = model(**batch, image_index=index, **drawn("one_ids"))
    by_ids = model(**batch, image_index=index, image_ids=index + 7, **drawn("one_ids"))
    for name in LOSSES:
        torch.testing.assert_close(by_index[name], by_ids[name])


@pytest.mark.parametrize("implementation", ["flex_attention", "flash_attention_2"])
def test_attention_without_masks_of_four_dimensions_is_refused(implementation):
    model = lavis_model()
    model.qformer.config._attn_implementation = implementation
    with pytest.raises(ValueError, match=f"{implementation} attention takes no mask of four dimensions"):
        model(**lavis_batch())


def test_similarity_is_float32_under_autocast():
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(4, 3, 64, generator=generator), dim=-1)
    texts = torch.nn.functional.normalize(torch.randn(5, 64, generator=generator), dim=-1)
    expected = torch.stack([(images.double() @ text.double()).amax(-1) for text in texts], dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        actual = Blip2ForPreTraining.similarity(images, texts)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, atol=1e-6, rtol=0)


def test_similarities_that_are_no_numbers_give_a_loss_that_is_none():
    model, batch = lavis_model(), lavis_batch()
    batch["image_states"][0] = torch.nan
    assert model(**batch).loss.isnan()
