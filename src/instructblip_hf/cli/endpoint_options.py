"""Options of the commands that ask a chat model."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import STOPPED


if TYPE_CHECKING:
    from ..endpoints.asking import Asker
    from ..endpoints.estimation import Estimate


Endpoint = Annotated[
    str | None,
    typer.Option(metavar="URL", help="An OpenAI-compatible server, with /v1; OpenAI's own by default."),
]
ChatModel = Annotated[str | None, typer.Option("--model", "-m", help="What the server calls the model.")]
Local = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Folder or Hub id of a chat model to run here, in place of a server."),
]
ApiKeyVariable = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Environment variable with the server's key; OPENAI_API_KEY for OpenAI's."),
]
Concurrency = Annotated[int, typer.Option(min=1, help="Requests under way at once.")]
RequestsPerMinute = Annotated[int | None, typer.Option(min=1, help="Never more than so many requests a minute.")]
TokensPerMinute = Annotated[int | None, typer.Option(min=1, help="Never more than so many tokens a minute.")]
Timeout = Annotated[float, typer.Option(help="Seconds until a request is given up and repeated.")]
Attempts = Annotated[int, typer.Option(min=1, help="How often a request is sent at most.")]
MaxTokensField = Annotated[str, typer.Option(help="max_tokens, or max_completion_tokens for OpenAI's newer models.")]
RequestFields = Annotated[
    list[str] | None,
    typer.Option("--request", metavar="KEY=VALUE", help="One more field of each request, as JSON. Can be repeated."),
]
PromptPrice = Annotated[float, typer.Option(min=0, help="US dollars for a million tokens that are sent.")]
AnswerPrice = Annotated[float, typer.Option(min=0, help="US dollars for a million tokens that are answered.")]
MaxCost = Annotated[float | None, typer.Option(help="Stop before more US dollars than this are spent.")]
MaxTotalTokens = Annotated[int | None, typer.Option(min=1, help="Stop before more tokens than this are used.")]
LocalBatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Requests that --local answers at once.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be asked and what it would cost, and leave.")]


def request_fields(pairs: Sequence[str] | None) -> dict[str, Any]:
    """Fields of requests; a value that is no JSON is a text.

    Raises:
        ValueError: If a pair has no key.
    """
    fields: dict[str, Any] = {}
    for pair in pairs or ():
        name, is_pair, value = pair.partition("=")
        if not (name and is_pair):
            raise ValueError(f"--request {pair} must be KEY=VALUE")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    return fields


def told(estimated: Estimate) -> list[str]:
    """An estimate in words."""
    lines = [
        f"requests    {estimated.requests:,}, of which {estimated.cached:,} are answered already",
        f"tokens      about {estimated.prompt_tokens:,} sent, about {estimated.completion_tokens:,} answered "
        f"(at most {estimated.most_completion_tokens:,})",
    ]
    if estimated.most_cost or estimated.spent:
        lines.append(
            f"cost        about ${estimated.cost:.2f}, at most ${estimated.most_cost:.2f}; "
            f"spent so far ${estimated.spent:.2f}"
        )
    return lines


def spent(asker: Asker) -> list[str]:
    """What was paid in this folder, now and before, in words; nothing where it was nothing."""
    from ..endpoints.budget import Tokens

    budget = asker.budget
    lost = asker.cache.lost if asker.cache is not None else Tokens()
    told = f"cost        ${budget.cost:.4f} in all"
    tokens = lost.prompt + lost.completion
    if tokens:
        cost = budget.prices.cost(lost.prompt, lost.completion)
        told += f", of which up to ${cost:.4f} ({tokens:,} tokens) for requests whose answers were lost"
    return [told] if budget.cost else []


@contextlib.contextmanager
def endpoint_errors() -> Iterator[None]:
    """Turns what ends asking into one line and exit code 1. (`stopping_errors` would load the models first.)"""
    from ..endpoints.errors import EndpointError

    try:
        yield
    except EndpointError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(STOPPED) from error


@contextlib.contextmanager
def progress_bar(asker: Asker) -> Iterator[Callable[[int, int], None]]:
    """A bar of answers with what they cost, to be told how many are there and how many there will be."""
    from tqdm.auto import tqdm

    with tqdm(unit="answer", disable=not sys.stderr.isatty()) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            if asker.budget.cost:
                bar.set_postfix_str(f"${asker.budget.cost:.4f}", refresh=False)
            bar.update(done - bar.n)

        try:
            yield show
        except KeyboardInterrupt:
            print("ended; what was answered is kept, and the same command goes on", file=sys.stderr)
            raise


__all__ = ["endpoint_errors", "progress_bar", "request_fields", "spent", "told"]
