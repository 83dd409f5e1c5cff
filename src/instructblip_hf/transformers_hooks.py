"""What importing this package gives back to transformers 5, at no cost until it is first used.

Four things are offered, each where transformers itself would look for it:

- ``AutoModelForVision2Seq`` on ``transformers``, ``transformers.models.auto`` and its ``modeling_auto``;
- the vision towers and Q-Formers of InstructBLIP and BLIP-2 as types that stock ``AutoModel`` builds and loads;
- the tasks ``"image-to-text"`` and ``"vocabulary-ranking"`` of ``transformers.pipeline``;
- the attention implementation ``"triton"``, for Q-Formers.

[`install`] imports neither torch nor transformers. A finder at the head of ``sys.meta_path`` patches a module right
after it has been executed; modules that are there already are patched at once, so the order of imports does not
matter. A name or task that the installed transformers still has is left alone, and so is every registration of
``AutoConfig``. If a later transformers moves what is patched here, importing still works, and the first *use* of the
feature raises an error that names the version, what is missing and what still works.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


AUTO_CLASS = "AutoModelForVision2Seq"
TASKS: dict[str, tuple[str, str, tuple[str, str]]] = {
    "image-to-text": (
        "pipelines.image_to_text",
        "ImageToTextPipeline",
        ("ydshieh/vit-gpt2-coco-en", "5bebf1e"),  # as in transformers 4
    ),
    "vocabulary-ranking": (
        "pipelines.vocabulary_ranking",
        "VocabularyRankingPipeline",
        ("Salesforce/instructblip-flan-t5-xl", "main"),
    ),
}
"""Module, class and default model of each task."""

_PARTS = {
    "InstructBlipVisionConfig": ("instructblip_vision_model", "InstructBlipVisionModel"),
    "InstructBlipQFormerConfig": ("instructblip_qformer", "InstructBlipQFormerModel"),
    "Blip2VisionConfig": ("blip_2_vision_model", "Blip2VisionModel"),
    "Blip2QFormerConfig": ("blip_2_qformer", "Blip2QFormerModel"),
}
_OURS = __name__.rpartition(".")[0]
_STOCK_FAMILIES = ("transformers.models.instructblip.", "transformers.models.blip_2.")

_LOCK = threading.RLock()
_UNDO: list[Callable[[], None]] = []


def install() -> None:
    """Patch what is imported of transformers, and arrange for the rest to be patched when it is imported."""
    with _LOCK:
        if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
            sys.meta_path.insert(0, _AfterImport())
    for name, patch in _PATCHES.items():
        if name in sys.modules:
            # Waits for another thread that is still executing the module; so not while holding the lock.
            module = importlib.import_module(name)
            with _LOCK:
                patch(module)


def uninstall() -> None:
    """Take every patch back, so that transformers is as it was; classes handed out before keep working."""
    with _LOCK:
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _AfterImport)]
        while _UNDO:
            _UNDO.pop()()


def moved(feature: str, missing: str, instead: str) -> str:
    """Message for a feature whose place in transformers is gone.

    Args:
        feature (`str`): What the user asked for.
        missing (`str`): What this version of transformers lacks.
        instead (`str`): What still works.
    """
    version = getattr(sys.modules.get("transformers"), "__version__", "unknown")
    return (
        f"{feature} needs {missing}, which transformers {version} does not have where instructblip_hf looks for it. "
        f"Use transformers>=5.17,<6, or {instead}."
    )


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds nothing by itself; lets a module be patched right after its own loader has executed it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        patch = _PATCHES.get(fullname)
        if patch is None:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                break
        else:
            return None
        loader = spec.loader
        if loader is None:
            return spec
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            # transformers puts a lazy module in its own place, so the one to patch is not always `module`.
            with _LOCK:
                patch(sys.modules.get(fullname, module))

        loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _set(owner: Any, name: str, value: Any) -> None:
    """Set an attribute and remember how to take it back."""
    before = vars(owner).get(name)

    def undo() -> None:
        if before is None:
            if vars(owner).get(name) is not None:
                delattr(owner, name)
        else:
            setattr(owner, name, before)

    setattr(owner, name, value)
    _UNDO.append(undo)


# --- AutoModelForVision2Seq ---------------------------------------------------------------------------------------


def _offer_auto_class(module: ModuleType) -> None:
    """Resolve ``AutoModelForVision2Seq`` on ``module`` at first access.

    For a lazy module its class is patched, not the module: importing ``transformers.processing_utils`` puts a second
    module object in the place of ``transformers``, and both must answer.
    """
    lazy = type(module)
    if hasattr(lazy, "__getattr__"):
        stock_lookup = lazy.__getattr__
        if stock_lookup.__module__ == __name__:
            return

        def lazy_lookup(self: ModuleType, name: str) -> Any:
            if name != AUTO_CLASS or self.__name__ not in _PATCHES:
                return stock_lookup(self, name)
            try:
                return stock_lookup(self, name)
            except AttributeError:
                return _provide_auto_class(self)

        _set(lazy, "__getattr__", lazy_lookup)
    elif AUTO_CLASS not in vars(module):
        inherited = vars(module).get("__getattr__")
        if getattr(inherited, "__module__", None) == __name__:
            return

        def lookup(name: str) -> Any:  # PEP 562
            if name == AUTO_CLASS:
                return _provide_auto_class(module)
            if inherited is not None:
                return inherited(name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        _set(module, "__getattr__", lookup)


def _provide_auto_class(module: ModuleType) -> Any:
    value = getattr(importlib.import_module(".auto", _OURS), AUTO_CLASS)
    _set(module, AUTO_CLASS, value)
    return value


# --- parts of the model through AutoModel -------------------------------------------------------------------------


class _PartClasses(dict[type, Any]):
    """Entries added to stock ``AutoModel``'s mapping; ours are imported when their configuration is looked up."""

    def __init__(self, entries: dict[type, Any], stock_model_types: Any) -> None:
        super().__init__(entries)
        self.stock_model_types = stock_model_types

    def _find(self, config_class: Any) -> None:
        model_type, model_name = _PARTS.get(getattr(config_class, "__name__", ""), ("", ""))
        if not model_name or super().__contains__(config_class):
            return
        module = config_class.__module__
        is_stock = module.startswith(_STOCK_FAMILIES) and model_type not in self.stock_model_types
        if is_stock or module.startswith(_OURS + "."):
            self[config_class] = getattr(importlib.import_module(_OURS), model_name)

    def __contains__(self, config_class: object) -> bool:
        self._find(config_class)
        return super().__contains__(config_class)

    def __missing__(self, config_class: type) -> Any:
        if config_class in self:
            return super().__getitem__(config_class)
        raise KeyError(config_class)


def _offer_parts(module: ModuleType) -> None:
    _offer_auto_class(module)
    mapping = getattr(module, "MODEL_MAPPING", None)
    entries = getattr(mapping, "_extra_content", None)
    if isinstance(entries, _PartClasses):
        return
    stock_model_types = getattr(module, "MODEL_MAPPING_NAMES", None)
    if not isinstance(entries, dict) or stock_model_types is None:
        auto_model = getattr(module, "AutoModel", None)
        for name in ("from_config", "from_pretrained"):
            if hasattr(auto_model, name):
                _set(auto_model, name, _explain_unknown_part(getattr(auto_model, name)))
        return
    _set(mapping, "_extra_content", _PartClasses(entries, stock_model_types))


def _explain_unknown_part(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def explained(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except (KeyError, ValueError) as error:
            part = next((model_name for name, (_, model_name) in _PARTS.items() if name in str(error)), None)
            if part is not None:
                instead = f"build the part with instructblip_hf.{part}"
                message = moved(f"AutoModel for a {part}", "MODEL_MAPPING._extra_content", instead)
                raise RuntimeError(message) from error
            raise

    return explained


# --- pipeline("image-to-text") and others -------------------------------------------------------------------------


class _Task(dict[str, Any]):
    """Registry entry of a task; its classes are imported when the first of its values is read."""

    def __init__(self, module: str, name: str, default_model: tuple[str, str]) -> None:
        super().__init__()
        self.module, self.name, self.default_model = module, name, default_model

    def __missing__(self, key: str) -> Any:
        if not self:
            auto = importlib.import_module(".auto", _OURS)
            self.update(
                impl=getattr(importlib.import_module(f".{self.module}", _OURS), self.name),
                pt=(getattr(auto, AUTO_CLASS),),
                default={"model": self.default_model},
                type="multimodal",
            )
            if key in self:
                return self[key]
        raise KeyError(key)


def _offer_tasks(module: ModuleType) -> None:
    tasks = getattr(getattr(module, "PIPELINE_REGISTRY", None), "supported_tasks", None)
    lost = dict(TASKS)
    if isinstance(tasks, dict):
        ours = {task: _Task(*description) for task, description in TASKS.items() if task not in tasks}
        tasks.update(ours)
        _UNDO.extend(functools.partial(tasks.pop, task, None) for task in ours)
        # transformers 5 rewrites "image-to-text" to "image-text-to-text" before the registry is asked.
        rewrite = getattr(module, "_resolve_deprecated_task", None)
        if rewrite is not None and ours:

            @functools.wraps(rewrite)
            def resolve(task: str) -> str:
                return task if task in ours else rewrite(task)

            _set(module, "_resolve_deprecated_task", resolve)
        lost = {task: TASKS[task] for task, entry in ours.items() if not _resolves_to(module, task, entry)}
    stock_pipeline = getattr(module, "pipeline", None)
    if stock_pipeline is None or not lost:
        return

    @functools.wraps(stock_pipeline)
    def pipeline(task: Any = None, *args: Any, **kwargs: Any) -> Any:
        if task in lost and kwargs.get("pipeline_class") is None:
            missing = "PIPELINE_REGISTRY.supported_tasks and check_task"
            instead = f"pass pipeline_class=instructblip_hf.{lost[task][1]} to pipeline({task!r}, ...)"
            raise RuntimeError(moved(f"pipeline({task!r})", missing, instead))
        return stock_pipeline(task, *args, **kwargs)

    _set(module, "pipeline", pipeline)


def _resolves_to(module: ModuleType, task: str, entry: _Task) -> bool:
    """Whether transformers, asked for the task, comes to our entry."""
    check_task = getattr(module, "check_task", None)
    try:
        return check_task is not None and check_task(task)[1] is entry
    except (KeyError, TypeError, IndexError):
        return False


# --- attn_implementation="triton" ---------------------------------------------------------------------------------

ATTENTION = "triton"


def _offer(interface: Any, function: str) -> None:
    """Register a function of ``models.attention`` under our name; it is imported when it is first called."""
    known = getattr(interface, "_global_mapping", None)
    if not isinstance(known, dict) or ATTENTION in known:
        # Without a place to register, transformers itself says that there is no such implementation.
        return

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(".models.attention", _OURS), function)(*args, **kwargs)

    interface.register(ATTENTION, call)
    _UNDO.append(functools.partial(known.pop, ATTENTION, None))


def _offer_attention(module: ModuleType) -> None:
    _offer(getattr(module, "AttentionInterface", None), "triton_attention")


def _offer_mask(module: ModuleType) -> None:
    _offer(getattr(module, "AttentionMaskInterface", None), "triton_mask")


_PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "transformers": _offer_auto_class,
    "transformers.masking_utils": _offer_mask,
    "transformers.modeling_utils": _offer_attention,
    "transformers.models.auto": _offer_auto_class,
    "transformers.models.auto.modeling_auto": _offer_parts,
    "transformers.pipelines": _offer_tasks,
}

__all__ = ["ATTENTION", "TASKS", "install", "moved", "uninstall"]
