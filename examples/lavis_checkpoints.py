"""From LAVIS's files to a model that answers: trimmed checkpoint, vision tower and language model are put together.

    python examples/lavis_checkpoints.py

The bundled tiny model is taken apart into what users of LAVIS have: a checkpoint without the frozen parts, a file like
`eva_vit_g.pth`, and the folder of a language model. It runs offline in seconds. With the published files the second half
is one command, see docs/conversion.md.
"""

import tempfile
from pathlib import Path

import torch

from instructblip_hf import InstructBlipForConditionalGeneration, InstructBlipProcessor, bundled_checkpoint
from instructblip_hf.conversion import Heads, ToFolder, ToLavis, convert_to_folder, convert_to_lavis


QUESTIONS = ["what color is the circle?", "how many objects are there?"]


def take_apart(model: InstructBlipForConditionalGeneration, folder: Path) -> None:
    """Writes what LAVIS would have of the bundled model."""
    convert_to_lavis(bundled_checkpoint(), folder / "whole.pth", ToLavis(drop_key_bias=True))
    convert_to_lavis(bundled_checkpoint(), folder / "trimmed.pth", ToLavis(trimmed=True))
    # Without what this package keeps beside LAVIS's weights, as LAVIS's own files are.
    checkpoints = {name: torch.load(folder / f"{name}.pth")["model"] for name in ("whole", "trimmed")}
    torch.save({"model": checkpoints["trimmed"]}, folder / "checkpoint.pth")
    prefix = "visual_encoder."
    tower = {name.removeprefix(prefix): value for name, value in checkpoints["whole"].items() if prefix in name}
    torch.save(tower, folder / "eva_vit.pth")
    model.language_model.save_pretrained(folder / "language_model")


def answers(model: InstructBlipForConditionalGeneration, processor: InstructBlipProcessor) -> list[str]:
    image = Path(__file__).parent / "scene.png"
    inputs = processor(
        images=[image] * len(QUESTIONS), text=QUESTIONS, padding=True, padding_side="left", return_tensors="pt"
    )
    return processor.batch_decode(model.generate(**inputs, return_full_text=False), skip_special_tokens=True)


def main() -> None:
    model = InstructBlipForConditionalGeneration.from_pretrained(bundled_checkpoint())
    processor = InstructBlipProcessor.from_pretrained(bundled_checkpoint())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        take_apart(model, folder)
        # No tensor tells the number of heads; published models have the default.
        vision, qformer = model.config.vision_config, model.config.qformer_config
        options = ToFolder(
            llm=folder / "language_model",
            processor=bundled_checkpoint(),
            heads=Heads(vision.num_attention_heads, qformer.num_attention_heads),
            vision_layers=vision.num_hidden_layers,
        )
        report = convert_to_folder([folder / "checkpoint.pth", folder / "eva_vit.pth"], folder / "model", options)
        print("\n".join(report.lines()))
        converted = InstructBlipForConditionalGeneration.from_pretrained(folder / "model")
        for question, before, after in zip(QUESTIONS, answers(model, processor), answers(converted, processor)):
            print(f"{question}  before: {before}  after: {after}")


if __name__ == "__main__":
    main()
