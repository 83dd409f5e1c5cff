"""Any server with OpenAI's ``/v1/chat/completions``: OpenAI, vLLM, llama.cpp, Ollama, ``transformers serve``.

A time limit holds for each wait and for the body as a whole, so a server that sends a byte of an answer now and then does not
hold a thread for ever. One that sends its header lines so slowly can: httpx counts no time over these, and gives up at their
size. The key for the server is read from an environment variable and goes into the header alone; it is cut out of messages of
the server.
"""

from __future__ import annotations

import datetime
import email.utils
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import httpx

from .chat import ChatAnswer, ChatFailure, ChatRequest, Outcome
from .errors import EndpointError, TransientError
from .tokens import estimate_tokens, guess_tokens


OPENAI = "https://api.openai.com/v1"
OPENAI_KEY = "OPENAI_API_KEY"
_REPEATABLE = (408, 409, 425, 429)
_HOPELESS = (401, 402, 403, 404, 405)
_NO_MONEY = "insufficient_quota"
_SHOWN = 300
_MOST_TOKENS = 10**9
_SURROGATE = re.compile("[\ud800-\udfff]")


class OpenAiCompatible:
    """One model of one server.

    Args:
        model (`str`): Name that the server knows it by.
        base_url (`str`, *optional*, defaults to OpenAI's): With the version: ``"http://localhost:8000/v1"``.
        api_key_variable (`str`, *optional*): The environment variable that holds the key. By default
            ``OPENAI_API_KEY`` for OpenAI's address, and no key for any other.
        concurrency (`int`, *optional*, defaults to 8): Requests under way at once.
        timeout (`float`, *optional*, defaults to 120.0): Seconds of silence, and from sending to the end of the body; the
            second is not looked at before the answer's headers are there.
        max_tokens_field (`str`, *optional*, defaults to `"max_tokens"`): What the server calls the longest answer;
            OpenAI's newer models want ``"max_completion_tokens"``.

    Raises:
        ValueError: If an argument is out of its range, or the variable is not set.
    """

    batch_size = 1

    def __init__(
        self,
        model: str,
        base_url: str = OPENAI,
        api_key_variable: str | None = None,
        concurrency: int = 8,
        timeout: float = 120.0,
        max_tokens_field: str = "max_tokens",
    ) -> None:
        address = _address(base_url)
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; it must be at least 1")
        if timeout <= 0:
            raise ValueError(f"timeout is {timeout}; it must be above 0 seconds")
        self.model, self.concurrency, self.timeout = model, concurrency, timeout
        # Name and password go into the header alone: the address is shown in errors, and httpx logs it.
        plain = str(address.copy_with(username=None, password=None))
        login = (address.username, address.password) if address.userinfo else None
        self._url = plain.rstrip("/") + "/chat/completions"
        self._max_tokens_field = max_tokens_field
        self._key = _read_key(plain, api_key_variable)
        self._secrets = _spellings(self._key, address.password)
        # A thread's connection is kept; no thread waits for one of another.
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.Client(timeout=httpx.Timeout(timeout), limits=limits, headers=headers, auth=login)

    @property
    def facts(self) -> Mapping[str, Any]:
        """The model's name. The address is no part of it, so that answers stay good when a server moves."""
        return {"model": self.model}

    def answer(self, requests: Sequence[ChatRequest]) -> list[Outcome]:
        """The server's answer to one request.

        Raises:
            TransientError: At a time limit, a lost connection, a busy or broken server, an answer that is none.
            EndpointError: If the server does not know key or model, or wants money.
        """
        (request,) = requests
        return [self._read(request, *self._send(self._body(request)))]

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        options = request.options
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [dict(message) for message in request.messages],
            self._max_tokens_field: options.max_tokens,
        }
        optional = {"temperature": options.temperature, "top_p": options.top_p}
        if options.seed is not None:
            optional["seed"] = options.seed + request.sample
        body.update({name: value for name, value in optional.items() if value is not None})
        return {**body, **options.extra}

    def _send(self, body: Mapping[str, Any]) -> tuple[httpx.Response, bytes]:
        deadline = time.monotonic() + self.timeout
        content = bytearray()
        try:
            with self._client.stream("POST", self._url, json=body) as response:
                for piece in response.iter_bytes():
                    content += piece
                    if time.monotonic() > deadline:
                        raise TransientError(f"no whole answer in {self.timeout:g} s", may_be_paid=True)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise TransientError(f"no connection ({type(error).__name__})") from error
        except httpx.TimeoutException as error:
            raise TransientError(f"no answer in {self.timeout:g} s", may_be_paid=True) from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise TransientError(f"connection lost ({type(error).__name__})", may_be_paid=True) from error
        return response, bytes(content)

    def _read(self, request: ChatRequest, response: httpx.Response, content: bytes) -> Outcome:
        status = response.status_code
        if status == 200:
            return _answer_of(request, content)
        said = self._said(content)
        if status in _HOPELESS or (status == 429 and _NO_MONEY in said):
            raise EndpointError(f"{self._url} says {status} to model {self.model!r}: {said}")
        if status in _REPEATABLE or status >= 500:
            raise TransientError(f"status {status}", _asked_wait(response.headers), is_limit=status in (429, 503))
        return ChatFailure("refused", f"status {status}: {said}")

    def _said(self, content: bytes) -> str:
        text = content.decode(errors="replace")
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return " ".join(text.split())[:_SHOWN]  # cut last, so that no part of a secret is left


def _address(base_url: str) -> httpx.URL:
    """The address, checked. Errors show it without name and password."""
    shown = base_url.rpartition("@")[2].partition("?")[0]
    if not base_url.startswith(("http://", "https://")):
        raise ValueError(f"base_url is {shown!r}; it must begin with http:// or https://")
    try:
        address = httpx.URL(base_url)
        is_good = bool(address.host) and (address.port or 1) <= 65535
    except httpx.InvalidURL:
        is_good = False
    if not is_good:
        raise ValueError(f"base_url is {shown!r}; it must be an address such as http://localhost:8000/v1")
    if address.query or address.fragment:
        raise ValueError(f"base_url is {shown!r} with a query or a fragment, which it must not have")
    return address


def _spellings(*secrets: str | None) -> list[str]:
    """Secrets as a server may repeat them, as they are and as JSON, the longest first."""
    spelt = {form for one in secrets if one for form in (one, json.dumps(one)[1:-1], one.replace("/", r"\/"))}
    return sorted(spelt, key=len, reverse=True)


def _read_key(base_url: str, variable: str | None) -> str | None:
    """The key; that for OpenAI is not sent to others unasked."""
    wanted = variable or (OPENAI_KEY if httpx.URL(base_url).host == httpx.URL(OPENAI).host else None)
    if wanted is None:
        return None
    key = os.environ.get(wanted, "").strip()
    if not key:
        raise ValueError(f"the environment variable {wanted} is to hold the key for {base_url}, and is not set")
    return key


def _answer_of(request: ChatRequest, content: bytes) -> ChatAnswer:
    """An answer in OpenAI's form.

    Raises:
        TransientError: If it is none.
    """
    try:
        row = json.loads(content)
        choice = row["choices"][0]
        text = choice["message"]["content"]
        if text is None and choice.get("finish_reason"):
            text = ""  # refused by a filter, or nothing but thinking
        if not isinstance(text, str):
            raise TypeError("no text")
        usage = row.get("usage") or {}
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise TransientError("an answer in another form", may_be_paid=True) from error
    text = _SURROGATE.sub("\ufffd", text)  # half a character, which no file can hold
    finish_reason = _SURROGATE.sub("\ufffd", str(choice.get("finish_reason") or "stop"))
    if _is_count(prompt) and _is_count(completion):
        return ChatAnswer(text, finish_reason, prompt, completion)
    return ChatAnswer(text, finish_reason, guess_tokens(request.messages), estimate_tokens(text), is_counted=False)


def _is_count(tokens: Any) -> TypeGuard[int]:
    return isinstance(tokens, int) and not isinstance(tokens, bool) and 0 <= tokens <= _MOST_TOKENS


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: ``Retry-After`` as a number or a date, or OpenAI's in milliseconds."""
    milliseconds, value = headers.get("retry-after-ms"), headers.get("retry-after")
    try:
        if milliseconds is not None:
            return max(0.0, float(milliseconds) / 1000)
        return max(0.0, float(value)) if value is not None else None
    except ValueError:
        pass
    try:
        when = email.utils.parsedate_to_datetime(value or "")
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.timezone.utc)
    return max(0.0, (when - datetime.datetime.now(datetime.timezone.utc)).total_seconds())


__all__ = ["OPENAI", "OpenAiCompatible"]
