"""An endpoint with its limits, opened by what a user says about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .asking import Asker
from .budget import Budget, Prices
from .cache import AnswerCache
from .chat import ChatEndpoint
from .openai_compatible import OPENAI, OpenAiCompatible
from .rate_limit import RateLimit
from .retries import RetryPolicy


MAX_TOKENS_FIELDS = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class EndpointOptions:
    """Who answers, and within what limits.

    Args:
        model (`str`, *optional*): Name of the model at the server.
        base_url (`str`, *optional*): Of the server, OpenAI's by default.
        local (`str`, *optional*): Folder or Hub id of a causal language model to run here, in place of a server.
        api_key_variable (`str`, *optional*): The environment variable that holds the server's key.
        concurrency (`int`, *optional*, defaults to 8): Requests under way at once.
        timeout (`float`, *optional*, defaults to 120.0): Seconds for a request, see `OpenAiCompatible`.
        max_tokens_field (`str`, *optional*, defaults to `"max_tokens"`): Or ``"max_completion_tokens"``.
        requests_per_minute (`int`, *optional*): Limit of requests.
        tokens_per_minute (`int`, *optional*): Limit of tokens.
        attempts (`int`, *optional*, defaults to 6): How often a request is sent at most.
        first_wait (`float`, *optional*, defaults to 1.0): Seconds before the second time, doubled after each.
        prompt_price (`float`, *optional*, defaults to 0.0): US dollars for a million tokens of prompts.
        completion_price (`float`, *optional*, defaults to 0.0): And of answers.
        max_cost (`float`, *optional*): Limit in US dollars.
        max_total_tokens (`int`, *optional*): Limit of tokens.
        batch_size (`int`, *optional*, defaults to 8): Of a local model.
        device (`str`, *optional*): Of a local model.
        dtype (`str`, *optional*): Of a local model.

    Raises:
        ValueError: If not one of ``model`` and ``local`` is given.
    """

    model: str | None = None
    base_url: str | None = None
    local: str | None = None
    api_key_variable: str | None = None
    concurrency: int = 8
    timeout: float = 120.0
    max_tokens_field: str = "max_tokens"
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    attempts: int = 6
    first_wait: float = 1.0
    prompt_price: float = 0.0
    completion_price: float = 0.0
    max_cost: float | None = None
    max_total_tokens: int | None = None
    batch_size: int = 8
    device: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if (self.model is None) == (self.local is None):
            raise ValueError("either the model of an endpoint or a local model is needed, and not both")
        if self.local is not None and self.base_url is not None:
            raise ValueError("a local model has no address")
        if self.max_tokens_field not in MAX_TOKENS_FIELDS:
            raise ValueError(
                f"max_tokens_field is {self.max_tokens_field!r}; allowed are {', '.join(MAX_TOKENS_FIELDS)}"
            )

    def open(self) -> ChatEndpoint:
        """The endpoint."""
        if self.local is not None:
            from .local import LocalModel

            return LocalModel.from_pretrained(self.local, self.device, self.dtype, self.batch_size)
        return OpenAiCompatible(
            str(self.model),
            self.base_url or OPENAI,
            self.api_key_variable,
            self.concurrency,
            self.timeout,
            self.max_tokens_field,
        )


def open_asker(options: EndpointOptions, folder: str | Path) -> Asker:
    """Opens endpoint and cache, to be closed with ``asker.cache.close()``.

    Args:
        options (`EndpointOptions`): Who answers, and within what limits.
        folder (`str` or `Path`): Of the cache.

    Raises:
        ValueError: If an option is out of its range, a key is missing, or another process has the cache.
    """
    # All that can be wrong with them before a model is loaded.
    budget = Budget(Prices(options.prompt_price, options.completion_price), options.max_cost, options.max_total_tokens)
    rate_limit = RateLimit(options.requests_per_minute, options.tokens_per_minute)
    retries = RetryPolicy(options.attempts, options.first_wait)
    endpoint = options.open()
    return Asker(endpoint, AnswerCache(folder), budget, rate_limit, retries)


__all__ = ["MAX_TOKENS_FIELDS", "EndpointOptions", "open_asker"]
