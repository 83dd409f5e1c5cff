"""Vision tower and connector compiled: results of the plain path, few graphs, memory of their own, and when."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig, GenerationConfig

import tiny_models
from instructblip_hf.models.compiled_calls import compile_config_for


MODELS = {
    "llama": lambda: tiny_models.our_model("llama"),
    "blind": lambda: tiny_models.our_model("llama", use_qformer_text_input=False),
    "opt": lambda: tiny_models.our_blip_2("opt"),
    "t5": lambda: tiny_models.our_model("t5"),
    "llava": lambda: tiny_models.our_llava("qwen"),
    "llava with a Q-Former": lambda: tiny_models.our_llava(projector_type="qformer", num_query_tokens=4),
}


def compiling(backend="aot_eager", **options):
    """One graph for each part or an error, on a CPU too."""
    torch._dynamo.reset()
    counters.clear()
    config = CompileConfig(backend=backend, mode=None, fullgraph=True, **options)
    config._compile_all_devices = True
    return config


def graphs():
    return counters["stats"]["unique_graphs"]


def inputs_for(name, **options):
    ragged = {"images_per_row": (1, 2, 1), "text_lengths": (6, 3, 9), "instruction_lengths": (7, 4, 2)}
    inputs = tiny_models.batch(**{**ragged, **options})
    if name not in ("llama", "t5"):
        inputs = {key: value for key, value in inputs.items() if "qformer" not in key}
    return inputs


def images_of(inputs):
    return {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_the_plain_path(name):
    model, inputs = MODELS[name](), inputs_for(name)
    options = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_scores": True}
    plain = model.generate(**inputs, **options)
    config = compiling()
    compiled = model.generate(**inputs, **options, cache_implementation="static", compile_config=config)
    assert graphs() == 3  # tower, connector, a step of the language model
    assert compiled.sequences.tolist() == plain.sequences.tolist()
    torch.testing.assert_close(compiled.scores, plain.scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_features_of_images_that_rows_share(name):
    model, inputs = MODELS[name]().double(), inputs_for(name)
    images, index = images_of(inputs), torch.tensor([1, 0, 1, 1])
    cache = model.encode_images(images.pop("pixel_values")[:2].double())
    plain = model.get_image_features(**images, image_cache=cache, image_index=index).pooler_output
    compiled = model.get_image_features(
        **images, image_embeds=cache.image_embeds, image_index=index, compile_config=compiling()
    ).pooler_output
    assert graphs() == 1
    torch.testing.assert_close(compiled, plain, atol=1e-10, rtol=1e-10)
    of_cache = model.get_image_features(**images, image_cache=cache, image_index=index, compile_config=compiling())
    assert graphs() == (1 if name in ("llama", "t5") else 0)  # what the others keep needs no connector
    torch.testing.assert_close(of_cache.pooler_output, plain, atol=1e-10, rtol=1e-10)


@torch.no_grad()
def test_features_of_video_and_of_other_sizes():
    model = tiny_models.our_model("llama")
    instruction = {"qformer_input_ids": torch.tensor([[3, 4, 5], [6, 7, 0]])}
    size = model.config.vision_config.image_size
    for pixels in (torch.rand(2, 3, 3, size, size), torch.rand(2, 3, 2 * size, size)):
        options = {**instruction, "pixel_values": pixels, "interpolate_pos_encoding": True}
        plain = model.get_image_features(**options).pooler_output
        compiled = model.get_image_features(**options, compile_config=compiling()).pooler_output
        torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_ragged_instructions_are_no_recompilation_storm():
    model = tiny_models.our_model("llama", max_position_embeddings=80)
    config = compiling(dynamic=False)
    for longest in range(3, 81, 7):
        images = images_of(tiny_models.batch(instruction_lengths=(longest, longest - 1)))
        plain = model.get_image_features(**images).pooler_output
        compiled = model.get_image_features(**images, compile_config=config).pooler_output
        torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=1e-5)
    assert graphs() == 1 + 3  # the tower, and instructions of 32, 64 and, the most that there are, 80 tokens


def in_the_same_memory(graph, example_inputs):
    """Like a CUDA graph: every run writes its results where the last run had its own."""
    places = {}

    def run(*args):
        outputs = graph(*args)
        for place, output in enumerate(outputs):
            if isinstance(output, torch.Tensor) and place in places:
                places[place].copy_(output)
            elif isinstance(output, torch.Tensor):
                places[place] = output.clone()
        return [places.get(place, output) for place, output in enumerate(outputs)]

    return run


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_results_stay_when_the_next_run_writes_to_the_same_memory(name):
    model = MODELS[name]()
    config = compiling(backend=in_the_same_memory)
    kept = []
    for seed in (0, 1):
        images = images_of(inputs_for(name, seed=seed))
        images["pixel_values"] = torch.rand_like(images["pixel_values"])
        plain = model.get_image_features(**images)
        compiled = model.get_image_features(**images, compile_config=config)
        kept.append((plain.pooler_output, compiled.pooler_output))
        kept.append((plain.vision_outputs.last_hidden_state, compiled.vision_outputs.last_hidden_state))
    for plain_states, compiled_states in kept:
        torch.testing.assert_close(compiled_states, plain_states, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_copies_of_a_model_compute_with_their_own_weights():
    model, images = tiny_models.our_blip_2("opt"), images_of(inputs_for("opt"))
    config = compiling()
    before = model.get_image_features(**images, compile_config=config).pooler_output
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        tiny_models.randomise(other, seed=5)
        plain = other.get_image_features(**images).pooler_output
        compiled = other.get_image_features(**images, compile_config=config).pooler_output
        torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(compiled, before)


@torch.no_grad()
def test_changed_weights_and_other_parts_are_seen():
    model, images = tiny_models.our_blip_2("opt"), images_of(inputs_for("opt"))
    config = compiling()
    other = tiny_models.our_blip_2("opt", seed=7)
    for change in (lambda: None, lambda: tiny_models.randomise(model, seed=5), lambda: replace_tower(model, other)):
        change()
        plain = model.get_image_features(**images).pooler_output
        compiled = model.get_image_features(**images, compile_config=config).pooler_output
        torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_another_configuration_compiles_anew():
    model, images = tiny_models.our_blip_2("opt"), images_of(inputs_for("opt"))
    for backend in ("aot_eager", "eager"):
        config = compiling(backend=backend)
        for _ in range(2):
            model.get_image_features(**images, compile_config=config)
        assert graphs() == 2


def replace_tower(model, other):
    model.vision_model = other.vision_model


def test_encode_images_goes_by_the_generation_configuration():
    model, images = tiny_models.our_blip_2("opt"), inputs_for("opt")["pixel_values"]
    plain = model.encode_images(images)
    model.generation_config.cache_implementation = "static"
    model.generation_config.compile_config = compiling()
    assert model.encode_images(images).image_embeds.requires_grad
    assert graphs() == 0
    with torch.no_grad():
        compiled = model.encode_images(images)
    assert graphs() == 1  # the tower's
    torch.testing.assert_close(compiled.image_embeds, plain.image_embeds.detach(), atol=1e-5, rtol=1e-5)


GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "options", "device_map", "is_compiled"),
    [
        (GPU, {"cache_implementation": "static"}, {}, True),
        (GPU, {"cache_implementation": "static"}, {"": 0}, True),
        (GPU, {"cache_implementation": "static"}, {"vision_model": 0, "language_model": 1}, True),
        (GPU, {"cache_implementation": "static"}, {"vision_model": 0, "language_model": "cpu"}, False),
        (GPU, {"cache_implementation": "static"}, {"vision_model": 0, "language_model": "disk"}, False),
        (GPU, {"cache_implementation": "static", "disable_compile": True}, {}, False),
        (GPU, {"cache_implementation": "dynamic"}, {}, False),
        (GPU, {}, {}, False),
        (CPU, {"cache_implementation": "static"}, {}, False),
        (CPU, {"cache_implementation": "static", "compile_config": CompileConfig()}, {}, False),
        (CPU, {"cache_implementation": "static", "compile_config": compiling()}, {}, True),
    ],
)
def test_when_parts_are_compiled(device, options, device_map, is_compiled):
    """As transformers decides it of the steps, whose rule needs the cache."""
    model = SimpleNamespace(device=device, generation_config=GenerationConfig(), hf_device_map=device_map)
    with torch.no_grad():
        assert (compile_config_for(model, options) is not None) == is_compiled
        own = SimpleNamespace(device=device, generation_config=GenerationConfig(**options), hf_device_map=device_map)
        assert (compile_config_for(own, {}) is not None) == is_compiled
        given = {"generation_config": GenerationConfig(**options)}
        assert (compile_config_for(model, given) is not None) == is_compiled
        assert (compile_config_for(own, {"generation_config": GenerationConfig()}) is not None) == is_compiled
        assert compile_config_for(own, {"cache_implementation": None}) is None
    assert compile_config_for(model, options) is None  # with gradients
