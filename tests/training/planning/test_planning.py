"""Plans against the truth: models that were really built, and tensors that autograd really kept."""

import contextlib
import json
import shutil
import weakref

import pytest
import torch
import transformers
from torch.profiler import ProfilerActivity, profile

from instructblip_hf.models.instructblip import InstructBlipConfig
from instructblip_hf.training.freezing import apply_freezing
from instructblip_hf.training.image_features.tower import autocast_dtype
from instructblip_hf.training.planning import plan_recipe
from instructblip_hf.training.planning.batch import RowLengths, largest_batch, row_lengths
from instructblip_hf.training.planning.memory import CudaAutocast
from instructblip_hf.training.planning.planning import largest_that_fits
from instructblip_hf.training.planning.skeleton import skeleton_of
from instructblip_hf.training.planning.step import run_step
from instructblip_hf.training.planning.weights import weight_bytes
from instructblip_hf.training.planning.without_values import tensors_without_values
from instructblip_hf.training.recipe import load_recipe
from instructblip_hf.training.recomputation import activations_recomputed
from instructblip_hf.training.run import model_of
from tiny_blip_2 import save_stages
from tiny_llava_parts import save_llava_parts
from tiny_shapes import save_tiny_checkpoint


LENGTHS = {"prompt_tokens": 11, "answer_tokens": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans")
    save_stages(folder / "blip_2")
    for kind in ("causal", "seq2seq"):
        save_tiny_checkpoint(folder / kind, kind)
    return folder


def recipe_of(folder, model, **sections):
    content = {
        "model": model,
        "freezing": sections.pop("freezing", "instructblip"),
        "data": {"train": {"shapes_world": {"examples": 8}}, **sections.pop("data", {})},
        "training": {"per_device_train_batch_size": 3, "use_cpu": True, **sections.pop("training", {})},
        **sections,
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(content))
    return load_recipe(path)


def causal(folder, **changes):
    return {"path": str(folder / "causal"), **changes}


def parts(folder, *names, **options):
    return {"parts": {**{name: str(folder / place) for name, place in names}, **options}}


def llava(folder, **options):
    """Made when it is asked for: early 5.x needs torchvision for its image processor."""
    if not (folder / "llava").exists():
        save_llava_parts(folder / "llava")
    return parts(folder, ("vision", "llava/vision"), ("text", "llava/text"), **options)


MODELS = {
    "causal": causal,
    "half precision": lambda folder: {"path": str(folder / "seq2seq"), "dtype": "float16"},
    "frozen in 16 bits": lambda folder: causal(folder, frozen_dtype="bfloat16"),
    "as saved": lambda folder: causal(folder, dtype="auto"),
    "no instruction": lambda folder: causal(folder, qformer_instruction=False),
    "larger images": lambda folder: causal(folder, image_size=84),
    "first stage": lambda folder: parts(
        folder, ("vision", "blip_2/vision"), ("bert", "blip_2/bert"), num_query_tokens=4
    ),
    "second stage": lambda folder: parts(folder, ("first_stage", "blip_2/first_stage"), ("text", "blip_2/opt")),
    "instruction tuning": lambda folder: parts(
        folder, ("first_stage", "blip_2/first_stage"), ("second_stage", "blip_2/second_stage")
    ),
    "llava": llava,
    "llava with queries": lambda folder: llava(folder, projector_type="qformer", num_query_tokens=4),
}
FREEZING = {"first stage": "blip2-stage1", "llava": "llava-stage2", "llava with queries": "llava-stage1"}


def true_model(recipe):
    args = recipe.training_arguments()
    model, _ = model_of(recipe, args)
    return model, apply_freezing(model, recipe.freezing), args


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_weights_are_those_of_the_model_that_trains(name, folder):
    recipe = recipe_of(folder, MODELS[name](folder), freezing=FREEZING.get(name, "instructblip"))
    model, report, args = true_model(recipe)
    with tensors_without_values():
        skeleton, planned, notes = skeleton_of(recipe, args)
    facts = {n: (p.shape, p.dtype, p.requires_grad) for n, p in skeleton.named_parameters()}
    assert facts == {n: (p.shape, p.dtype, p.requires_grad) for n, p in model.named_parameters()}
    assert (planned.total, planned.trainable) == (report.total, report.trainable)
    assert notes == []


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantised_weights(kind, quantization, folder):
    pytest.importorskip("bitsandbytes", reason="the extra quant is not installed")
    model = {"path": str(folder / kind), "quantization": quantization, "frozen_dtype": "bfloat16"}
    freezing = {"components": {"language_model": "lora"}, "lora_rank": 2}
    recipe = recipe_of(folder, model, freezing=freezing)
    true, report, args = true_model(recipe)
    expected = {}
    for name, parameter in true.named_parameters():
        expected[name] = parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            inner = [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
            expected[name] += sum(tensor.numel() * tensor.element_size() for tensor in inner)
        elif parameter.dtype == torch.int8:
            scales = parameter.SCB
            expected[name] += scales.numel() * scales.element_size()
    with tensors_without_values():
        skeleton, planned, _ = skeleton_of(recipe, args)
        assert weight_bytes(skeleton, quantization) == expected
    assert (planned.total, planned.trainable) == (report.total, report.trainable)


class Kept:
    """What stands in the graph for a tensor that it saves."""

    def __init__(self, tensor):
        self.tensor = tensor


class Storages:
    """What autograd saves; `bytes` is of storages that the graph still holds, each once, but for those of given tensors."""

    def __init__(self, known):
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.kept = []

    def pack(self, tensor):
        kept = Kept(tensor)
        self.kept.append(weakref.ref(kept))
        return kept

    def bytes(self):
        storages = [kept().tensor.untyped_storage() for kept in self.kept if kept() is not None]
        return sum({s._cdata: s.nbytes() for s in storages if s._cdata not in self.known}.values())


def true_step(model, args, inputs):
    """The loss of a forward pass on true tensors, and the bytes that autograd saves in it."""
    storages = Storages([*model.parameters(), *model.buffers(), *inputs.values()])
    dtype = autocast_dtype(args)
    options = {"logits_at_labels": True} if hasattr(model, "language_model") else {}
    with (
        torch.autograd.graph.saved_tensors_hooks(storages.pack, lambda kept: kept.tensor),
        torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None),
        CudaAutocast(),
    ):
        loss = model(**inputs, **options).loss
    return loss, storages.bytes()


def planned_step(recipe, args, lengths, rows, **options):
    with tensors_without_values():
        model, report, _ = skeleton_of(recipe, args)
        return run_step(model, report, args, lambda: largest_batch(model, recipe, args, lengths, rows), **options)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("causal", {}),
        ("causal", {"bf16": True}),
        ("half precision", {}),
        ("llava", {"bf16": True}),
        ("first stage", {}),
    ],
)
def test_activations_are_what_autograd_saves(name, training, attention, folder):
    model = {**MODELS[name](folder), "dtype": "float32", "attn_implementation": attention}
    recipe = recipe_of(folder, model, freezing=FREEZING.get(name, "instructblip"), training=training)
    true, report, args = true_model(recipe)
    lengths = row_lengths(true, recipe, **LENGTHS)
    true.train()
    report.hold_frozen_modules_in_eval()
    loss, expected = true_step(true, args, largest_batch(true, recipe, args, lengths, 3))
    step = planned_step(recipe, args, lengths, 3, recompute_activations=False)
    loss_bytes = loss.untyped_storage().nbytes()
    assert sum(step.activations.values()) == expected + loss_bytes
    loss.backward()
    optimizer = torch.optim.AdamW([parameter for parameter in true.parameters() if parameter.requires_grad])
    optimizer.step()
    gradients, states = {}, {}
    for name, parameter in true.named_parameters():
        part = name.partition(".")[0]
        if parameter.requires_grad:
            # Of what was trained without a gradient there is no state either.
            own = [] if parameter.grad is None else [parameter.grad]
            gradients[part] = gradients.get(part, 0) + sum(tensor.nbytes for tensor in own)
            states[part] = states.get(part, 0) + sum(
                tensor.nbytes for tensor in optimizer.state.get(parameter, {}).values()
            )
    assert step.gradients == {part: size for part, size in gradients.items() if size}
    assert step.optimizer == {part: size for part, size in states.items() if size}


@pytest.mark.parametrize("training", [{}, {"gradient_checkpointing": True}, {"gradient_accumulation_steps": 2}])
def test_without_values_the_same_memory_is_alive_as_with(training, folder):
    """Recomputation, checkpoints and accumulation are respected: peak and activations of the very same step."""
    recipe = recipe_of(folder, causal(folder), training={**training, "bf16": True})
    true, report, args = true_model(recipe)
    if training.get("gradient_checkpointing"):
        true.gradient_checkpointing_enable()
    lengths = row_lengths(true, recipe, **LENGTHS)
    measured = run_step(true, report, args, lambda: largest_batch(true, recipe, args, lengths, 3))
    assert planned_step(recipe, args, lengths, 3) == measured


def test_checkpoints_and_recomputation_keep_less(folder):
    kept = {}
    for name, training, options in (
        ("all", {}, {"recompute_activations": False}),
        ("recomputed", {}, {}),
        ("checkpoints", {"gradient_checkpointing": True}, {}),
    ):
        recipe = recipe_of(folder, causal(folder), freezing="all", training=training)
        args = recipe.training_arguments()
        step = planned_step(recipe, args, RowLengths(4, 11, 5), 3, **options)
        kept[name] = sum(step.activations.values())
    assert kept["checkpoints"] < kept["recomputed"] < kept["all"]


def test_the_peak_is_what_the_allocator_sees(folder):
    """Kernels also need memory inside of themselves, which is not counted: little at this size, and never less than none."""
    recipe = recipe_of(folder, causal(folder), freezing="all")
    true, report, args = true_model(recipe)
    lengths = row_lengths(true, recipe, **LENGTHS)
    planned = planned_step(recipe, args, lengths, 3)
    true.train()
    report.hold_frozen_modules_in_eval()
    true.language_model._logits_at_labels_checked = True
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as events:
        inputs = largest_batch(true, recipe, args, lengths, 3)
        with activations_recomputed(true):
            loss = true(**inputs, logits_at_labels=True).loss
        loss.backward()
    live = peak = 0
    memory = [event for event in events.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(memory, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    step = planned.peak - sum(planned.optimizer.values())
    assert step <= peak <= 1.25 * step


def test_mixed_precision_of_a_gpu():
    """CUDA's autocast computes norms and softmax in float32, a CPU's does not; matrix products in 16 bits on both."""
    states, norm = torch.randn(2, 4), torch.nn.LayerNorm(4)
    dtypes = []
    for mode in (contextlib.nullcontext(), CudaAutocast()):
        with torch.autocast("cpu", torch.bfloat16), mode:
            product = states @ states.T
            outputs = [norm(product @ states), product.softmax(-1), product.pow(2), product.relu()]
        dtypes.append([product.dtype, *(output.dtype for output in outputs)])
    narrow, wide = torch.bfloat16, torch.float32
    assert dtypes == [[narrow, narrow, narrow, narrow, narrow], [narrow, wide, wide, wide, narrow]]
    with CudaAutocast():
        assert torch.ones(2, dtype=narrow).softmax(-1).dtype == narrow  # no autocast, no change


@pytest.mark.parametrize("memory", [0, 99, 130, 5_000, 12_345])
@pytest.mark.parametrize("known", [1, 8, 300])
def test_the_largest_batch_is_that_of_trying_all(memory, known):
    def peak(rows):
        return 100 + 30 * rows + rows * rows // 7

    expected = max((rows for rows in range(1, 1000) if peak(rows) <= memory), default=0)
    assert largest_that_fits(peak, memory, {known: peak(known)}) == expected


def test_the_largest_batch_of_a_recipe(folder):
    recipe = recipe_of(folder, causal(folder))
    plan = plan_recipe(recipe, memory=4 * 2**20, **LENGTHS)
    assert plan.peak_bytes < plan.memory
    peaks = {}
    for rows in (plan.largest_batch, plan.largest_batch + 1):
        sized = recipe_of(folder, causal(folder), training={"per_device_train_batch_size": rows})
        peaks[rows] = plan_recipe(sized, **LENGTHS).peak_bytes
    assert plan.rows < plan.largest_batch
    assert peaks[plan.largest_batch] <= plan.memory < peaks[plan.largest_batch + 1]
    assert plan_recipe(recipe, memory=1000, **LENGTHS).largest_batch == 0


def test_kept_features_leave_the_tower_out(folder, tmp_path):
    changes = {"freezing": "instructblip-strict", "data": {"image_features": str(tmp_path / "kept")}}
    recipe = recipe_of(folder, causal(folder), **changes)
    plan = plan_recipe(recipe, **LENGTHS)
    pixels = plan_recipe(recipe_of(folder, causal(folder), freezing="instructblip-strict"), **LENGTHS)
    assert plan.peak_bytes < pixels.peak_bytes
    assert not (tmp_path / "kept").exists()


def test_rows_are_as_long_as_the_recipe_lets_them_be(folder):
    def lengths(**data):
        plan = plan_recipe(recipe_of(folder, causal(folder), data=data))
        return plan.lengths.prompt, plan.lengths.answer, plan.lengths.assumed

    assert lengths(max_prompt_length=20, max_completion_length=6) == (16, 6, ())
    assert lengths(max_prompt_length=20) == (16, 128, ("answer",))
    assert lengths() == (128, 128, ("prompt", "answer"))
    with pytest.raises(ValueError, match=r"4 tokens of the image, 0 of the prompt"):
        lengths(max_prompt_length=4)


def test_a_model_of_7b_needs_its_configuration_alone(tmp_path):
    """Published numbers: 188M trainable (Dai et al. 2023, table 4), 7.9B in all."""
    config = InstructBlipConfig(
        qformer_config={"vocab_size": 30523},
        text_config=transformers.LlamaConfig(vocab_size=32001, max_position_embeddings=2048).to_dict(),
        num_query_tokens=32,
        image_token_index=32000,
    )
    config.save_pretrained(tmp_path / "7b")
    overrides = [f"model.path={tmp_path / '7b'}", "training.per_device_train_batch_size=1"]
    plan = plan_recipe(load_recipe("instructblip_vicuna_7b", overrides, data_files=False))
    by_name = {part.name: part for part in plan.parts}
    assert plan.total.trainable == 188_837_376
    assert by_name["language_model"].parameters == 6_738_423_808
    assert by_name["language_model"].weight_bytes == 2 * 6_738_423_808
    assert by_name["qformer"].optimizer_bytes >= 8 * by_name["qformer"].trainable
    assert by_name["vision_model"].gradient_bytes == 4 * by_name["vision_model"].trainable
    assert (plan.lengths.image, plan.lengths.prompt, plan.lengths.answer) == (32, 128, 256)


def test_parts_without_tokenizers(folder, tmp_path):
    """Configurations alone: vocabularies may be a few rows short, and that is said."""
    llava(folder)
    for name in ("vision", "text"):
        (tmp_path / name).mkdir()
        shutil.copy(folder / "llava" / name / "config.json", tmp_path / name)
    bare = {"parts": {name: str(tmp_path / name) for name in ("vision", "text")}}
    plan = plan_recipe(recipe_of(folder, bare, freezing="llava-stage1"), **LENGTHS)
    whole = plan_recipe(recipe_of(folder, MODELS["llava"](folder), freezing="llava-stage1"), **LENGTHS)
    assert any("no tokenizer" in note for note in plan.notes)
    difference = abs(whole.total.parameters - plan.total.parameters)
    assert difference <= 4 * 2 * 48


def test_optimisers_of_others_are_refused(folder):
    pytest.importorskip("bitsandbytes", reason="the extra quant is not installed")
    recipe = recipe_of(folder, causal(folder), training={"optim": "paged_adamw_8bit"})
    with pytest.raises(ValueError, match=r"training.optim: the states of paged_adamw_8bit are made by bitsandbytes"):
        plan_recipe(recipe, **LENGTHS)


def test_transformers_is_left_as_it_was(folder):
    before = vars(transformers.PreTrainedModel)["from_pretrained"], torch.nn.Module._apply
    with pytest.raises(ValueError, match="no component"):
        plan_recipe(recipe_of(folder, causal(folder), freezing={"components": {"nothing": "train"}}))
    assert before == (vars(transformers.PreTrainedModel)["from_pretrained"], torch.nn.Module._apply)
