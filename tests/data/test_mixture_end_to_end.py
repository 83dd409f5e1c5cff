"""Official files to batches, and the mixture under Trainer: what is read is what the draws say, also after a resume."""

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from instructblip_hf.data.catalog import DATASETS
from instructblip_hf.data.collators import VisionLanguageCollator
from instructblip_hf.data.mixture import Mixture, MixtureDataset, MixtureSampler
from instructblip_hf.data.sources.datasets import CatalogDataset, open_images
from instructblip_hf.data.templates import FORMS, InstructionDataset, Instructions
from official_formats import write_dataset
from tiny_processors import our_processor


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    return {name: (root / name, write_dataset(name, root / name)) for name in DATASETS}


@pytest.mark.parametrize("name", DATASETS)
def test_every_row_of_every_dataset_can_be_worded(copies, name):
    root, splits = copies[name]
    for split in splits:
        if not DATASETS[name].splits[split].labelled:
            continue
        examples = CatalogDataset(name, root, split)
        for form in FORMS:
            rows = InstructionDataset(examples, Instructions(form=form), open_images)
            if form == "prefix" and DATASETS[name].category not in (
                "image_captioning",
                "captioning_reading",
                "llava_instruct",
            ):
                with pytest.raises(ValueError, match="form prefix is for captions"):
                    rows[0]
                continue
            if form == "llava_scienceqa" and name != "scienceqa":
                # Messages are not worded; other questions with options and a right one would do as well.
                if DATASETS[name].category != "llava_instruct" and "correct_option" not in examples[0]:
                    with pytest.raises(ValueError, match="form llava_scienceqa is for questions with options"):
                        rows[0]
                continue
            for example, row in zip(examples, rows):
                assert row["dataset"] == name
                assert row["images"] or not example["images"]
                if form == "prefix" and "messages" not in row:
                    whole = f"{row['prompt']} {row['completion']}".strip()
                    assert whole in [" ".join(answer.split()) for answer in example["answers"]]
                elif form == "llava_scienceqa":
                    letter = "ABCDE"[example["correct_option"]]
                    assert row["completion"].endswith(f"The answer is {letter}.")
                    assert example["question"] in row["prompt"]
                elif "messages" in row:
                    assert len(row["messages"]) == len(example["messages"])
                elif example["category"] == "question_generation":
                    assert row["completion"] == example["question"]
                    assert any(answer in row["prompt"] for answer in example["answers"])
                else:
                    assert row["completion"] in example["answers"]
                    asked = example.get("question") or example.get("statement") or ""
                    assert asked in row["prompt"]


def test_the_paper_s_mixture_is_collated(copies):
    held_in = [name for name, spec in DATASETS.items() if spec.role == "held-in"]
    datasets = {
        name: InstructionDataset(CatalogDataset(name, copies[name][0]), Instructions(seed=1), open_images)
        for name in held_in
    }
    mixture = Mixture({name: len(rows) for name, rows in datasets.items()}, factors={"okvqa": 1.5, "aokvqa": 0.5})
    dataset = MixtureDataset(datasets, mixture, length=160)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=16,
        sampler=MixtureSampler(160),
        collate_fn=VisionLanguageCollator(our_processor()),
        num_workers=1,
    )
    batches = list(loader)
    assert len(batches) == 10
    assert {dataset[number]["dataset"] for number in range(160)} == set(held_in)
    for batch in batches:
        assert len(batch["input_ids"]) == 16
        assert bool((batch["labels"] != -100).any(dim=1).all())


class Counting(torch.nn.Module):
    """Has a loss, and knows which rows it was trained on."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, row):
        self.seen += row.tolist()
        return {"loss": (self.weight * row).mean()}


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


class MixtureTrainer(Trainer):
    def _get_train_sampler(self, train_dataset=None):
        return MixtureSampler(len(self.train_dataset))


def train(output, length, stop=None, resume=False, workers=0, strategy=None):
    datasets = {"a": [{"row": 100 + row} for row in range(30)], "b": [{"row": 200 + row} for row in range(7)]}
    mixture = Mixture({name: len(rows) for name, rows in datasets.items()}, seed=4)
    model = Counting()
    trainer = (Trainer if strategy else MixtureTrainer)(
        model=model,
        args=TrainingArguments(
            output_dir=str(output),
            max_steps=10,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            save_steps=1,
            save_total_limit=1,
            dataloader_num_workers=workers,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **({"train_sampling_strategy": strategy} if strategy else {}),
        ),
        train_dataset=MixtureDataset(datasets, mixture, length),
        data_collator=lambda rows: {"row": torch.tensor([float(row["row"]) for row in rows])},
        callbacks=[StopAt(stop)] if stop else [],
    )
    trainer.train(resume_from_checkpoint=resume or None)
    return model.seen, [datasets[draw.dataset][draw.row]["row"] for draw in map(mixture.draw, range(40))]


@pytest.mark.parametrize("length", [40, 16], ids=["in-one-epoch", "over-epochs"])
@pytest.mark.parametrize("workers", [0, 1])
def test_trainer_reads_the_draws_and_resumes(tmp_path, length, workers):
    seen, draws = train(tmp_path, length, stop=3, workers=workers)
    assert seen == draws[:12]
    resumed, _ = train(tmp_path, length, resume=True, workers=workers)
    assert resumed == draws[12:]


def test_trainer_s_sequential_strategy_is_enough_for_one_epoch(tmp_path):
    seen, draws = train(tmp_path, 40, strategy="sequential")
    assert seen == draws
