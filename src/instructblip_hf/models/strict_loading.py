"""Loading without gaps: `from_pretrained` that raises on missing and unexpected keys, for models and parts."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class StrictLoadingMixin:
    """`from_pretrained` that raises on missing or unexpected keys instead of reporting them."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *model_args: Any, strict: bool = True, **kwargs: Any
    ) -> Any:
        """Load a model; every key of the checkpoint must have a home and every parameter a key.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): Folder or Hub id.
            strict (`bool`, *optional*, defaults to `True`):
                `False` accepts missing keys, newly initialised, and unexpected ones, left out, as stock
                transformers does.
            kwargs: As for `transformers.PreTrainedModel.from_pretrained`.

        Returns:
            `PreTrainedModel`: In evaluation mode; with ``output_loading_info=True`` a tuple with the loading info.

        Raises:
            KeyError: If keys are missing or unexpected; it names them.
        """
        output_loading_info = kwargs.pop("output_loading_info", False)
        if isinstance(kwargs.get("config"), PreTrainedConfig):
            given = kwargs["config"]
            kwargs["config"] = cls._own_config(given)
            if kwargs["config"] is not given:
                hub_options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
                cls._read_foreign_parts(kwargs["config"], pretrained_model_name_or_path, hub_options)
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = cls._keep_image_side_whole(kwargs["quantization_config"])
        model, info = super().from_pretrained(  # type: ignore[misc]
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        if strict:
            raise_on_key_differences(cls.__name__, pretrained_model_name_or_path, info)
        if kwargs.get("key_mapping"):
            # Otherwise save_pretrained would write the names of the file that was read, not the model's own.
            given = set(kwargs["key_mapping"])
            used = getattr(model, "_weight_conversions", None) or []
            model._weight_conversions = [one for one in used if not given.issuperset(one.source_patterns)]
        if not cls.__module__.startswith("transformers_modules."):
            # They name code files of the folder that was read; save_pretrained would write the names, not the files.
            for name in ("auto_map", "custom_pipelines"):
                vars(model.config).pop(name, None)
        return (model, info) if output_loading_info else model

    def post_init(self) -> None:
        super().post_init()  # type: ignore[misc]
        # transformers adds the parts' patterns to the whole's. A vision tower or Q-Former leaves out the keys of its
        # neighbours when it is loaded out of a full checkpoint; here those keys are the model's own.
        own = type(self)._keys_to_ignore_on_load_unexpected or ()  # type: ignore[attr-defined]
        language_model: Any = self._modules.get("language_model")  # type: ignore[attr-defined]
        others = getattr(language_model, "_keys_to_ignore_on_load_unexpected", None) or ()
        vars(self)["_keys_to_ignore_on_load_unexpected"] = {*own, *others}

    @classmethod
    def _from_config(cls, config: PreTrainedConfig, **kwargs: Any) -> Any:
        return super()._from_config(cls._own_config(config), **kwargs)  # type: ignore[misc]

    @classmethod
    def _own_config(cls, config: PreTrainedConfig) -> PreTrainedConfig:
        """Our configuration for stock transformers' of the same type, which its `AutoConfig` returns."""
        own = cls.config_class  # type: ignore[attr-defined]
        if isinstance(config, own) or config.model_type != own.model_type:
            return config
        converted = own.from_dict(config.to_dict())
        # What to_dict leaves out.
        converted._attn_implementation = config._attn_implementation
        for name in own.sub_configs:
            part = getattr(config, name, None)
            if isinstance(part, PreTrainedConfig):
                getattr(converted, name)._attn_implementation = part._attn_implementation
        converted.name_or_path = config.name_or_path
        return converted

    @classmethod
    def _read_foreign_parts(cls, config: PreTrainedConfig, source: Any, hub_options: dict[str, Any]) -> None:
        """Read parts of a foreign type again, which stock's configuration class has forced into its own type."""
        saved, _ = PreTrainedConfig.get_config_dict(source, **hub_options)
        for name, expected in cls.config_class.sub_configs.items():  # type: ignore[attr-defined]
            part: Any = saved.get(name) or {}
            model_type = part.get("model_type")
            if model_type and model_type != getattr(config, name).model_type and hasattr(expected, "model_type"):
                attn_implementation = getattr(config, name)._attn_implementation
                setattr(config, name, CONFIG_MAPPING[model_type](**part))
                getattr(config, name)._attn_implementation = attn_implementation

    @classmethod
    def _keep_image_side_whole(cls, quantization_config: Any) -> Any:
        return quantization_config


def raise_on_key_differences(
    class_name: str,
    source: Any,
    info: dict[str, Any],
    advice: str = "Pass strict=False to load it anyway.",
    shown: int = 20,
) -> None:
    """Raises a `KeyError` that names the missing and unexpected keys of a loading info, if there are any."""
    problems = []
    for kind in ("missing_keys", "unexpected_keys"):
        keys = sorted(map(str, info[kind]))
        if keys:
            rest = f" and {len(keys) - shown} more" if len(keys) > shown else ""
            problems.append(f"{len(keys)} {kind.replace('_', ' ')}: {', '.join(keys[:shown])}{rest}.")
    if problems:
        raise KeyError(f"{source} does not hold a whole {class_name}. {' '.join(problems)} {advice}".rstrip())


__all__ = ["HUB_OPTIONS", "StrictLoadingMixin", "raise_on_key_differences"]
