"""Instruction templates: the wording that turns an example into a prompt and its completion."""

from .instructions import FORMS, InstructionDataset, Instructions, split_caption
from .loading import TaskTemplates, TemplateError, load_templates
from .wording import Template, slot_texts


__all__ = [
    "FORMS",
    "InstructionDataset",
    "Instructions",
    "TaskTemplates",
    "Template",
    "TemplateError",
    "load_templates",
    "split_caption",
    "slot_texts",
]
