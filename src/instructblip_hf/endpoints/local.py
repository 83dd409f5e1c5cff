"""A language model of transformers as an endpoint: its chat template, batches, and draws that belong to a request.

What a request is answered does not depend on the requests beside it, up to rounding: a sampled token is the largest of
scores plus Gumbel noise, whose numbers are a hash of the request, the sample's number and the token's place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import TemperatureLogitsWarper, TopPLogitsWarper

from ..utils.fingerprints import describe_model
from .chat import ChatAnswer, ChatFailure, ChatRequest, Outcome
from .errors import EndpointError


class LocalModel:
    """A causal language model and its tokenizer.

    Args:
        model (`PreTrainedModel`): It is put into evaluation mode.
        tokenizer (`PreTrainedTokenizerBase`): With a chat template.
        name (`str`): What answers say they are from.
        batch_size (`int`, *optional*, defaults to 8): Requests that are answered at once.
        max_length (`int`, *optional*): Tokens of prompt and answer that the model can read; by default what its
            configuration says.

    Raises:
        ValueError: If the tokenizer has no chat template.
    """

    concurrency = 1

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        batch_size: int = 8,
        max_length: int | None = None,
    ) -> None:
        if tokenizer.chat_template is None:
            raise ValueError(f"the tokenizer of {name} has no chat template, which says how messages become a prompt")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        self.max_length = max_length or getattr(model.config.get_text_config(), "max_position_embeddings", None)
        described = describe_model(model, name)
        template = hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16]
        self._facts = {**described, "chat_template": template}

    @classmethod
    def from_pretrained(
        cls, path: str, device: str | None = None, dtype: str | None = None, batch_size: int = 8
    ) -> LocalModel:
        """Opens a folder or a model of the Hub.

        Args:
            path (`str`): Folder or Hub id of a causal language model with a chat template.
            device (`str`, *optional*): An accelerator if there is one by default.
            dtype (`str`, *optional*): By default as the weights are stored.
            batch_size (`int`, *optional*, defaults to 8): Requests that are answered at once.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if device is None:
            accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
            device = str(accelerator or "cpu")
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype or "auto")
        model.to(device)
        return cls(model, AutoTokenizer.from_pretrained(path), path, batch_size)

    @property
    def facts(self) -> Mapping[str, Any]:
        """Name, class, precision and a fingerprint of the weights, and of the template."""
        return self._facts

    @torch.inference_mode()
    def answer(self, requests: Sequence[ChatRequest]) -> list[Outcome]:
        """Answers to requests, which may differ in their options."""
        outcomes: list[Outcome | None] = [None] * len(requests)
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(str(request.options), []).append(number)
        for numbers in groups.values():
            prompts = [self._prompt(requests[number]) for number in numbers]
            fitting = []
            for number, prompt in zip(numbers, prompts):
                outcomes[number] = self._too_long(requests[number], prompt)
                if outcomes[number] is None:
                    fitting.append((number, prompt))
            if fitting:
                answers = self._generate([requests[number] for number, _ in fitting], [ids for _, ids in fitting])
                for (number, _), answer in zip(fitting, answers):
                    outcomes[number] = answer
        return [outcome for outcome in outcomes if outcome is not None]

    def _prompt(self, request: ChatRequest) -> list[int]:
        messages = [dict(message) for message in request.messages]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise EndpointError(
                f"the chat template of {self._facts['name']} does not take messages of {roles}: {error}"
            ) from error
        # The template writes the special tokens.
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _too_long(self, request: ChatRequest, prompt: Sequence[int]) -> ChatFailure | None:
        length = len(prompt) + request.options.max_tokens
        if self.max_length is None or length <= self.max_length:
            return None
        tokens = f"{len(prompt)} tokens and an answer of up to {request.options.max_tokens}"
        return ChatFailure("refused", f"{tokens} do not fit into the {self.max_length} that the model reads")

    def _generate(self, requests: Sequence[ChatRequest], prompts: Sequence[Sequence[int]]) -> list[ChatAnswer]:
        options = requests[0].options
        ends = self._ends()
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else ends[0]
        longest = max(len(prompt) for prompt in prompts)
        rows = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        device = self.model.device
        tokens = self.model.generate(
            input_ids=torch.tensor(rows, device=device),  # [requests, longest]
            attention_mask=torch.tensor(mask, device=device),
            max_new_tokens=options.max_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=ends,
            pad_token_id=pad,
            logits_processor=self._sampling(requests),
        )[:, longest:]
        return [self._answer(prompt, row.tolist(), ends) for prompt, row in zip(prompts, tokens)]

    def _sampling(self, requests: Sequence[ChatRequest]) -> list[LogitsProcessor]:
        options = requests[0].options
        temperature = 1.0 if options.temperature is None else options.temperature
        if temperature == 0:
            return []
        seeds = [_seed(request) for request in requests]
        nucleus = [TopPLogitsWarper(options.top_p)] if options.top_p is not None and options.top_p < 1 else []
        return [TemperatureLogitsWarper(temperature), *nucleus, GumbelNoise(seeds)]

    def _answer(self, prompt: Sequence[int], tokens: list[int], ends: Sequence[int]) -> ChatAnswer:
        end = next((place for place, token in enumerate(tokens) if token in ends), None)
        said = tokens if end is None else tokens[:end]
        text = str(self.tokenizer.decode(said, skip_special_tokens=True))
        count = len(tokens) if end is None else end + 1
        return ChatAnswer(text, "length" if end is None else "stop", len(prompt), count)

    def _ends(self) -> list[int]:
        """Tokens that end an answer: those of the generation configuration, and the tokenizer's."""
        named = self.model.generation_config.eos_token_id
        ends = [named] if isinstance(named, int) else list(named or [])
        if self.tokenizer.eos_token_id is not None and self.tokenizer.eos_token_id not in ends:
            ends.append(self.tokenizer.eos_token_id)
        if not ends:
            raise ValueError("neither the model nor its tokenizer says which token ends an answer")
        return ends


class GumbelNoise(LogitsProcessor):
    """Adds noise to scores so that the largest sum is a sample of their softmax.

    Args:
        seeds (`Sequence[int]`): One a row.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        words = scores.shape[-1]
        draws = torch.stack([torch.rand(words, generator=one, dtype=torch.float64) for one in self._generators])
        noise = -torch.log(-torch.log(draws.clamp(min=1e-300)))  # [rows, words]
        noisy: torch.FloatTensor = (scores.double() + noise.to(scores.device)).float()  # type: ignore[assignment]
        return noisy


def _seed(request: ChatRequest) -> int:
    content = [request.options.seed, request.sample, [message["content"] for message in request.messages]]
    return int.from_bytes(hashlib.blake2b(repr(content).encode(), digest_size=8).digest(), "big") >> 1


__all__ = ["GumbelNoise", "LocalModel"]
