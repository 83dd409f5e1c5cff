"""What the scripts of the shapes world share: the tiny model, cached vision features, batches of worded questions.

The vision tower is frozen once it is pre-trained, so its features of a fixed bank of training scenes are computed
once; questions about these scenes are drawn and worded anew for every batch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import LlamaConfig, PreTrainedTokenizerFast

from instructblip_hf.constants import IGNORE_INDEX, IMAGE_TOKEN
from instructblip_hf.data.sources.shapes_world import (
    HELD_OUT_TASKS,
    TASKS,
    build_tokenizer,
    make_row,
    render,
    sample_scene,
)
from instructblip_hf.data.sources.shapes_world.scenes import CELLS, COLORS, NOUNS, NUMBERS, SIZES, HandwrittenDigits
from instructblip_hf.data.sources.shapes_world.tasks import LETTERS, PLURALS, RELATIONS
from instructblip_hf.models.instructblip import (
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipQFormerConfig,
    InstructBlipVisionModel,
)
from instructblip_hf.training.initialization import reinitialize


NUM_QUERIES = 8
ATTENTION = "eager"
"""On a CPU the backward pass of plain attention takes half as long as that of torch's fused one at this size."""
QFORMER_SIDE = ("qformer", "query_tokens", "language_projection")
MAX_TEXT = 96
"""Longest instruction that the Q-Former reads, in tokens."""

TASK_WEIGHTS = {
    "caption": 1.5,
    "color": 0.7,
    "shape": 0.7,
    "size": 0.5,
    "where": 0.7,
    "at": 0.8,
    "digit": 0.8,
    "count": 1.5,
    "exist": 1.0,
    "relation": 2.5,
    "choice": 1.5,
    "question": 0.8,
    "dialogue": 1.0,
}
"""How often each task type is drawn in training, relative to the others: the hard ones more."""


COLUMNS = {
    "seen": "templates seen",
    "held_out": "templates held out",
    "blank": "image blanked",
    "other": "another image",
    "uninstructed": "no instruction in the Q-Former",
}
"""Columns of the accuracy table."""


def weights_from(changes: Sequence[str]) -> dict[str, float]:
    """`TASK_WEIGHTS` with changes of the form ``"relation=4"``.

    Raises:
        ValueError: If a change names no task type or no number.
    """
    weights = dict(TASK_WEIGHTS)
    for change in changes:
        task, _, value = change.partition("=")
        if task not in weights:
            raise ValueError(f"no task {task!r}; there are: {', '.join(weights)}")
        weights[task] = float(value)
    return weights


def build_model(vision: InstructBlipVisionModel, seed: int) -> InstructBlipForConditionalGeneration:
    """The tiny InstructBLIP around a pre-trained tower: Q-Former of 3 layers, LLaMA of 3 layers, both of width 128.

    At this width an initializer range of 0.02 would leave attention nearly uniform, hence 0.08.
    """
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    config = InstructBlipConfig(
        vision_config=vision.config,
        qformer_config=InstructBlipQFormerConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=384,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            max_position_embeddings=MAX_TEXT,
            cross_attention_frequency=1,
            initializer_range=0.08,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            initializer_range=0.08,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        num_query_tokens=NUM_QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        initializer_range=0.088,
    )
    model = InstructBlipForConditionalGeneration(config)
    model.set_attn_implementation(ATTENTION)
    model.vision_model.load_state_dict(vision.state_dict())
    reinitialize(model, QFORMER_SIDE, seed=seed)
    return model


@dataclass
class SceneBank:
    """Scenes with the vision tower's features of one picture each.

    Args:
        scenes (`list[Scene]`): The scenes.
        features (`torch.Tensor`): Bfloat16, shape (scenes, 50, 128).
    """

    scenes: list[Any]
    features: torch.Tensor


@torch.no_grad()
def build_bank(vision: InstructBlipVisionModel, count: int, seed: int, mean: float, std: float) -> SceneBank:
    """Draws training scenes, every second one with handwritten digits, and computes their features once."""
    rng = np.random.default_rng([seed, 11])
    handwritten = HandwrittenDigits("train")
    vision.eval()
    scenes, features = [], []
    for start in range(0, count, 250):
        images = []
        for index in range(start, min(start + 250, count)):
            scene = sample_scene(rng)
            scenes.append(scene)
            images.append(render(scene, rng, handwritten if index % 2 else None)[0])
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        features.append(vision((pixels - mean) / std).last_hidden_state.bfloat16())
    return SceneBank(scenes, torch.cat(features))


def cached_bank(
    vision: InstructBlipVisionModel, count: int, seed: int, mean: float, std: float, path: Path
) -> SceneBank:
    """`build_bank`, kept in a file so that the next phase need not compute it again."""
    if path.exists():
        stored = torch.load(path, weights_only=False)
        return SceneBank(stored["scenes"], stored["features"])
    bank = build_bank(vision, count, seed, mean, std)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"scenes": bank.scenes, "features": bank.features}, path)
    return bank


class QuestionSampler:
    """Draws worded questions about the scenes of a bank.

    Args:
        bank (`SceneBank`): The scenes.
        seed (`int`): Seed of questions and wordings.
        weights (`Mapping[str, float]`, *optional*): Relative frequency of the task types.
    """

    def __init__(self, bank: SceneBank, seed: int, weights: Mapping[str, float] | None = None) -> None:
        weights = TASK_WEIGHTS if weights is None else weights
        self.bank = bank
        self.rng = np.random.default_rng([seed, 1])
        self.tasks = list(TASKS)
        total = sum(weights[task] for task in self.tasks)
        self.probabilities = [weights[task] / total for task in self.tasks]

    def draw(self, count: int) -> list[dict[str, Any]]:
        """Rows without pictures: ``scene_index`` points into the bank."""
        rows = []
        for task in self.rng.choice(self.tasks, size=count, p=self.probabilities):
            while True:
                index = int(self.rng.integers(len(self.bank.scenes)))
                row = make_row(str(task), self.bank.scenes[index], self.rng)
                if row is not None:
                    break
            rows.append({**row, "task": str(task), "scene_index": index})
        return rows


def text_only_row(rng: np.random.Generator) -> dict[str, Any]:
    """A question that needs no picture, as a language model learns from text: which letter stands for a word,
    or how two named places lie to each other."""
    if rng.random() < 0.5:
        pool = list(COLORS) if rng.random() < 0.6 else list(NOUNS)
        words = [pool[index] for index in rng.permutation(len(pool))[:3]]
        options = " ".join(f"({letter}) {word}" for letter, word in zip(LETTERS, words))
        answer = int(rng.integers(3))
        kind = "color" if pool[0] in COLORS else "shape"
        forms = (
            "The {kind} is {word}. Options: {options}",
            "The {kind} is {word}. Choose: {options}",
            "{word}. Answer with a letter: {options}",
            "Options: {options}. The {kind} is {word}.",
        )
        prompt = forms[rng.integers(len(forms))].format(kind=kind, word=words[answer], options=options)
        return {"prompt": prompt, "completion": LETTERS[answer], "task": "text_choice"}
    cells = rng.permutation(len(CELLS))[:2].tolist()
    names = [f"{list(COLORS)[color]} {NOUNS[rng.integers(len(NOUNS))]}" for color in rng.permutation(6)[:2]]
    first, second = (divmod(cell, 3) for cell in cells)
    axes = [axis for axis in (0, 1) if first[axis] != second[axis]]
    axis = axes[rng.integers(len(axes))]
    before = bool(rng.integers(2))
    relation = (RELATIONS[2:] if axis == 0 else RELATIONS[:2])[0 if before else 1]
    truth = (first[axis] < second[axis]) == before
    prompt = (
        f"{names[0]} {CELLS[cells[0]]}, {names[1]} {CELLS[cells[1]]}. Is the {names[0]} {relation} the {names[1]}?"
    )
    return {"prompt": prompt, "completion": "yes" if truth else "no", "task": "text_relation"}


class RowEncoder:
    """Turns rows into the model's inputs, as the processor does it, with cached features for the pictures.

    One row reads ``<image> x 8, <bos>, prompt, completion, <eos>``, further turns following; the Q-Former reads the
    user's turns. Labels cover completions and their end tokens.

    Args:
        bank (`SceneBank`): Where ``scene_index`` points.
        unknown_share (`float`, *optional*, defaults to 0.0): Share of a prompt's less important words that are lost,
            one half left out and one replaced by ``<unk>``, for the language model and for the Q-Former each on its
            own. Other wordings than the ones trained on, and words outside the vocabulary, then do less harm.
        seed (`int`, *optional*, defaults to 0): Seed of these replacements.
    """

    def __init__(self, bank: SceneBank, unknown_share: float = 0.0, seed: int = 0) -> None:
        self.bank = bank
        self.tokenizer: PreTrainedTokenizerFast = build_tokenizer()
        self.qformer_tokenizer: PreTrainedTokenizerFast = build_tokenizer(for_qformer=True)
        self.unknown_share = unknown_share
        self.rng = np.random.default_rng([seed, 2])
        kept = " ".join(
            [*COLORS, *NOUNS, *SIZES, *NUMBERS, *CELLS, *LETTERS, *RELATIONS, *PLURALS.values(), "( ) objects"]
        )
        self.protected = set(self.tokenizer(kept, add_special_tokens=False).input_ids)
        self.image_id = self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.cls_id = self.qformer_tokenizer.cls_token_id
        self.sep_id = self.qformer_tokenizer.sep_token_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        turns = [_turns(row) for row in rows]
        texts = [text for row_turns in turns for turn in row_turns for text in turn]
        ids = iter(self.tokenizer(texts, add_special_tokens=False).input_ids)
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        inputs, labels, instructions = [], [], []
        for row, row_turns in zip(rows, turns):
            has_image = "scene_index" in row
            row_ids = [self.image_id] * (NUM_QUERIES if has_image else 0) + [bos]
            row_labels = [IGNORE_INDEX] * len(row_ids)
            instruction = [self.cls_id]
            for _ in row_turns:
                clean, completion = next(ids), [*next(ids), eos]
                prompt = self._blur(clean)
                row_ids += prompt + completion
                row_labels += [IGNORE_INDEX] * len(prompt) + completion
                instruction += self._blur(clean)
            inputs.append(row_ids)
            labels.append(row_labels)
            if has_image:
                instructions.append([*instruction[: MAX_TEXT - 1], self.sep_id])
        pad = self.tokenizer.pad_token_id
        encoded = {
            "input_ids": _pad(inputs, pad),
            "attention_mask": _pad([[1] * len(row) for row in inputs], 0),
            "labels": _pad(labels, IGNORE_INDEX),
        }
        if instructions:
            encoded["qformer_input_ids"] = _pad(instructions, pad)
            encoded["qformer_attention_mask"] = _pad([[1] * len(row) for row in instructions], 0)
            encoded["image_embeds"] = self.bank.features[
                [r["scene_index"] for r in rows if "scene_index" in r]
            ].float()
        return encoded

    def _blur(self, ids: list[int]) -> list[int]:
        if not self.unknown_share:
            return ids
        chance = self.rng.random(len(ids))
        unknown = self.tokenizer.unk_token_id
        blurred = []
        for token, drawn in zip(ids, chance):
            if token in self.protected or drawn >= self.unknown_share:
                blurred.append(token)
            elif drawn < self.unknown_share / 2:
                blurred.append(unknown)
        return blurred


def answer_loss(
    outputs: Any,
    labels: torch.Tensor,
    num_items_in_batch: Any = None,
    power: float = 0.5,
    parts: int = 1,
) -> torch.Tensor:
    """Cross-entropy in which an answer of n tokens weighs n^(1 - power): captions do not drown one-word answers.

    Args:
        outputs: Model output with ``logits`` of shape (batch, tokens, vocabulary).
        labels (`torch.Tensor`): Shape (batch, tokens), -100 where nothing is to be predicted.
        num_items_in_batch (*optional*): What `transformers.Trainer` passes; the loss is a mean over rows and needs
            it not.
        power (`float`, *optional*, defaults to 0.5): 0 sums over tokens, 1 is the mean over each answer.
        parts (`int`, *optional*, defaults to 1): Micro-batches of which the gradients are added up.

    Returns:
        `torch.Tensor`: Scalar.
    """
    targets = labels[:, 1:]
    chosen = targets != IGNORE_INDEX  # [batch, tokens - 1]
    losses = functional.cross_entropy(outputs["logits"][:, :-1][chosen].float(), targets[chosen], reduction="none")
    weights = chosen.sum(1, keepdim=True).float().pow(-power).expand_as(chosen)[chosen]
    return (losses * weights).sum() / (len(labels) * parts)


@torch.no_grad()
def forced_accuracy(model: InstructBlipForConditionalGeneration, encoder: RowEncoder, rows: list) -> dict[str, float]:
    """Share of rows by task of which every answer token is predicted given the true ones before it: a fast monitor."""
    training, blur = model.training, encoder.unknown_share
    model.eval()
    encoder.unknown_share = 0.0
    right: dict[str, list[bool]] = {}
    for start in range(0, len(rows), 128):
        chunk = rows[start : start + 128]
        batch = encoder(chunk)
        labels = batch.pop("labels")[:, 1:]
        with torch.autocast("cpu", torch.bfloat16):
            guesses = model(**batch).logits[:, :-1].argmax(-1)
        correct = ((guesses == labels) | (labels == IGNORE_INDEX)).all(1).tolist()
        for row, good in zip(chunk, correct):
            right.setdefault(row["task"], []).append(good)
    model.train(training)
    encoder.unknown_share = blur
    result = {task: round(float(np.mean(values)), 3) for task, values in sorted(right.items())}
    return {"mean": round(float(np.mean(list(result.values()))), 3), **result}


def row_length(row: Mapping[str, Any]) -> int:
    """Number of words and punctuation marks of a row, for sorting rows by length."""
    return sum(len(re.findall(r"\w+|[^\w\s]", text)) for turn in _turns(row) for text in turn)


def _turns(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "messages" in row:
        contents = [message["content"] for message in row["messages"]]
        return list(zip(contents[::2], contents[1::2]))
    return [(row["prompt"], row["completion"])]


def _pad(rows: list[list[int]], value: int) -> torch.Tensor:
    length = max(len(row) for row in rows)
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def table(accuracy: dict[str, dict[str, float]], columns: list[str]) -> str:
    """The accuracies as a Markdown table, held-out task types below the others."""
    lines = ["| task | " + " | ".join(COLUMNS[column] for column in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    trained = [task for task in accuracy if task not in HELD_OUT_TASKS]
    for task, values in accuracy.items():
        name = f"{task} (held-out task)" if task in HELD_OUT_TASKS else task
        cells = [f"{values[column]:.3f}" if column in values else "" for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    means = [f"{np.mean([accuracy[task][column] for task in trained]):.3f}" for column in columns]
    lines.append("| **mean, held-out tasks apart** | " + " | ".join(means) + " |")
    return "\n".join(lines)
