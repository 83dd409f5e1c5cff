"""`instructblip generate-data`: instruction data as LLaVA's was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from . import endpoint_options as of
from .errors import STOPPED, fail, user_errors
from .tables import print_columns


def generate_data(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the data. What was paid for is kept.")],
    captions: Annotated[Path | None, typer.Option(help="COCO's captions_train2017.json.")] = None,
    instances: Annotated[Path | None, typer.Option(help="COCO's instances_train2017.json.")] = None,
    contexts: Annotated[
        Path | None,
        typer.Option(help="In place of COCO's files: rows with image, captions and instances, one a line."),
    ] = None,
    types: Annotated[
        str, typer.Option(help="Response types, with commas between.")
    ] = "conversation,detail,complex_reasoning",
    images: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE=N", help="Of how many images, drawn by hash; of all by default. Can be repeated."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first images, to try it.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Folder with prompts in place of the package's.")] = None,
    ask_again: Annotated[
        int, typer.Option(min=0, help="How often another answer is asked for where one is rejected.")
    ] = 0,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="Of the answers.")] = 0.7,
    no_temperature: Annotated[
        bool, typer.Option("--no-temperature", help="Send none, for models that take none.")
    ] = False,
    top_p: Annotated[float | None, typer.Option(help="Of the answers.")] = None,
    seed: Annotated[
        int, typer.Option(help="Of what is drawn here: images, descriptions' questions, the image's place. Not sent.")
    ] = 0,
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
    """Make instruction data of captions and boxes, as LLaVA's: conversations, descriptions, reasoning."""
    if (captions is None) == (contexts is None):
        fail("generate-data needs --captions (and --instances), or --contexts")
    with user_errors():
        from ..endpoints.opening import EndpointOptions, open_asker
        from ..instruction_data.contexts import coco_contexts, jsonl_contexts
        from ..instruction_data.generating import CACHE, estimate_generation, generate
        from ..instruction_data.jobs import GenerationOptions
        from ..instruction_data.prompting import load_prompts

        options = GenerationOptions(
            types=tuple(name.strip() for name in types.split(",") if name.strip()),
            counts=_counts(images or []),
            ask_again=ask_again,
            seed=seed,
            temperature=None if no_temperature else temperature,
            top_p=top_p,
            extra=of.request_fields(request),
        )
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
        told = load_prompts(prompts)
        found = coco_contexts(captions, instances) if captions is not None else jsonl_contexts(contexts or "")
        found = found[:limit]
        asker = open_asker(wanted, output / CACHE)
    try:
        if dry_run:
            for line in of.told(estimate_generation(found, asker, options, told)):
                print(line)
            return
        with of.endpoint_errors(), of.progress_bar(asker) as show:
            report = generate(found, output, asker, options, told, show)
    finally:
        if asker.cache is not None:
            asker.cache.close()
    _show(report, output, asker.counts, of.spent(asker))
    if not report["complete"]:
        raise typer.Exit(STOPPED)


def _counts(pairs: Sequence[str]) -> dict[str, int]:
    counts = {}
    for pair in pairs:
        name, _, number = pair.partition("=")
        if not number.isdigit():
            raise ValueError(f"--images {pair} must be TYPE=N")
        counts[name] = int(number)
    return counts


def _show(report: Mapping[str, Any], output: Path, counts: Mapping[str, int], spent: Sequence[str]) -> None:
    rows = [("", "images", "rows", "rejected", "no answer", "duplicates")]
    for name, one in report["types"].items():
        numbers = (
            one["images"],
            one["rows"],
            sum(one["rejected"].values()),
            sum(one["failed"].values()),
            one["duplicate_rows"],
        )
        rows.append((name, *(f"{number:,}" for number in numbers)))
    print_columns(rows)
    reasons: dict[str, int] = {}
    for one in report["types"].values():
        for reason, count in (*one["rejected"].items(), *one["failed"].items()):
            reasons[reason] = reasons.get(reason, 0) + count
    if reasons:
        told = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items(), key=lambda one: -one[1]))
        print(f"not kept    {told}; {output / 'rejected.jsonl'} has them")
    answers = sum(one["answers"] for one in report["types"].values())
    print(f"answers     {answers:,}, of which {counts.get('asked', 0):,} were asked for now")
    for line in spent:
        print(line)
    print(f"data        {output / 'llava_instruct.json'}, and a file for each type")
    if not report["complete"]:
        print("not complete: the same command asks for what has no answer")


__all__ = ["generate_data"]
