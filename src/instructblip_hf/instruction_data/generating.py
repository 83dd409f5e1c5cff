"""The generator: asks for every response, reads the answers strictly, and writes them as LLaVA-Instruct (section 3).

Everything that is written is a function of the raw answers in the cache, gone through in the order of the images: a run that
was killed is the same command once more, which pays for what is missing and writes what an uninterrupted run would have.

============================  =====================================================================================
``cache/answers.jsonl``       raw answers, appended as they arrive; what makes a run resumable
``conversation.json``, ...    rows of each response type, in the form of LLaVA-Instruct-150K
``llava_instruct.json``       all of them
``raw.jsonl``                 every answer with image, type, and what became of it
``rejected.jsonl``            those that were rejected, and why; and requests without an answer
``report.json``               counts, lengths, rejects, tokens, cost
============================  =====================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..endpoints.asking import Asker
from ..endpoints.chat import ChatAnswer, ChatFailure
from ..endpoints.estimation import Estimate, estimate
from ..utils.fingerprints import fingerprint_of
from ..utils.whole_files import write_whole
from .contexts import ImageContext, distinct
from .deduplication import Duplicates
from .jobs import GenerationOptions, Job, jobs_for
from .parsing import Turn, parse_answer
from .prompting import Prompts, load_prompts
from .report import TypeReport
from .response_types import RESPONSE_TYPES
from .rows import as_json_list, as_jsonl, llava_row


ALL_ROWS, RAW, REJECTED, REPORT = "llava_instruct.json", "raw.jsonl", "rejected.jsonl", "report.json"
CACHE = "cache"


def generate(
    contexts: Sequence[ImageContext],
    output: str | Path,
    asker: Asker,
    options: GenerationOptions | None = None,
    prompts: Mapping[str, Prompts] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Makes instruction data of images' captions and boxes.

    Args:
        contexts (`Sequence[ImageContext]`): What is known of the images.
        output (`str` or `Path`): Folder for the data. Files of an earlier run are replaced when this one is through.
        asker (`Asker`): Who answers, with a cache: ``open_asker(endpoint_options, Path(output) / "cache")``.
        options (`GenerationOptions`, *optional*): What is generated.
        prompts (`Mapping[str, Prompts]`, *optional*): The package's own by default.
        progress (`Callable`, *optional*): Called with how many answers are there and how many there will be.

    Returns:
        `dict`: The content of ``report.json``. ``complete`` is false if requests came to nothing, as at the end of the
        budget; the same again asks for those.

    Raises:
        EndpointError: If no further request can succeed. What was answered is in the cache.
        ValueError: If the asker has no cache.
    """
    if asker.cache is None:
        raise ValueError("the asker must have a cache, of which the data are written")
    options, prompts = options or GenerationOptions(), prompts or load_prompts()
    states = [_State(job) for job in jobs_for(list(distinct(contexts)), options)]
    run = _Run(asker, options, prompts, progress or (lambda done, total: None))
    run.ask(states)
    return run.write(states, Path(output))


def estimate_generation(
    contexts: Sequence[ImageContext],
    asker: Asker,
    options: GenerationOptions | None = None,
    prompts: Mapping[str, Prompts] | None = None,
) -> Estimate:
    """What `generate` would ask and pay for at first; nothing is asked. Asking again for what is rejected comes on top."""
    options, prompts = options or GenerationOptions(), prompts or load_prompts()
    jobs = jobs_for(list(distinct(contexts)), options)
    requests = (job.request(prompts, options) for job in jobs)
    return estimate(asker, requests, lambda request: request.tag.type.expected_tokens)


@dataclass
class _State:
    """A job and how far it is."""

    job: Job
    samples: int = 0
    """Answers that are there."""
    is_good: bool = False
    """Whether the last of them was accepted."""
    failure: ChatFailure | None = None


@dataclass
class _Run:
    asker: Asker
    options: GenerationOptions
    prompts: Mapping[str, Prompts]
    progress: Callable[[int, int], None]
    total: int = 0
    done: int = field(default=0, init=False)

    def ask(self, states: Sequence[_State]) -> None:
        """Gets answers to all jobs, and other answers where they are rejected and may be asked for again."""
        self.total = len(states)
        left = list(states)
        for sample in range(1 + self.options.ask_again):
            requests = (state.job.request(self.prompts, self.options, sample) for state in left)
            # Closed whatever happens here, so that answers under way reach the cache while it is open.
            with closing(self.asker.ask(requests)) as outcomes:
                for state, (_, outcome) in zip(left, outcomes):
                    if isinstance(outcome, ChatFailure):
                        state.failure = outcome
                    else:
                        state.samples = sample + 1
                        state.is_good = not isinstance(_parsed(state.job, outcome), str)
                    self.done += 1
                    self.progress(self.done, self.total)
            left = [state for state in left if not state.is_good and state.failure is None]
            if sample < self.options.ask_again:
                self.total += len(left)

    def write(self, states: Sequence[_State], output: Path) -> dict[str, Any]:
        """Reads all answers once more, in order, and writes what comes of them."""
        reports = {name: TypeReport() for name in self.options.types}
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in self.options.types}
        everything: list[dict[str, Any]] = []
        raw: list[dict[str, Any]] = []
        rejected: list[dict[str, Any]] = []
        duplicates = Duplicates()
        for state in states:
            job, report = state.job, reports[state.job.type.name]
            report.images += 1
            for sample in range(state.samples):
                answer = self._answer(job, sample)
                parsed = _parsed(job, answer)
                report.add_answer(answer)
                record = {"type": job.type.name, "image": job.context.image, "sample": sample, **_plain(answer)}
                if isinstance(parsed, str):
                    report.reject(parsed)
                    rejected.append({**record, "reason": parsed})
                    raw.append({**record, "result": parsed})
                    continue
                turns = duplicates.without(job.context.image, parsed)
                raw.append({**record, "result": "kept" if turns else "duplicate"})
                report.add_row(parsed, turns)
                if turns:
                    row = llava_row(job.context, job.type.name, self._worded(job, turns), self.options.seed)
                    rows[job.type.name].append(row)
                    everything.append(row)
            if state.failure is not None:
                report.fail(state.failure.reason)
                record = {"type": job.type.name, "image": job.context.image, "sample": state.samples}
                rejected.append({**record, "reason": state.failure.reason, "detail": state.failure.detail})
        content = self._report(reports)
        for name, found in rows.items():
            write_whole(output / RESPONSE_TYPES[name].file, as_json_list(found))
        write_whole(output / ALL_ROWS, as_json_list(everything))
        write_whole(output / RAW, as_jsonl(raw))
        write_whole(output / REJECTED, as_jsonl(rejected))
        write_whole(output / REPORT, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        return content

    def _answer(self, job: Job, sample: int) -> ChatAnswer:
        cache = self.asker.cache
        answer = cache.get(self.asker.key(job.request(self.prompts, self.options, sample))) if cache else None
        if answer is None:
            raise RuntimeError(f"the cache lost an answer about {job.context.image}")
        return answer

    def _worded(self, job: Job, turns: Sequence[Turn]) -> list[Turn]:
        if job.type.asks:
            return list(turns)
        question = self.prompts[job.type.name].question(job.context.image, self.options.seed)
        return [Turn(question, turn.answer) for turn in turns]

    def _report(self, reports: Mapping[str, TypeReport]) -> dict[str, Any]:
        prices = self.asker.budget.prices
        types = {name: report.content(prices) for name, report in reports.items()}
        content: dict[str, Any] = {
            "complete": not any(report.failed for report in reports.values()),
            "rows": sum(one["rows"] for one in types.values()),
            "cost_of_answers": round(sum(one["cost"] for one in types.values()), 6),
            "types": types,
            "model": dict(self.asker.endpoint.facts),
            "prices": {"prompt": prices.prompt, "completion": prices.completion},
            "seed": self.options.seed,
            "options": {
                name: self.options.chat_options(RESPONSE_TYPES[name]).content() for name in self.options.types
            },
            "prompts": {name: fingerprint_of(vars(self.prompts[name])) for name in self.options.types},
        }
        return content


def _parsed(job: Job, answer: ChatAnswer) -> list[Turn] | str:
    return parse_answer(job.type, answer.text, answer.finish_reason)


def _plain(answer: ChatAnswer) -> dict[str, Any]:
    return {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
    }


__all__ = ["ALL_ROWS", "CACHE", "RAW", "REJECTED", "REPORT", "estimate_generation", "generate"]
