"""`instructblip evaluate-scienceqa`: files of answers, scored as LLaVA scores them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import user_errors
from .tables import print_columns


_TITLES = {
    "model": "the model",
    "gpt4": "GPT-4",
    "complement": "with GPT-4, complement",
    "judge": "with GPT-4, judge",
}


def evaluate_scienceqa(
    answers: Annotated[
        Path, typer.Argument(metavar="ANSWERS", help="LLaVA's answers (JSON Lines), or predictions.jsonl of evaluate.")
    ],
    data_root: Annotated[Path, typer.Option(help="Folder with ScienceQA's problems.json and pid_splits.json.")],
    split: Annotated[str, typer.Option(help="test, val, or those with an image: test_image, val_image.")] = "test",
    gpt4: Annotated[
        Path | None, typer.Option(help="GPT-4's answers: scores the two together too, in LLaVA's two ways.")
    ] = None,
    judge: Annotated[
        Path | None, typer.Option(help="What GPT-4 answers when it has seen both; where it is missing, the model's.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of chance, which chooses beside GPT-4 where an answer names no option.")
    ] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A JSON file with all numbers.")] = None,
) -> None:
    """Score answers to ScienceQA as LLaVA does: by subject, context and grade, alone and together with GPT-4's."""
    with user_errors():
        from ..data.sources.datasets import CatalogDataset
        from ..evaluation.report import science_table
        from ..evaluation.scienceqa import read_answers, score_answers, score_with_gpt4
        from ..utils.whole_files import write_whole

        if judge is not None and gpt4 is None:
            raise ValueError("--judge needs --gpt4, GPT-4's own answers")
        problems = CatalogDataset("scienceqa", data_root, split)
        examples = [problems.peek(place) for place in range(len(problems))]
        ours = read_answers(answers)
        result = score_answers(examples, ours)
        together: dict[str, Any] = {}
        if gpt4 is not None:
            judged = read_answers(judge) if judge is not None else None
            together = score_with_gpt4(examples, ours, read_answers(gpt4), judged, seed)
    head, scored, questions = science_table(result)
    rows = [head, [str(answers.name), *scored[1:]], questions]
    ensembles = {name: together[name] for name in _TITLES if name in together}
    for name, ensemble in ensembles.items():
        rows.append([_TITLES[name], *science_table(ensemble.result)[1][1:]])
    print_columns(rows)
    print(
        f"\n{answers.name}: {result['failed']} of {result['count']} choose nothing, {result['unanswered']} of them are not "
        f"there; {result['not_an_option']} choose what is no option. They count as wrong."
    )
    if together:
        drawn = ", ".join(f"{_TITLES[name]} {ensemble.drawn}" for name, ensemble in ensembles.items())
        print(
            f'Beside GPT-4 the sentence "The answer is X." alone counts, and chance (seed {seed}) chooses where an answer '
            f"names no option: {drawn}.\nGPT-4 gives no answer to {together['gpt4_failed']}. The model or GPT-4 is right "
            f"in {together['upper_bound']:.2%}."
        )
    if output is not None:
        write_whole(output, json.dumps(_report(result, together, seed), indent=2) + "\n")
        print(f"in {output}")


def _report(result: Mapping[str, Any], together: Mapping[str, Any], seed: int) -> dict[str, Any]:
    report: dict[str, Any] = {"answers": result}
    if together:
        ensembles = {
            name: {**together[name].result, "drawn": together[name].drawn, "choices": together[name].choices}
            for name in _TITLES
            if name in together
        }
        counts = {name: together[name] for name in ("upper_bound", "gpt4_failed", "judge_missing")}
        report["with_gpt4"] = {**ensembles, **counts, "seed": seed}
    return report


__all__ = ["evaluate_scienceqa"]
