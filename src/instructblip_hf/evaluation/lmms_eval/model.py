"""A model of this package as one of lmms-eval's: the ``simple`` interface of lmms-eval 0.7, in batches.

``loglikelihood`` gives the negative sum of log-probabilities: lmms-eval takes the smallest value for the best choice,
though the words of its interface say log-probability. All answers to a document are ranked together, so that image and
prompt are read once. Its evaluator turns a pair of numbers into its text (`unwrap_generation_output`, 0.7.0 to 0.7.3), so
pairs come inside of a `GenerationResult`, whose content it hands on as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from tqdm import tqdm

from ...checkpoints import BUNDLED_CHECKPOINTS, bundled_checkpoint
from ...models.families import family_of
from ...models.language_models.adapter import padding_side
from ...models.recent_images import RecentImages
from ..tasks import Decoding
from .requests import DECODINGS, Generation, generation_of, images_of, with_markers


DTYPES = ("float32", "bfloat16", "float16")
MOST_KNOWN_ANSWERS = 100_000
"""Answers whose token ids are kept."""
BATCHES_SORTED_TOGETHER = 4
"""Neighbours in a dataset often ask about one image: so far at most they are moved, to stand beside prompts of their length."""


class LossAndGreedy(tuple[float, bool]):
    """The negative log-probability of an answer, and whether greedy decoding writes it."""

    __slots__ = ()

    def strip(self) -> LossAndGreedy:
        """Itself: lmms-eval's cache asks what a `GenerationResult` holds if it is more than space."""
        return self


@dataclass(frozen=True)
class _Asked:
    """A prompt about a document of a task."""

    prompt: str
    doc_to_visual: Any
    doc_id: Any
    task: str
    split: str

    @classmethod
    def of(cls, request: Any) -> _Asked:
        prompt, _, *rest = request.args
        return cls(prompt, *rest)

    def __str__(self) -> str:
        return f"{self.task}, document {self.doc_id} of {self.split}"


def _batches(places: Iterable[int], prompts: Sequence[str], size: int) -> Iterator[list[int]]:
    """Places in batches of prompts of about the same length, the longest first, among neighbours."""
    places, near = list(places), size * BATCHES_SORTED_TOGETHER
    for first in range(0, len(places), near):
        longest_first = sorted(places[first : first + near], key=lambda place: -len(prompts[place]))
        for start in range(0, len(longest_first), size):
            yield longest_first[start : start + size]


def _source_of(name: str) -> str:
    """What `from_pretrained` takes for a folder, a Hub id or a bundled name."""
    if name in BUNDLED_CHECKPOINTS:
        return str(bundled_checkpoint(name))
    folder = Path(name).expanduser()
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"pretrained is {name!r}, an adapter: merge it with its model first (instructblip merge)")
    if folder.is_dir():
        return str(folder)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ValueError(
            f"pretrained is {name!r}: there is no such folder nor a bundled checkpoint of that name "
            f"({', '.join(BUNDLED_CHECKPOINTS)}), and it is no Hub id"
        )
    return name


class InstructBlipHf(lmms):
    """Answers lmms-eval's requests with a model of this package.

    Args:
        pretrained (`str`): A folder, a Hub id, or the name of a bundled checkpoint.
        device (`str`, *optional*): By default that which accelerate gives this process, as always with several of them.
        dtype (`str`, *optional*): One of `DTYPES`; by default bfloat16 on an accelerator and float32 on a CPU.
        batch_size (`int`, *optional*, defaults to 1): Documents that are answered at a time.
        decoding (`str`, *optional*): One of `DECODINGS`, LAVIS's settings in place of those of the tasks.
        ranking_length_penalty (`float`, *optional*, defaults to 0.0): ``length_penalty`` of ``model.rank_candidates``:
            0 for the sum over an answer's tokens, 1 for their mean.
        chunk_size (`int`, *optional*): As in ``model.rank_candidates``, whose default it has.
        num_frames (`int`, *optional*, defaults to 4): Frames of a video.
        kwargs: Refused, by name.

    Raises:
        ValueError: If an argument is none of these, or has no such value.
        OSError: If there is no such model.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | str = 1,
        decoding: str | None = None,
        ranking_length_penalty: float = 0.0,
        chunk_size: int | None = None,
        num_frames: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if kwargs:
            raise ValueError(
                f"instructblip_hf does not take {', '.join(kwargs)}; its arguments are pretrained, device, dtype, "
                "batch_size, decoding, ranking_length_penalty, chunk_size and num_frames"
            )
        if pretrained is None:
            raise ValueError(
                f"pretrained is missing: name a folder, a Hub id or {' or '.join(BUNDLED_CHECKPOINTS)}, as in "
                "--model_args pretrained=Salesforce/instructblip-flan-t5-xl"
            )
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size is {batch_size!r}; it must be a number from 1")
        if decoding is not None and decoding not in DECODINGS:
            raise ValueError(f"decoding is {decoding!r}; allowed are {', '.join(DECODINGS)}")
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        is_alone = self._world_size == 1
        self.device = torch.device(device) if device is not None and is_alone else self.accelerator.device
        if dtype is None:
            dtype = "float32" if self.device.type == "cpu" else "bfloat16"
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; allowed are {', '.join(DTYPES)}")
        self.batch_size = int(batch_size)
        self.decoding: Decoding | None = None if decoding is None else DECODINGS[decoding]
        self.num_frames = num_frames
        self.ranking_options: dict[str, Any] = {"length_penalty": float(ranking_length_penalty)}
        if chunk_size is not None:
            self.ranking_options["chunk_size"] = int(chunk_size)
        source = _source_of(pretrained)
        family, model_class = family_of(source)
        self.processor = family.processor_class.from_pretrained(source)
        model: Any = model_class.from_pretrained(source, dtype=getattr(torch, dtype))
        self.model = model.to(self.device).eval()
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self.recent = RecentImages(self.model, self.processor)
        self._candidate_ids: dict[tuple[str, bool], list[int]] = {}

    @property
    def tokenizer(self) -> Any:
        """The language model's tokenizer."""
        return self.processor.tokenizer

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Answers to requests, each up to the first of its stop strings."""
        answers = [""] * len(requests)
        prompts = [request.args[0] for request in requests]
        # Requests with the same decoding go together.
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=repr), []).append(place)
        with self._progress(len(requests), "generate") as progress:
            for places in groups.values():
                kwargs = requests[places[0]].args[1]
                generation = generation_of(kwargs, self.is_encoder_decoder, self.decoding)
                for batch in _batches(places, prompts, self.batch_size):
                    asked = [_Asked.of(requests[place]) for place in batch]
                    for place, text in zip(batch, self._answer(asked, generation)):
                        answers[place] = text
                    progress.update(len(batch))
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """For each request a `GenerationResult` that holds a pair: the negative log-probability of its answer in nats, so
        that smaller is better, and whether greedy decoding writes this answer."""
        results: list[Any] = [None] * len(requests)
        # All answers to one prompt about one document go together.
        groups: dict[_Asked, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(_Asked.of(request), []).append(place)
        documents = list(groups)
        order = _batches(range(len(documents)), [asked.prompt for asked in documents], self.batch_size)
        with self._progress(len(documents), "loglikelihood") as progress:
            for batch in order:
                asked = [documents[index] for index in batch]
                candidates = [
                    [self._candidate(document, requests[place].args[1]) for place in groups[document]]
                    for document in asked
                ]
                output = self._rank_candidates(self._inputs(asked), candidates, return_greedy=True)
                for document, scores, greedy in zip(asked, output.scores.tolist(), output.is_greedy.tolist()):
                    for place, score, is_greedy in zip(groups[document], scores, greedy):
                        results[place] = GenerationResult(LossAndGreedy((-score, is_greedy)))
                progress.update(len(batch))
        return results

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Not supported.

        Raises:
            NotImplementedError: Always: a request of several rounds is made of questions that depend on the answers, which this plugin does not ask.
        """
        tasks = ", ".join(sorted({str(request.args[-2]) for request in requests}))
        raise NotImplementedError(f"instructblip_hf answers in one round; {tasks} asks in several")

    # --- prompts and answers ----------------------------------------------------------------------------------------

    def _inputs(self, asked: Sequence[_Asked]) -> Any:
        images = [self._images(document) for document in asked]
        texts = [
            self.processor.user_turn(with_markers(document.prompt, self.processor.image_token, len(own)), len(own))
            for document, own in zip(asked, images)
        ]
        side = padding_side(self.is_encoder_decoder)
        inputs = self.processor(
            images=images,
            text=texts,
            padding=True,
            padding_side=side,
            return_tensors="pt",
            image_inputs=self.recent,
        )
        return inputs.to(self.device, self.model.dtype)

    def _images(self, asked: _Asked) -> list[Any]:
        if asked.doc_to_visual is None:
            return []
        try:
            return images_of(asked.doc_to_visual(self._document(asked)), self.num_frames)
        except (ValueError, OSError) as error:
            raise ValueError(f"{asked}: {error}") from error

    def _document(self, asked: _Asked) -> Any:
        return self.task_dict[asked.task][asked.split][asked.doc_id]

    def _answer(self, asked: Sequence[_Asked], generation: Generation) -> list[str]:
        inputs = self._inputs(asked)
        if generation.candidates is not None:
            candidates = [
                [self._candidate(document, f" {text}") for text in generation.candidates] for document in asked
            ]
            best = self._rank_candidates(inputs, candidates, top_k=1).order[:, 0].tolist()
            return [generation.candidates[place] for place in best]
        with torch.no_grad():
            options = {**self.processor.generation_options(), **generation.options}
            ids = self.model.generate(**inputs, return_full_text=False, **options)
        return [generation.cut(text) for text in self.processor.answers(ids)]

    def _rank_candidates(self, inputs: Any, candidates: Sequence[list[list[int]]], **options: Any) -> Any:
        is_shared = all(own == candidates[0] for own in candidates[1:])
        ids = candidates[0] if is_shared else candidates
        return self.model.rank_candidates(candidates=ids, **inputs, **self.ranking_options, **options)

    def _candidate(self, asked: _Asked, continuation: Any) -> list[int]:
        text = continuation if isinstance(continuation, str) else continuation(self._document(asked))
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{asked}: an answer to be scored must be a text that is not empty, got {text!r}")
        # The space between prompt and answer stands at the beginning of the answer, in lmms-eval.
        key = (text.strip(), text[0].isspace() and not asked.prompt[-1:].isspace())
        if key not in self._candidate_ids:
            if len(self._candidate_ids) > MOST_KNOWN_ANSWERS:
                self._candidate_ids.clear()
            encoded = self.processor.encode_candidates(key[:1], self.is_encoder_decoder, add_prefix_space=key[1])
            self._candidate_ids[key] = encoded[0]
        return self._candidate_ids[key]

    @contextmanager
    def _progress(self, total: int, name: str) -> Iterator[Any]:
        with tqdm(total=total, desc=name, disable=self.rank != 0) as progress:
            yield progress
