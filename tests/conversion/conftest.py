"""Files and folders that several tests convert; each is made once."""

from __future__ import annotations

import pytest
import torch

import lavis_files as lavis
from instructblip_hf.conversion import ToFolder, convert_to_folder


class Case:
    """LAVIS's files of a case, and the folder that is made of them."""

    def __init__(self, name, root):
        tensors, language, side = lavis.CASES[name]
        self.name = name
        self.kind = lavis.KINDS.get(name, "blip-2")
        self.checkpoint = lavis.save(root / f"{name}.pth", tensors())
        self.sources = [self.checkpoint]
        if side is None:
            self.tower = root / "eva_vit.pth"
            torch.save(lavis.vision_tower(layers=lavis.VISION["layers"] + 1, half=True, extra=True), self.tower)
            self.sources.append(self.tower)
        else:
            inside = lavis.vision_tower("visual_encoder.", side=side)
            self.checkpoint = lavis.save(root / f"{name}.pth", {**tensors(), **inside})
        self.options = dict(lavis.OPTIONS)
        if language is not None:
            self.options["llm"] = lavis.save_language_model(language, root / language, dtype=torch.bfloat16)
        self.folder = root / "folder"
        self.report = convert_to_folder(self.sources, self.folder, ToFolder(**self.options))


@pytest.fixture(scope="session")
def cases(tmp_path_factory):
    """Gives a case by its name."""
    made = {}

    def case(name):
        if name not in made:
            made[name] = Case(name, tmp_path_factory.mktemp(name))
        return made[name]

    return case
