"""The package's code beside a checkpoint, so that ``trust_remote_code=True`` needs no install of this package.

transformers copies remote code file by file and follows only ``from .name import ...`` lines, so the modules that a
family needs are written as flat siblings: ``models/connectors/qformer.py`` becomes ``connectors_qformer.py``, and
imports are rewritten to match. Names that a subpackage's ``__init__`` passes on are imported from where they are
defined. Nothing is imported or executed here; the sources are read.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any


_PACKAGE = __name__.split(".")[0]
_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class _Family:
    """Dotted names, inside the package, of what the Auto classes are to find."""

    config: str
    model: str
    processor: str
    pipeline: str = "pipelines.image_to_text.ImageToTextPipeline"


_FAMILIES = {
    "instructblip": _Family(
        config="models.instructblip.configuration_instructblip.InstructBlipConfig",
        model="models.instructblip.modeling_instructblip.InstructBlipForConditionalGeneration",
        processor="models.instructblip.processing_instructblip.InstructBlipProcessor",
    ),
    "blip-2": _Family(
        config="models.blip_2.configuration_blip_2.Blip2Config",
        model="models.blip_2.modeling_blip_2.Blip2ForConditionalGeneration",
        processor="models.blip_2.processing_blip_2.Blip2Processor",
    ),
    "llava": _Family(
        config="models.llava.configuration_llava.LlavaConfig",
        model="models.llava.modeling_llava.LlavaForConditionalGeneration",
        processor="models.llava.processing_llava.LlavaProcessor",
    ),
}
_MODEL_AUTO_CLASSES = ("AutoModelForImageTextToText", "AutoModelForVision2Seq")


def processor_class_name(model_type: str) -> str:
    """Name of the processor's class of a family; `AutoProcessor` for a type that is none of ours."""
    family = _FAMILIES.get(model_type)
    return family.processor.rpartition(".")[2] if family is not None else "AutoProcessor"


def export_remote_code(folder: str | PathLike[str]) -> list[Path]:
    """Write the code of a saved model's family into its folder, and name it in the configuration files.

    ``config.json`` gets ``auto_map`` and ``custom_pipelines`` (for ``image-to-text``), ``processor_config.json`` its
    ``auto_map``. Without ``trust_remote_code`` the folder still opens with stock transformers' classes.

    Args:
        folder (`str` or `os.PathLike`): What ``model.save_pretrained`` and ``processor.save_pretrained`` wrote.

    Returns:
        `list[pathlib.Path]`: The code files written.

    Raises:
        FileNotFoundError: If the folder has no ``config.json``.
        ValueError: If the ``model_type`` is not one of this package's families.
    """
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model_type = config.get("model_type")
    if model_type not in _FAMILIES:
        raise ValueError(f"{folder} holds model_type {model_type!r}; code can be added for: {', '.join(_FAMILIES)}")
    family = _FAMILIES[model_type]
    architecture = (config.get("architectures") or [None])[0]
    own = family.model.rpartition(".")[2]
    if architecture not in (None, own):
        raise ValueError(f"{folder} holds a {architecture}; code can be added for {own} of this type alone")

    entries = (family.config, family.model, family.processor, family.pipeline)
    written = []
    for module, source in sorted(_flat_sources([entry.rpartition(".")[0] for entry in entries]).items()):
        path = folder / f"{module}.py"
        path.write_text(source, encoding="utf-8")
        written.append(path)

    config["auto_map"] = {
        "AutoConfig": _flat_reference(family.config),
        **{auto_class: _flat_reference(family.model) for auto_class in _MODEL_AUTO_CLASSES},
        "AutoProcessor": _flat_reference(family.processor),
    }
    config["custom_pipelines"] = {
        "image-to-text": {
            "impl": _flat_reference(family.pipeline),
            "pt": ["AutoModelForImageTextToText"],  # must be an attribute of stock transformers
            "type": "multimodal",
        }
    }
    _write_json(folder / "config.json", config)
    processor_file = folder / "processor_config.json"
    if processor_file.exists():
        processor = json.loads(processor_file.read_text(encoding="utf-8"))
        processor["auto_map"] = {"AutoProcessor": _flat_reference(family.processor)}
        _write_json(processor_file, processor)
    return written


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


# --- flattening; a module is named by its path inside the package, "models.instructblip.modeling_instructblip" -----


def _flat_reference(dotted: str) -> str:
    module, _, name = dotted.rpartition(".")
    return f"{_flat_name(module)}.{name}"


def _flat_name(module: str) -> str:
    parts = module.removeprefix("models.").split(".")
    if len(parts) > 1 and parts[-2] in parts[-1]:
        parts = parts[-1:]  # a family's own files say the family already
    return "_".join(parts)


def _flat_sources(entries: list[str]) -> dict[str, str]:
    """Rewritten source of every module that the entries import, directly or not, by flat name."""
    sources: dict[str, str] = {}
    origin: dict[str, str] = {}
    waiting = list(entries)
    while waiting:
        module = waiting.pop()
        flat = _flat_name(module)
        if flat in sources:
            if origin[flat] != module:
                raise ValueError(f"modules {origin[flat]} and {module} would both be written as {flat}.py")
            continue
        origin[flat] = module
        sources[flat], needed = _rewrite(module)
        waiting.extend(needed)
    return sources


def _rewrite(module: str) -> tuple[str, set[str]]:
    """Source of a module with its relative imports made flat, and the modules that these name."""
    path = _path(module)
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    needed: set[str] = set()
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in sorted(imports, key=lambda node: node.lineno, reverse=True):
        if isinstance(node, ast.Import) or node.level == 0:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            if any(name.split(".")[0] == _PACKAGE for name in names):
                raise ValueError(
                    f"{path}, line {node.lineno}: import {_PACKAGE} relatively, so that it can be flattened"
                )
            continue
        by_module: dict[str, list[str]] = {}
        for alias in node.names:
            defining, name = _definition(_target(module, node), alias.name)
            needed.add(defining)
            by_module.setdefault(_flat_name(defining), []).append(
                name if (alias.asname or alias.name) == name else f"{name} as {alias.asname or alias.name}"
            )
        indent = " " * node.col_offset
        lines[node.lineno - 1 : node.end_lineno] = [
            f"{indent}from .{flat} import {', '.join(names)}" for flat, names in by_module.items()
        ]
    header = f"# From {_PACKAGE}/{path.relative_to(_ROOT).as_posix()} of instructblip-hf (Apache-2.0), flattened."
    return "\n".join([header, *lines]) + "\n", needed


def _target(module: str, node: ast.ImportFrom) -> str:
    """Path inside the package of what a relative import names."""
    package = module.split(".") if (_ROOT / module.replace(".", "/")).is_dir() else module.split(".")[:-1]
    kept = package[: len(package) - (node.level - 1)]
    return ".".join([*kept, *(node.module.split(".") if node.module else [])])


def _definition(module: str, name: str) -> tuple[str, str]:
    """Where a name is defined, following what a subpackage's ``__init__`` imports."""
    path = _path(module)
    if path.name != "__init__.py":
        return module, name
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _definition(_target(module, node), alias.name)
    raise ValueError(f"{_PACKAGE}.{module} does not import {name!r} from one of its modules; name its module instead")


def _path(module: str) -> Path:
    path = _ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


__all__ = ["export_remote_code", "processor_class_name"]
