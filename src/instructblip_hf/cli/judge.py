"""`instructblip judge`: a language model scores answers beside a reference's, as in LLaVA's paper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from . import endpoint_options as of
from .errors import STOPPED, user_errors
from .tables import print_columns


def judge(
    questions: Annotated[Path, typer.Option(help="Lines with question_id, image, text and category.")],
    answers: Annotated[Path, typer.Option(help="The model's answers: lines with question_id and text.")],
    reference: Annotated[Path, typer.Option(help="The reference's answers, of the same form.")],
    contexts: Annotated[
        Path, typer.Option(help="What the judge gets to know: lines with image, captions and instances.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for reviews and scores.")],
    order: Annotated[
        str, typer.Option(help="both; or, as the paper, reference-first; or model-first: of the answers.")
    ] = "both",
    rules: Annotated[
        Path | None, typer.Option(help="LLaVA's rule.json, for the published wording in place of ours.")
    ] = None,
    ask_again: Annotated[
        int, typer.Option(min=0, help="How often another review is asked for where one cannot be read.")
    ] = 0,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="Of the reviews.")] = 0.2,
    no_temperature: Annotated[
        bool, typer.Option("--no-temperature", help="Send none, for models that take none.")
    ] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest review, in tokens.")] = 1024,
    endpoint: of.Endpoint = None,
    model: of.ChatModel = None,
    local: of.Local = None,
    api_key_variable: of.ApiKeyVariable = None,
    concurrency: of.Concurrency = 8,
    requests_per_minute: of.RequestsPerMinute = None,
    tokens_per_minute: of.TokensPerMinute = None,
    timeout: of.Timeout = 120.0,
    attempts: of.Attempts = 6,
    max_tokens_field: of.MaxTokensField = "max_tokens",
    request: of.RequestFields = None,
    prompt_price: of.PromptPrice = 0.0,
    answer_price: of.AnswerPrice = 0.0,
    max_cost: of.MaxCost = None,
    max_total_tokens: of.MaxTotalTokens = None,
    batch_size: of.LocalBatchSize = 8,
    device: Annotated[str | None, typer.Option(help="Of --local.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of --local.")] = None,
    dry_run: of.DryRun = False,
) -> None:
    """Have a language model judge answers beside a reference's: relative scores by category, as in LLaVA's paper."""
    with user_errors():
        from ..endpoints.opening import EndpointOptions, open_asker
        from ..evaluation.judge.inputs import read_questions
        from ..evaluation.judge.judging import CACHE, JudgeOptions, estimate_judging
        from ..evaluation.judge.judging import judge as run_judge
        from ..evaluation.judge.prompting import messages_for, read_rules

        sent = None if no_temperature else temperature
        options = JudgeOptions(order, ask_again, sent, max_tokens, of.request_fields(request))
        wanted = EndpointOptions(
            model=model,
            base_url=endpoint,
            local=local,
            api_key_variable=api_key_variable,
            concurrency=concurrency,
            timeout=timeout,
            max_tokens_field=max_tokens_field,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            attempts=attempts,
            prompt_price=prompt_price,
            completion_price=answer_price,
            max_cost=max_cost,
            max_total_tokens=max_total_tokens,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
        )
        judged = read_questions(questions, answers, reference, contexts)
        published = read_rules(rules) if rules is not None else None
        for question in judged:
            messages_for(question, False, published)  # raises where there is no rule
        asker = open_asker(wanted, output / CACHE)
    try:
        if dry_run:
            for line in of.told(estimate_judging(judged, asker, options, published)):
                print(line)
            return
        with of.endpoint_errors(), of.progress_bar(asker) as show:
            report = run_judge(judged, output, asker, options, published, show)
    finally:
        if asker.cache is not None:
            asker.cache.close()
    _show(report, output)
    for line in of.spent(asker):
        print(line)
    if report["reviews"]["no_answer"]:
        print("not complete: the same command asks for what has no answer")
        raise typer.Exit(STOPPED)


def _show(report: Mapping[str, Any], output: Path) -> None:
    rows = [("", "relative", "95 %", "model", "reference", "judged", "not judged")]
    for name, one in report["scores"].items():
        counts = f"{one['judged']:,}", f"{one['not_judged']:,}"
        if one["relative"] is None:
            rows.append((name, "-", "-", "-", "-", *counts))
            continue
        low, high = one["interval"]
        numbers = (
            f"{one['relative']:.1f}",
            f"{low:.1f} to {high:.1f}",
            f"{one['model']:.2f}",
            f"{one['reference']:.2f}",
        )
        rows.append((name, *numbers, *counts))
    print_columns(rows)
    reviews, both = report["reviews"], report["scores"]["all"]
    print(f"reviews     {reviews['read']:,} of {reviews['wanted']:,}; {reviews['unread']:,} could not be read")
    if "same_winner" in both:
        print(
            f"the order   whoever comes first gets {both['advantage_of_first']:+.2f}; "
            f"same winner in both orders {both['same_winner']:.0%}"
        )
    print(f"see         {output / 'report.json'} and {output / 'reviews.jsonl'}")


__all__ = ["judge"]
