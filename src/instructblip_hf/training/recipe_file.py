"""Recipes as YAML files: read, put on top of the recipe that they extend, and changed from the command line.

A recipe whose first key is ``extends: NAME`` says only what differs from the recipe NAME, a shipped one or a file
relative to it. Mappings are merged key by key; anything else, lists too, takes the place of what the base says. A mapping
tagged ``!replace`` is not merged either. Nothing here knows what the keys mean, but for ``freezing``, which may be
written as a preset's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


SECTIONS = ("model", "first_stage", "freezing", "optimization", "data", "evaluation", "training")
EXTENDS = "extends"
SHIPPED_RECIPES = Path(__file__).parents[1] / "recipes"


class RecipeError(ValueError):
    """A recipe that cannot be run.

    Attributes:
        problems (`list[str]`): One line for each thing that is wrong.
    """

    def __init__(self, recipe: str | Path, problems: Sequence[str]) -> None:
        self.problems = [f"{recipe}: {problem}" for problem in problems]
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class RecipeFile:
    """What a recipe says, once what it extends is merged into it.

    Attributes:
        path (`Path`): The recipe.
        content (`dict[str, Any]`): Its sections. Texts that a base in another folder wrote are `WrittenIn`.
        chain (`list[Path]`): The recipe, the one that it extends, the one that this extends, and so on.
    """

    path: Path
    content: dict[str, Any]
    chain: list[Path]

    def to_yaml(self) -> str:
        """The merged recipe as YAML, with the files that it comes of in comments."""
        lines = [f"# {self.chain[0]}"]
        lines += [f"# extends {base}" for base in self.chain[1:]]
        if len({path.parent for path in self.chain}) > 1:
            lines.append("# Relative paths are relative to the file that wrote them.")
        body = yaml.safe_dump(plain(self.content), sort_keys=False, allow_unicode=True, width=110)
        return "\n".join([*lines, "", body.rstrip()])


class WrittenIn(str):
    """A text of a base recipe in another folder, which it is relative to if it is a path.

    Attributes:
        folder (`Path`): Of the file that the text stands in.
    """

    folder: Path

    @classmethod
    def of(cls, text: str, folder: Path) -> WrittenIn:
        """The text `text`, written in a file of `folder`."""
        result = cls(text)
        result.folder = folder
        return result


def folder_of(text: str, default: Path) -> Path:
    """The folder that a path in a recipe is relative to: of the file that wrote it."""
    return text.folder if isinstance(text, WrittenIn) else default


def plain(value: Any) -> Any:
    """The value with ordinary texts and dicts in place of this module's own."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, WrittenIn) else value


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package; `load_recipe` takes them in place of a file."""
    return sorted(path.stem for path in SHIPPED_RECIPES.glob("*.yaml"))


def read_recipe(recipe: str | Path) -> RecipeFile:
    """Reads a recipe and what it extends, without checking what it says.

    Args:
        recipe (`str` or `Path`): A YAML file, or the name of one of `shipped_recipes`.

    Returns:
        `RecipeFile`

    Raises:
        RecipeError: If a file of the chain is missing, is no YAML mapping, or extends itself in the end.
    """
    path = _find(recipe)
    chain, contents = [path], [_read(path)]
    while EXTENDS in contents[-1]:
        chain.append(_base(contents[-1].pop(EXTENDS), chain))
        contents.append(_read(chain[-1]))
    merged: dict[str, Any] = {}
    # From the bottom upwards, so that what a recipe in the middle takes away stays away.
    for file, content in zip(reversed(chain), reversed(contents)):
        is_elsewhere = file.parent.resolve() != path.parent.resolve()
        merged = _merge(merged, _written_in(content, file.parent) if is_elsewhere else content)
    return RecipeFile(path, merged, chain)


def apply_overrides(content: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Changes a recipe in place by texts such as ``training.max_steps=10``; values are YAML.

    Returns:
        One line for each that cannot be applied.
    """
    problems = []
    for override in overrides:
        name, equals, text = override.partition("=")
        keys = name.strip().split(".")
        if not equals or len(keys) < 2 or not all(keys):
            problems.append(f"--set {override}: must look like section.key=value")
            continue
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            problems.append(f"--set {override}: the value is not readable as YAML")
            continue
        place = content
        for key in keys[:-1]:
            if isinstance(place.get(key), str) and key == "freezing":
                place[key] = {"preset": place[key]}
            if place.get(key) is None:
                place[key] = {}
            if not isinstance(place[key], dict):
                problems.append(f"--set {override}: {key} is not a mapping in this recipe")
                break
            place = place[key]
        else:
            place[keys[-1]] = value
    return problems


# --- files ------------------------------------------------------------------------------------------------------------


def _find(recipe: str | Path) -> Path:
    path = Path(recipe)
    if path.is_file():
        return path
    if str(recipe) in shipped_recipes():
        return SHIPPED_RECIPES / f"{recipe}.yaml"
    raise RecipeError(
        recipe, [f"there is no such file, nor a shipped recipe of that name; shipped: {', '.join(shipped_recipes())}"]
    )


def _base(name: Any, chain: list[Path]) -> Path:
    """The file that the last recipe of the chain extends."""
    recipe = chain[-1]
    if not isinstance(name, str) or not name:
        raise RecipeError(recipe.name, [f"{EXTENDS}: must be the name of a shipped recipe or a file, not {name!r}"])
    base = recipe.parent / Path(name).expanduser()
    if not base.is_file():
        if name not in shipped_recipes():
            shipped = ", ".join(shipped_recipes())
            raise RecipeError(
                recipe.name, [f"{EXTENDS}: there is no file {base}, nor a shipped recipe {name!r}; shipped: {shipped}"]
            )
        base = SHIPPED_RECIPES / f"{name}.yaml"
    if base.resolve() in [path.resolve() for path in chain]:
        circle = " -> ".join(path.name for path in [*chain, base])
        raise RecipeError(chain[0].name, [f"{EXTENDS}: a recipe cannot extend itself: {circle}"])
    return base


class _Replace(dict[Any, Any]):
    """A mapping with the tag ``!replace``."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, where YAML would keep the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands here for the second time", key_node.start_mark
                )
            seen.add(key if isinstance(key, str) else repr(key))
        return super().construct_mapping(node, deep=deep)

    def construct_replace(self, node: yaml.Node) -> _Replace:
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, "!replace is for mappings", node.start_mark)
        return _Replace(self.construct_mapping(node, deep=True))


_Loader.add_constructor("!replace", _Loader.construct_replace)


def _read(path: Path) -> dict[str, Any]:
    try:
        # Not an unsafe load: the loader derives from yaml.SafeLoader.
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark is not None else ""
        raise RecipeError(path.name, [f"{line}not readable as YAML: {error.problem}"]) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(path.name, [f"not readable as YAML: {error}"]) from error
    if not isinstance(content, dict):
        raise RecipeError(path.name, [f"must be a mapping with the sections {', '.join(SECTIONS)}"])
    return content


# --- merging ----------------------------------------------------------------------------------------------------------


def _merge(base: Mapping[Any, Any], own: Mapping[Any, Any]) -> dict[Any, Any]:
    """What `own` says, and for the rest what `base` says, in the order of the base."""
    merged = dict(base)
    for key, value in own.items():
        below = merged.get(key)
        if key == "freezing" and isinstance(below, str) and isinstance(value, Mapping):
            below = {"preset": below}
        if isinstance(value, Mapping):
            value = _merge(below if isinstance(below, Mapping) and not isinstance(value, _Replace) else {}, value)
        merged[key] = value
    return merged


def _written_in(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return type(value)({key: _written_in(item, folder) for key, item in value.items()})
    if isinstance(value, list):
        return [_written_in(item, folder) for item in value]
    return WrittenIn.of(value, folder) if isinstance(value, str) else value


__all__ = [
    "EXTENDS",
    "SECTIONS",
    "SHIPPED_RECIPES",
    "RecipeError",
    "RecipeFile",
    "WrittenIn",
    "apply_overrides",
    "folder_of",
    "plain",
    "read_recipe",
    "shipped_recipes",
]
