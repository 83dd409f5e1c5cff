"""Teach the bundled tiny model the numbers of drawn flags with TRL's `SFTTrainer`, and ask it about six it has not seen.

    python examples/trl_sft.py

Runs offline in some 15 seconds on two cores; needs ``pip install 'instructblip-hf[trl]'`` and Python 3.11. For images of
your own see examples/own_images/README.md, for everything else docs/trl.md.
"""

import tempfile
from pathlib import Path

from trl import SFTConfig, SFTTrainer

from instructblip_hf import InstructBlipForConditionalGeneration, InstructBlipProcessor, bundled_checkpoint
from instructblip_hf.data.jsonl import RowFileDataset
from instructblip_hf.data.trl_rows import trl_dataset
from instructblip_hf.training import apply_freezing


FLAGS = Path(__file__).parent / "own_images"


def main(epochs: float = 20) -> float:
    train = RowFileDataset(FLAGS / "train.jsonl")
    unseen = RowFileDataset(FLAGS / "evaluation.jsonl")
    model = InstructBlipForConditionalGeneration.from_pretrained(bundled_checkpoint())
    processor = InstructBlipProcessor.from_pretrained(bundled_checkpoint())
    print(apply_freezing(model, "instructblip"))

    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model,
            SFTConfig(
                output_dir=folder,
                assistant_only_loss=True,  # answers alone are learnt
                max_length=None,
                remove_unused_columns=False,  # the rows are opened when they are asked for
                num_train_epochs=epochs,
                per_device_train_batch_size=8,
                learning_rate=5e-4,
                lr_scheduler_type="cosine",
                warmup_steps=10,
                weight_decay=0.05,
                logging_steps=10,
                save_strategy="no",
                report_to="none",
                bf16=False,
            ),
            train_dataset=trl_dataset(train),
            eval_dataset=trl_dataset(unseen),
            processing_class=processor,
        )
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        after = trainer.evaluate()["eval_loss"]
    print(f"loss on flags that were not trained on: {before:.3f} before, {after:.3f} after")

    model.eval()
    rows = [unseen[index] for index in range(len(unseen))]
    prompts = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    inputs = processor.apply_chat_template(
        prompts,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"images": [row["images"] for row in rows], "padding": True, "padding_side": "left"},
    ).to(model.device)
    tokens = model.generate(**inputs, max_new_tokens=4, return_full_text=False)
    answers = [answer.strip() for answer in processor.batch_decode(tokens, skip_special_tokens=True)]
    right = sum(answer == row["completion"] for answer, row in zip(answers, rows)) / len(rows)
    print(f"answers: {', '.join(answers)}; {right:.0%} right")
    return right


if __name__ == "__main__":
    main()
