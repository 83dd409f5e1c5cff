"""`model.base_model`: hidden states that the head turns into the model's own logits, and nothing else changed."""

import pytest
import torch

from tiny_models import batch, our_model


@pytest.mark.parametrize("kind", ["llama", "opt", "qwen", "gemma"])
def test_the_head_on_its_hidden_states_gives_the_logits(kind):
    model = our_model(kind)
    inputs = batch(images_per_row=(2, 0), text_lengths=(3, 9), padding_side="right")
    with torch.no_grad():
        expected = model(**inputs).logits
        outputs = model.base_model(**inputs, use_cache=False)
        logits = model.get_output_embeddings()(outputs.last_hidden_state)
    assert "logits" not in outputs
    assert outputs.last_hidden_state.shape == (*inputs["input_ids"].shape, 32)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)


def test_gradients_reach_every_part():
    model = our_model()
    model.base_model(**batch()).last_hidden_state.square().sum().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    # Text rows of the Q-Former have no further layer that would read the last one's; the head was not asked.
    assert {name for name in without if not name.startswith("qformer")} <= {"language_model.lm_head.weight"}
    assert model.query_tokens.grad.abs().sum() > 0


def test_sequence_to_sequence_is_refused():
    with pytest.raises(ValueError, match=r"needs a causal language model.*\(t5\).*VisionLanguageTrainer"):
        our_model("t5").base_model(**batch())


def test_the_model_itself_is_as_it_was():
    model = our_model()
    view = model.base_model
    assert list(view.state_dict()) == list(model.state_dict())
    assert view.config is model.config
    assert "base_model" not in dict(model.named_modules())
    assert model.get_encoder("image") is model.vision_model
    assert model.get_encoder("audio") is model
    assert model.get_decoder() is model.language_model.get_decoder()
    assert isinstance(model.supports_tp_plan, bool)
    assert isinstance(model.supports_pp_plan, bool)
    with pytest.raises(AttributeError):
        getattr(view, "no_such_attribute")  # noqa: B009
