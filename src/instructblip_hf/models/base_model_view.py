"""What `model.base_model` is for a model of vision tower, connector and full language model.

In transformers' own models ``base_model`` is everything but the head. Trainers that compute the loss from hidden states
and the head's weight, so that logits of all positions never exist, call it: TRL's `SFTTrainer` does so in every step.
The published layout has no such inner module, so this is a view of the whole that leaves out the head.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.utils import ModelOutput


# transformers looks for these in an inner model where the outer one has no answer, and here would come back to it.
_NOT_OF_AN_INNER_MODEL = ("get_encoder", "set_encoder", "get_decoder", "set_decoder")


class BaseModelView:
    """A model without the head of its language model.

    Args:
        model (`PreTrainedModel`): A model of this package. Attributes of the view are the model's.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> ModelOutput:
        """Hidden states in place of logits.

        Args:
            args, kwargs: As for the model's ``forward``, but for ``labels``.

        Returns:
            `BaseModelOutputWithPast`: The decoder's own; ``last_hidden_state`` has shape (batch, tokens, hidden) and
            is what the head takes, at the place of every token of ``input_ids``.

        Raises:
            ValueError: If the language model is sequence-to-sequence.
        """
        model: Any = self._model
        if model.config.is_encoder_decoder:
            raise ValueError(
                f"base_model of a {type(model).__name__} needs a causal language model, and this one is "
                f"sequence-to-sequence ({model.config.text_config.model_type}): train it with VisionLanguageTrainer or "
                "transformers' Trainer"
            )
        # Of the class, because trainers put their own forward, which calls this, in the place of the instance's.
        outputs = type(model).forward(model, *args, without_head=True, **{**kwargs, "return_dict": True})
        return outputs.language_model_outputs

    def __getattr__(self, name: str) -> Any:
        if name == "_model" or name in _NOT_OF_AN_INNER_MODEL:
            raise AttributeError(name)
        return getattr(self._model, name)


__all__ = ["BaseModelView"]
