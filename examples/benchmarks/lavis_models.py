"""LAVIS's models out of its own files, on the weights of stock transformers' ones.

LAVIS is written for transformers 4 and for packages that its models import and do not need. Its files run on a later
transformers with what is below: packages of its own whose ``__init__`` does not run, names that its files import, and the
helpers of `PreTrainedModel` that have been removed since. None of it computes anything in a forward pass but masks, which
`PreTrainedModel` made for LAVIS. Tokenisers are left out: they hand out the tokens that stock gets. Autocast is off, so that
LAVIS too computes in the precision that is asked for.
"""

from __future__ import annotations

import functools
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BatchEncoding, GenerationMixin, PreTrainedModel, modeling_utils, pytorch_utils


FILES = (
    "lavis/models/eva_vit.py",
    "lavis/models/blip2_models/Qformer.py",
    "lavis/models/blip2_models/blip2_vicuna_instruct.py",
    "lavis/models/blip2_models/modeling_llama.py",
    "lavis/models/blip2_models/modeling_t5.py",
)
PACKAGES = ("lavis", "lavis.common", "lavis.models", "lavis.models.blip2_models")
ABSENT: dict[str, tuple[str, ...]] = {
    "lavis.common.dist_utils": ("download_cached_file", "is_dist_avail_and_initialized"),
    "lavis.common.utils": ("is_url", "get_abs_path"),
    "lavis.common.logger": ("MetricLogger",),
    "lavis.models.clip_vit": ("create_clip_vit_L",),
    "omegaconf": ("OmegaConf",),
    "timm.models.layers": ("drop_path", "to_2tuple", "trunc_normal_"),
    "timm.models.registry": ("register_model",),
    "transformers.utils.model_parallel_utils": ("assert_device_map", "get_device_map"),
}
"""What the files import for downloads, tables of models and dropped paths; `to_2tuple` and `trunc_normal_` are needed."""
HELPERS = ("apply_chunking_to_forward", "prune_linear_layer", "find_pruneable_heads_and_indices")


class Lavis:
    """A clone of LAVIS's repository.

    Args:
        root (`Path`): The clone.

    Raises:
        FileNotFoundError: If a file is not there.
    """

    def __init__(self, root: Path) -> None:
        for name in FILES:
            if not (root / name).is_file():
                raise FileNotFoundError(f"--lavis {root} is no clone of LAVIS: there is no {name}")
        self.root = root
        self.modules: dict[str, Any] = {}

    def file(self, name: str) -> Any:
        """A module of LAVIS's models, such as `"eva_vit"`."""
        if name not in self.modules:
            with _packages(self.root):
                module: Any = importlib.import_module(f"lavis.models.{name}")
            for found in vars(module).values():
                if isinstance(found, type) and PreTrainedModel in found.__bases__:
                    found.get_head_mask = lambda self, mask, layers: [None] * layers  # type: ignore[attr-defined]
                    found.invert_attention_mask = _invert  # type: ignore[attr-defined]
                    found.get_extended_attention_mask = _extended  # type: ignore[attr-defined]
            self.modules[name] = module
        return self.modules[name]

    def qformer(self, stock: Any) -> Any:
        """LAVIS's ``BertModel`` with the weights of an `InstructBlipQFormerModel`."""
        module = self.file("blip2_models.Qformer")
        own: Any = type("BertModel", (module.BertModel,), {"init_weights": lambda self: None})
        config = module.BertConfig(**{key: getattr(stock.config, key) for key in _SHARED})
        config.encoder_width = stock.config.encoder_hidden_size
        config.cross_attention_freq = stock.config.cross_attention_frequency
        config.add_cross_attention, config.is_decoder, config.chunk_size_feed_forward = True, False, 0
        config.query_length = 32
        with torch.device(next(stock.parameters()).device):
            model = own(config, add_pooling_layer=False)
        return _give(model, {_name_in_qformer(name): value for name, value in stock.state_dict().items()})

    def vision(self, stock: Any, size: int) -> tuple[Any, Any]:
        """LAVIS's vision tower for images of a size, and ``ln_vision``, with the weights of an `InstructBlipVisionModel`."""
        module, config = self.file("eva_vit"), stock.config
        with torch.device(next(stock.parameters()).device):
            tower = module.VisionTransformer(
                img_size=size,
                patch_size=config.patch_size,
                use_mean_pooling=False,
                embed_dim=config.hidden_size,
                depth=config.num_hidden_layers,
                num_heads=config.num_attention_heads,
                mlp_ratio=(config.intermediate_size + 0.5) / config.hidden_size,  # which LAVIS rounds down
                qkv_bias=True,
                norm_layer=functools.partial(nn.LayerNorm, eps=config.layer_norm_eps),
            )
            # In float32 whatever the rest is cast to: it computes there.
            in_float32 = {"_apply": lambda self, function, recurse=True: self}
            own: Any = type("LayerNorm", (self.file("blip2_models.blip2").LayerNorm,), in_float32)
            norm = own(config.hidden_size, eps=stock.post_layernorm.eps)
        norm.load_state_dict(stock.post_layernorm.state_dict(), assign=True)
        weights = {}
        for name, value in stock.state_dict().items():
            if name.endswith("qkv.bias"):
                query, key, value_bias = value.chunk(3)
                if key.any():
                    raise RuntimeError(f"{name} has a part for keys, which LAVIS has not")
                prefix = _name_in_tower(name).removesuffix("qkv.bias")
                weights |= {f"{prefix}q_bias": query.clone(), f"{prefix}v_bias": value_bias.clone()}
            elif not name.startswith("post_layernorm"):
                weights[_name_in_tower(name)] = value
        module.interpolate_pos_embed(tower, weights)
        return _give(tower, weights), norm.eval()

    def language_model(self, stock: Any) -> Any:
        """LAVIS's LLaMA or T5 with the weights of transformers' one."""
        kind = stock.config.model_type
        module, name = {
            "llama": ("blip2_models.modeling_llama", "LlamaForCausalLM"),
            "t5": ("blip2_models.modeling_t5", "T5ForConditionalGeneration"),
        }[kind]
        own: Any = type(name, (_Older, getattr(self.file(module), name), GenerationMixin), {})
        config = type(stock.config)(**stock.config.to_dict())
        config._attn_implementation = "eager"  # the one that LAVIS has
        with torch.device(next(stock.parameters()).device):
            model = own(config)
        return _give(model, dict(stock.state_dict()))

    def instruct(self, stock: Any, size: int = 224) -> Any:
        """LAVIS's ``Blip2VicunaInstruct`` with the weights of an `InstructBlipForConditionalGeneration` of transformers.

        Its constructor, which downloads, does not run. `tokens` says what its tokenisers hand out.
        """
        module = self.file("blip2_models.blip2_vicuna_instruct")
        model = module.Blip2VicunaInstruct.__new__(module.Blip2VicunaInstruct)
        nn.Module.__init__(model)
        model.visual_encoder, model.ln_vision = self.vision(stock.vision_model, size)
        model.Qformer = nn.Module()
        model.Qformer.bert = self.qformer(stock.qformer)
        model.llm_model = self.language_model(stock.language_model)
        model.llm_proj, model.query_tokens = stock.language_projection, stock.query_tokens
        model.qformer_text_input, model.max_txt_len, model.max_output_txt_len = True, 128, 256
        model.prompt = ""
        model.maybe_autocast = lambda dtype=None: nullcontext()
        return model.eval()


def features(
    model: Any, pixels: torch.Tensor | None, text: torch.Tensor, mask: torch.Tensor, embeds: torch.Tensor | None = None
) -> torch.Tensor:
    """What stands in the prompt: the first lines of each of LAVIS's methods, which are no function of their own there.

    Args:
        model (`Blip2VicunaInstruct`): Of `Lavis.instruct`.
        pixels (`torch.Tensor`, *optional*): One image a row.
        text (`torch.Tensor`): Tokens of the instructions.
        mask (`torch.Tensor`): Not 0 where they count, shape (rows, tokens).
        embeds (`torch.Tensor`, *optional*): What the vision tower gave, in the place of pixels.
    """
    if embeds is None:
        embeds = model.ln_vision(model.visual_encoder(pixels))
    queries = model.query_tokens.expand(len(text), -1, -1)
    states = model.Qformer.bert(
        text,
        attention_mask=torch.cat([mask.new_ones(queries.shape[:2]), mask], dim=1),
        query_embeds=queries,
        encoder_hidden_states=embeds,
        encoder_attention_mask=mask.new_ones(embeds.shape[:2]),
        return_dict=True,
    ).last_hidden_state
    return model.llm_proj(states[:, : queries.shape[1]])


class Tokens:
    """A tokeniser that hands out one batch of tokens, whatever the text, and writes ids as numbers.

    Args:
        ids (`torch.Tensor`): The tokens, shape (rows, tokens), all of which count.
    """

    def __init__(self, ids: torch.Tensor) -> None:
        self.batch = BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def __call__(self, text: Any, **options: Any) -> BatchEncoding:
        return self.batch

    def batch_decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> list[str]:
        return [" ".join(map(str, row)) for row in ids.tolist()]


class _Older:
    """What transformers asks of a language model today that was otherwise in version 4.28."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # keys and values are tuples

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, inputs_embeds: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        kwargs.pop("position_ids", None)  # reckoned by LAVIS's own method
        return super().prepare_inputs_for_generation(  # type: ignore[misc, no-any-return]
            input_ids, inputs_embeds=inputs_embeds, **kwargs
        )


@contextmanager
def _packages(root: Path) -> Iterator[None]:
    """LAVIS's packages without what their ``__init__`` imports, and stand-ins for what is absent; gone afterwards."""
    modules = {name: types.ModuleType(name) for name in (*PACKAGES, *ABSENT)}
    for name in PACKAGES:
        modules[name].__path__ = [str(root / name.replace(".", "/"))]
    for name, contents in ABSENT.items():
        for content in contents:
            setattr(modules[name], content, _nothing)
    modules["lavis.common.registry"] = types.ModuleType("lavis.common.registry")
    modules["lavis.common.registry"].registry = types.SimpleNamespace(  # type: ignore[attr-defined]
        register_model=lambda name: lambda model: model
    )
    modules["timm.models.layers"].to_2tuple = lambda value: (value, value)  # type: ignore[attr-defined]
    modules["timm.models.layers"].trunc_normal_ = nn.init.trunc_normal_  # type: ignore[attr-defined]
    for parent in ("timm", "timm.models"):
        modules[parent] = types.ModuleType(parent)
    known = {name: sys.modules.get(name) for name in modules}
    lent = [(where, name) for where in (modeling_utils, pytorch_utils) for name in HELPERS if not hasattr(where, name)]
    for where, name in lent:
        setattr(where, name, getattr(pytorch_utils, name, _nothing))
    sys.modules |= modules
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name == "lavis" or name.startswith("lavis.")]:
            del sys.modules[name]
        for name, module in known.items():
            if module is not None:
                sys.modules[name] = module
            else:
                sys.modules.pop(name, None)
        for where, name in lent:
            delattr(where, name)


def _nothing(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("this part of what LAVIS imports stands for its name alone")


def _give(model: Any, weights: dict[str, torch.Tensor]) -> Any:
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    computed = ("position_ids", "rotary_emb.inv_freq")
    wrong = [name for name in missing if not name.endswith(computed)] + unexpected
    if wrong:
        raise RuntimeError(f"LAVIS's {type(model).__name__} has other parameters: {wrong[:5]}")
    return model.eval()


def _invert(self: Any, mask: torch.Tensor) -> torch.Tensor:
    return (1.0 - mask[:, None, None, :].to(self.dtype)) * torch.finfo(self.dtype).min


def _extended(self: Any, mask: torch.Tensor, shape: tuple[int, ...], *others: Any) -> torch.Tensor:
    counts = mask[:, None, None, :].to(self.dtype)
    if self.config.is_decoder:
        counts = counts * counts.new_ones(shape[-1], shape[-1]).tril()  # [batch, 1, tokens, tokens]
    return (1.0 - counts) * torch.finfo(self.dtype).min


def _renamed(names: dict[str, str]) -> Callable[[str], str]:
    def rename(name: str) -> str:
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        return name

    return rename


_name_in_qformer = _renamed(
    {
        ".attention.attention.": ".attention.self.",
        ".crossattention.attention.": ".crossattention.self.",
        "embeddings.layernorm": "embeddings.LayerNorm",
    }
)
_name_in_tower = _renamed(
    {
        "embeddings.class_embedding": "cls_token",
        "embeddings.position_embedding": "pos_embed",
        "embeddings.patch_embedding": "patch_embed.proj",
        "encoder.layers": "blocks",
        "self_attn.projection": "attn.proj",
        "self_attn": "attn",
        "layer_norm": "norm",
    }
)
_SHARED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "layer_norm_eps",
    "pad_token_id",
)
