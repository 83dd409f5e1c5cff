"""The paper's claims as comparisons of runs, with verdicts, in Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from claim_design import ARMS, NAMES
from claim_rows import ALL_TASKS, CANDIDATES, HELD_IN, HELD_OUT, NOVEL, SPATIAL, WITHHELD
from claim_statistics import Estimate, Results, is_alike, is_better


IN, OUT = tuple(HELD_IN), HELD_OUT


@dataclass(frozen=True)
class Comparison:
    """A claim as a difference of two measurements.

    Args:
        text (`str`): What is compared, and where.
        published (`str`): The paper's numbers.
        ours (`Estimate`), other (`Estimate`): Its sides, seed by seed.
        judge (`Callable`): `is_better` or `is_alike`.
    """

    text: str
    published: str
    ours: Estimate
    other: Estimate
    judge: Callable[[Estimate], str]

    @property
    def difference(self) -> Estimate:
        """Seed by seed."""
        return Estimate(tuple(a - b for a, b in zip(self.ours.values, self.other.values)))

    def row(self) -> list[str]:
        """Cells of the table."""
        low, high = self.difference.interval
        interval = f"{self.difference.mean:+.3f} [{low:+.3f}, {high:+.3f}]"
        return [self.text, self.published, str(self.ours), str(self.other), interval, self.judge(self.difference)]


@dataclass
class Claim:
    """One of the paper's claims, with the comparisons that it comes down to.

    Args:
        title (`str`): In a few words.
        source (`str`): Where the paper says it.
        sides (`tuple[str, str]`): Names of what is compared.
        comparisons (`list[Comparison]`): The numbers.
    """

    title: str
    source: str
    sides: tuple[str, str]
    comparisons: list[Comparison] = field(default_factory=list)


def claims(results: Results) -> list[Claim]:
    """All claims, judged."""
    return [make(results) for make in (_aware, _balance, _multitask, _start, _ranking)]


def _versus(
    results: Results,
    text: str,
    published: str,
    other: str,
    tasks: Sequence[str],
    column: str = "instruction",
    other_column: str = "",
    judge: Callable[[Estimate], str] = is_better,
) -> Comparison:
    """The default arm against another model; `other_column` where that is asked in another way."""
    sides = (results.accuracy("instruct", tasks, column), results.accuracy(other, tasks, other_column or column))
    return Comparison(text, published, *sides, judge)


def _aware(results: Results) -> Claim:
    claim = Claim("The Q-Former reads the instruction", "Table 2", ("with", "without"))
    for text, published, tasks, column in (
        ("held-in tasks", "94.1 / 89.8", IN, "instruction"),
        ("held-in tasks, held-out templates", "", IN, "templates"),
        ("held-out tasks", "SciQA 70.4 / 63.4, VizWiz 32.7 / 25.1, iVQA 53.1 / 47.5", OUT, "instruction"),
    ):
        claim.comparisons.append(_versus(results, text, published, "no_instruction", tasks, column))

    def gain(tasks: Sequence[str]) -> Estimate:
        return _versus(results, "", "", "no_instruction", tasks).difference

    rest = [task for task in ALL_TASKS if task not in SPATIAL]
    text = "what it gives on spatial tasks, against what it gives on others"
    published = "more where reasoning is spatial or temporal: SciQA 7.0, iVQA 5.6, held-in 4.3"
    claim.comparisons.append(Comparison(text, published, gain(SPATIAL), gain(rest), is_better))
    return claim


def _balance(results: Results) -> Claim:
    claim = Claim(
        "Sampling by the square root of sizes",
        "Table 2; it does not say what takes its place",
        ("square root", "other"),
    )
    for other in ("uniform", "size"):
        for text, published, tasks, column in (
            ("held-in tasks", "94.1 / 92.6", IN, "instruction"),
            ("held-in tasks, held-out templates", "", IN, "templates"),
            ("held-out tasks", "SciQA 70.4 / 66.0; with Vicuna-7B IconQA 43.1 / 43.5", OUT, "instruction"),
        ):
            claim.comparisons.append(_versus(results, f"{text}, against {other}", published, other, tasks, column))
    return claim


def _multitask(results: Results) -> Claim:
    claim = Claim("Instruction tuning against multitask training", "Figure 4", ("instructions", "other"))
    for text, published, other, tasks, column, other_column, judge in (
        ("held-in, plain, asked by instructions", "93.8 / 92.5", "plain", IN, "instruction", "", is_alike),
        ("held-in, plain, asked plainly", "", "plain", IN, "instruction", "plain", is_alike),
        ("held-in, identifiers, asked by instructions", "93.8 / 89.0", "identifier", IN, "instruction", "", is_alike),
        ("held-in, identifiers, asked so", "93.8 / 93.7", "identifier", IN, "instruction", "identifier", is_alike),
        ("held-out templates, plain", "", "plain", IN, "templates", "", is_better),
        ("held-out templates, identifiers", "", "identifier", IN, "templates", "", is_better),
        ("held-out tasks, plain, asked by instructions", "52.9 / 46.3", "plain", OUT, "instruction", "", is_better),
        ("held-out tasks, plain, asked plainly", "", "plain", OUT, "instruction", "plain", is_better),
        (
            "held-out tasks, identifiers, asked by instructions",
            "52.9 / 45.5",
            "identifier",
            OUT,
            "instruction",
            "",
            is_better,
        ),
        (
            "held-out tasks, identifiers, asked so",
            "52.9 / 46.8",
            "identifier",
            OUT,
            "instruction",
            "identifier",
            is_better,
        ),
        ("held-out tasks, against BLIP-2", "52.9 / 46.1", "blip2", OUT, "instruction", "", is_better),
    ):
        claim.comparisons.append(_versus(results, text, published, other, tasks, column, other_column, judge))
    for arm, number in (("plain", "46.3"), ("identifier", "45.5")):
        sides = (results.accuracy(arm, OUT), results.accuracy("blip2", OUT))
        text = f"held-out tasks: {NAMES[arm]} is like BLIP-2"
        claim.comparisons.append(Comparison(text, f"{number} / 46.1", *sides, is_alike))
    return claim


def _start(results: Results) -> Claim:
    claim = Claim(
        "InstructBLIP against BLIP-2 as the start of finetuning", "Table 3", ("from InstructBLIP", "from BLIP-2")
    )
    tasks = results.design.finetuning_tasks
    published = "XXL: SciQA 90.7 / 89.5, OCR-VQA 73.3 / 72.7, A-OKVQA 57.1 / 57.6; 7B: SciQA 79.5 / 77.3"
    for text, chosen, numbers in [("mean of the tasks", tasks, published), *((task, (task,), "") for task in tasks)]:
        sides = (results.finetuned("instruct", chosen), results.finetuned("blip2", chosen))
        claim.comparisons.append(Comparison(text, numbers, *sides, is_better))
    return claim


def _ranking(results: Results) -> Claim:
    claim = Claim(
        "Ranking against generation where answers are listed",
        "Section 2.4, which gives no numbers",
        ("ranking", "generation"),
    )
    for text, chosen in (
        ("multiple choice", ("choice", "choice_shape")),
        ("yes or no", ("relation", "exist", "exist_shape", "relation_color")),
        ("one of six colours, held-out task", ("color_at",)),
    ):
        sides = (results.ranking(chosen), results.accuracy("instruct", chosen))
        claim.comparisons.append(Comparison(text, "", *sides, is_better))
    return claim


# --- tables -----------------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(results: Results) -> str:
    """All tables in Markdown."""
    design = results.design
    sections = []
    for number, claim in enumerate(claims(results), 1):
        header = ["", "paper", *claim.sides, "difference [95 % interval]", "verdict"]
        rows = [comparison.row() for comparison in claim.comparisons]
        sections.append(f"## {number}. {claim.title}\n\n{claim.source}.\n\n{table(header, rows)}")
    models = ["blip2", *ARMS]
    groups = [
        ("held-in tasks", IN, "instruction"),
        ("held-out templates", IN, "templates"),
        ("held-out tasks", OUT, "instruction"),
        ("of these withheld", WITHHELD, "instruction"),
        ("of these novel", NOVEL, "instruction"),
    ]
    rows = [
        [text, *(str(results.accuracy(model, tasks, column)) for model in models)] for text, tasks, column in groups
    ]
    for task in ALL_TASKS:
        rows.append([f"`{task}`", *(str(results.accuracy(model, (task,))) for model in models)])
    sections.append("## Accuracy by task\n\n" + table(["", *(NAMES[model] for model in models)], rows))
    rows = []
    for task in CANDIDATES:
        pair = (results.ranking((task,)), results.accuracy("instruct", (task,)))
        rows.append([f"`{task}`", *map(str, pair)])
    sections.append("## Ranking by task\n\n" + table(["", "ranking", "generation"], rows))
    cpu = sum(record["cpu_seconds"] for record in results.records.values())
    facts = f"{len(design.seeds)} seeds, {len(results.records)} trainings, {cpu / 60:.1f} CPU minutes in them."
    facts += f" {design.examples} questions a task and model; mean ± standard deviation between seeds."
    return "\n\n".join([facts, *sections]) + "\n"
