"""What importing the package adds to transformers, and `AutoModelForVision2Seq`."""

import subprocess
import sys
import types

import pytest
import torch
import transformers
from transformers import AutoModel, AutoModelForImageTextToText

import instructblip_hf
from instructblip_hf import (
    AutoModelForVision2Seq,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipQFormerModel,
    InstructBlipVisionModel,
    transformers_hooks,
)
from tiny_models import IMAGE_SIZE, batch, config_dict, our_model, stock_model


# MODEL_FOR_VISION_2_SEQ_MAPPING_NAMES of transformers 4.57.6.
TYPES_OF_TRANSFORMERS_4 = [
    "blip",
    "blip-2",
    "chameleon",
    "git",
    "idefics2",
    "idefics3",
    "instructblip",
    "instructblipvideo",
    "kosmos-2",
    "kosmos-2.5",
    "llava",
    "llava_next",
    "llava_next_video",
    "llava_onevision",
    "mistral3",
    "mllama",
    "ovis2",
    "paligemma",
    "pix2struct",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "video_llava",
    "vipllava",
    "vision-encoder-decoder",
]


@pytest.fixture
def later_transformers(monkeypatch):
    """For tests that patch modules of their own: nothing of it is to be undone on transformers."""
    monkeypatch.setattr(transformers_hooks, "_UNDO", [])


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


# --- the hooks ----------------------------------------------------------------------------------------------------

CHECK_HOOKS = """
from transformers import AutoModelForVision2Seq, pipelines
import transformers.models.auto as auto
assert AutoModelForVision2Seq is instructblip_hf.AutoModelForVision2Seq
assert auto.AutoModelForVision2Seq is AutoModelForVision2Seq
assert auto.modeling_auto.AutoModelForVision2Seq is AutoModelForVision2Seq
assert pipelines.check_task("image-to-text")[1]["impl"] is instructblip_hf.ImageToTextPipeline
assert pipelines.check_task("vocabulary-ranking")[1]["impl"] is instructblip_hf.VocabularyRankingPipeline
assert type(auto.modeling_auto.MODEL_MAPPING._extra_content).__module__ == "instructblip_hf.transformers_hooks"
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import instructblip_hf; import transformers",
        "import transformers, transformers.pipelines; from transformers import AutoModel; import instructblip_hf",
    ],
    ids=["instructblip_hf first", "transformers first"],
)
def test_hooks_do_not_depend_on_the_order_of_imports(imports):
    run(imports + CHECK_HOOKS)


PATCHED = """
import sys, transformers, transformers.pipelines as pipelines
from transformers.models.auto import modeling_auto
def state():
    resolve = getattr(pipelines, "_resolve_deprecated_task", None)
    parts = modeling_auto.MODEL_MAPPING._extra_content
    return type(transformers).__getattr__, resolve, parts, list(sys.meta_path), pipelines.pipeline
before = state()
import instructblip_hf
from instructblip_hf import transformers_hooks
"""


def test_uninstall_takes_everything_back_and_install_is_idempotent():
    run(
        PATCHED
        + """
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

once = state()
transformers_hooks.install()
assert once == state() != before
assert "triton" in ALL_ATTENTION_FUNCTIONS and "triton" in ALL_MASK_ATTENTION_FUNCTIONS
# `import transformers.pipelines` has put a second module object in the place of the first.
for module in (transformers, sys.modules["transformers"]):
    assert module.AutoModelForVision2Seq is instructblip_hf.AutoModelForVision2Seq
transformers_hooks.uninstall()
for module in (transformers, sys.modules["transformers"], transformers.models.auto, modeling_auto):
    assert not hasattr(module, "AutoModelForVision2Seq"), module
assert not set(transformers_hooks.TASKS) & set(pipelines.PIPELINE_REGISTRY.supported_tasks)
assert "triton" not in ALL_ATTENTION_FUNCTIONS and "triton" not in ALL_MASK_ATTENTION_FUNCTIONS
assert before == state()
transformers_hooks.install()
assert transformers.AutoModelForVision2Seq is instructblip_hf.AutoModelForVision2Seq
"""
    )


def test_every_other_task_resolves_as_before():
    run(
        PATCHED
        + """
def outcome(task):
    try:
        return pipelines.check_task(task)
    except KeyError as error:
        return str(error).partition(", available tasks")[0]
tasks = [*pipelines.get_supported_tasks(), *getattr(pipelines, "REMOVED_TASKS", ()), "translation_en_to_de", "no-task"]
assert tasks.count("image-to-text") == 1 and len(tasks) > 20
after = {task: outcome(task) for task in tasks}
transformers_hooks.uninstall()
for task in tasks:
    assert (after[task] == outcome(task)) == (task not in transformers_hooks.TASKS), task
"""
    )


def test_unknown_names_are_unknown_as_before():
    with pytest.raises(AttributeError, match="module transformers has no attribute NoSuchName"):
        transformers.NoSuchName  # noqa: B018
    assert not hasattr(transformers.models.bert, "AutoModelForVision2Seq")


def test_a_name_that_transformers_has_is_left_alone(later_transformers):
    class LazyModule(types.ModuleType):
        def __getattr__(self, name):
            if name == "AutoModelForVision2Seq":
                return "stock's own"
            raise AttributeError(name)

    module = LazyModule("transformers")
    transformers_hooks._offer_auto_class(module)
    assert module.AutoModelForVision2Seq == "stock's own"
    with pytest.raises(AttributeError):
        module.something_else  # noqa: B018

    plain = types.ModuleType("transformers.models.auto.modeling_auto")
    plain.AutoModelForVision2Seq = "stock's own"
    transformers_hooks._offer_auto_class(plain)
    assert plain.AutoModelForVision2Seq == "stock's own"


def test_a_task_that_transformers_has_is_left_alone():
    registry = types.SimpleNamespace(supported_tasks=dict.fromkeys(transformers_hooks.TASKS, "stock's own"))
    module = types.SimpleNamespace(PIPELINE_REGISTRY=registry, pipeline=len)
    transformers_hooks._offer_tasks(module)
    assert set(registry.supported_tasks.values()) == {"stock's own"}
    assert module.pipeline is len


def test_a_moved_registry_is_an_error_at_first_use(later_transformers):
    module = types.ModuleType("later_pipelines")
    module.pipeline = lambda task=None, **kwargs: task
    transformers_hooks._offer_tasks(module)
    assert module.pipeline("text-generation") == "text-generation"
    with pytest.raises(RuntimeError, match=rf"transformers {transformers.__version__}.*pipeline_class="):
        module.pipeline("image-to-text", model="folder")
    with pytest.raises(RuntimeError, match="image-to-text"):
        module.pipeline(task="image-to-text", model="folder")


def test_a_task_rewritten_elsewhere_is_an_error_at_first_use(later_transformers):
    module = types.ModuleType("later_pipelines")
    module.PIPELINE_REGISTRY = types.SimpleNamespace(supported_tasks={})
    module.check_task = lambda task: ("image-text-to-text", {}, None)
    module.pipeline = lambda task=None, **kwargs: task
    transformers_hooks._offer_tasks(module)
    with pytest.raises(RuntimeError, match="check_task"):
        module.pipeline("image-to-text", model="folder")
    assert module.pipeline("image-to-text", model="folder", pipeline_class=object) == "image-to-text"


def test_a_moved_auto_mapping_is_an_error_at_first_use(later_transformers):
    class LaterAutoModel:
        @classmethod
        def from_config(cls, config):
            raise ValueError(f"Unrecognized configuration class {type(config)}")

    module = types.ModuleType("later_modeling_auto")
    module.AutoModel = LaterAutoModel
    transformers_hooks._offer_parts(module)
    with pytest.raises(RuntimeError, match=r"MODEL_MAPPING._extra_content.*InstructBlipVisionModel"):
        LaterAutoModel.from_config(instructblip_hf.InstructBlipVisionConfig())
    with pytest.raises(ValueError, match="BlipConfig"):
        LaterAutoModel.from_config(transformers.BlipConfig())


def test_a_moved_auto_factory_is_an_error_at_first_use():
    run(
        """
import transformers.models.auto.modeling_auto, transformers.models.auto.auto_factory as factory
del factory.auto_class_update
import transformers, instructblip_hf
transformers.AutoModelForImageTextToText
try:
    from transformers import AutoModelForVision2Seq
except ImportError as error:
    assert transformers.__version__ in str(error) and "InstructBlipForConditionalGeneration" in str(error), error
else:
    raise SystemExit("no error")
"""
    )


def test_registrations_of_stock_are_untouched():
    from transformers.models.auto import modeling_auto

    stock = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    assert modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES._model_mapping is stock
    assert stock[transformers.InstructBlipConfig] is transformers.InstructBlipForConditionalGeneration
    assert type(transformers.AutoConfig.for_model("instructblip")) is transformers.InstructBlipConfig


# --- AutoModelForVision2Seq ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("build", [our_model, stock_model], ids=["our folder", "stock's folder"])
def test_instructblip_folders_give_our_class(tmp_path, kind, build):
    saved = build(kind)
    saved.save_pretrained(tmp_path)
    model, info = AutoModelForVision2Seq.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is InstructBlipForConditionalGeneration
    assert type(model.config) is InstructBlipConfig
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    inputs = batch()
    if kind == "t5":
        inputs["decoder_input_ids"] = torch.tensor([[0, 5], [0, 6]])
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, saved(**inputs).logits, rtol=1e-5, atol=1e-5)


def test_from_pretrained_honours_dtype_attention_and_config(tmp_path):
    our_model().save_pretrained(tmp_path)
    model = AutoModelForVision2Seq.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    assert model.language_model.dtype == torch.bfloat16
    assert model.vision_model.config._attn_implementation == "eager"
    assert model.language_model.config._attn_implementation == "eager"
    for config_class in (InstructBlipConfig, transformers.InstructBlipConfig):
        config = config_class.from_pretrained(tmp_path)
        config.initializer_factor = 3.0
        model = AutoModelForVision2Seq.from_pretrained(tmp_path, config=config)
        assert type(model.config) is InstructBlipConfig
        assert model.config.initializer_factor == 3.0


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_from_config_converts_stock_configurations_without_loss(kind):
    stock = transformers.InstructBlipConfig(**config_dict(kind), note="kept", id2label={0: "a", 1: "b", 2: "c"})
    model = AutoModelForVision2Seq.from_config(stock)
    assert type(model) is InstructBlipForConditionalGeneration
    assert type(model.config) is InstructBlipConfig
    assert model.config.note == "kept"
    assert model.config.is_encoder_decoder == (kind == "t5")
    ours, theirs = model.config.to_dict(), stock.to_dict()
    changed = {key for key in theirs if ours.get(key) != theirs[key]}
    assert changed <= {"is_encoder_decoder", "vision_config", "qformer_config", "text_config", "dtype"}
    for part in ("vision_config", "qformer_config", "text_config"):
        lost = {key: value for key, value in theirs[part].items() if ours[part].get(key) != value}
        assert not lost.keys() - {"dtype", "encoder_hidden_size"}, lost


def test_other_vision_to_text_models_give_stock_classes(tmp_path):
    text = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=50
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=IMAGE_SIZE
    )
    other = transformers.VipLlavaForConditionalGeneration(
        transformers.VipLlavaConfig(
            vision_config=vision, text_config=text, image_token_index=49, vision_feature_layers=[-1]
        )
    )
    other.save_pretrained(tmp_path)
    loaded = AutoModelForVision2Seq.from_pretrained(tmp_path)
    assert type(loaded) is transformers.VipLlavaForConditionalGeneration
    for (name, ours), theirs in zip(loaded.named_parameters(), other.parameters()):
        assert torch.equal(ours, theirs), name


def test_every_type_of_transformers_4_that_still_exists_is_known():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    mapping = AutoModelForVision2Seq._model_mapping
    for model_type in TYPES_OF_TRANSFORMERS_4:
        config_class = CONFIG_MAPPING[model_type]
        assert config_class in mapping, model_type
        if model_type not in ("instructblip", "blip-2", "llava"):
            assert mapping[config_class].__module__.startswith("transformers.models."), model_type


def test_a_language_model_is_rejected_by_name(tmp_path):
    config = transformers.OPTConfig()
    config.save_pretrained(tmp_path)
    for load in (
        lambda: AutoModelForVision2Seq.from_pretrained(tmp_path),
        lambda: AutoModelForVision2Seq.from_config(config),
    ):
        with pytest.raises(ValueError, match=r"OPTConfig.*AutoModelForVision2Seq"):
            load()


def test_a_checkpoint_with_a_missing_key_is_an_error(tmp_path):
    model = our_model()
    state = model.state_dict()
    del state["query_tokens"]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(KeyError, match="query_tokens"):
        AutoModelForVision2Seq.from_pretrained(tmp_path)


def test_a_class_can_register_for_it():
    class Custom(InstructBlipForConditionalGeneration):
        pass

    Custom.register_for_auto_class("AutoModelForVision2Seq")
    assert Custom._auto_class == "AutoModelForVision2Seq"


# --- the parts through stock AutoModel ----------------------------------------------------------------------------

PARTS = {"vision_model": InstructBlipVisionModel, "qformer": InstructBlipQFormerModel}
CONFIGS = {"vision_model": "vision_config", "qformer": "qformer_config"}


@pytest.mark.parametrize("library", [instructblip_hf, transformers], ids=["our config", "stock's config"])
@pytest.mark.parametrize("part", PARTS)
def test_auto_model_builds_parts(part, library):
    config = getattr(library.InstructBlipConfig(**config_dict("llama")), CONFIGS[part])
    assert type(AutoModel.from_config(config)) is PARTS[part]


@pytest.mark.parametrize("part", PARTS)
def test_auto_model_loads_parts_alone_and_out_of_a_checkpoint(tmp_path, part):
    full = our_model()
    expected = getattr(full, part).state_dict()
    getattr(full, part).save_pretrained(tmp_path / "part")
    full.save_pretrained(tmp_path / "full")
    for library in (instructblip_hf, transformers):
        config = getattr(library.InstructBlipConfig.from_pretrained(tmp_path / "full"), CONFIGS[part])
        mapping = {rf"^{part}\.": ""}
        loaded = AutoModel.from_pretrained(tmp_path / "full", config=config, key_mapping=mapping)
        assert type(loaded) is PARTS[part]
        for key, value in loaded.state_dict().items():
            assert torch.equal(value, expected[key]), key
    alone = AutoModel.from_pretrained(tmp_path / "part")
    assert type(alone) is PARTS[part]
    assert all(torch.equal(value, expected[key]) for key, value in alone.state_dict().items())


def test_stock_auto_classes_keep_giving_stock_models(tmp_path):
    our_model().save_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(model) is transformers.InstructBlipForConditionalGeneration
