"""Outputs of activation functions computed again: the same gradients, and the memory given back."""

import weakref
from contextlib import nullcontext

import pytest
import torch
import transformers
from torch import nn

from instructblip_hf.training.recomputation import activation_modules, activations_recomputed
from tiny_models import text_config
from tiny_shapes import tiny_model
from tiny_training import arguments, trainer_for


def language_model(kind):
    torch.manual_seed(0)
    config = text_config(kind)
    auto = transformers.AutoModelForSeq2SeqLM if kind == "t5" else transformers.AutoModelForCausalLM
    return auto.from_config(config).eval()


def run(model, context, **inputs):
    """Gradients by name, and how many outputs of activation functions lived on after the forward pass."""
    model.zero_grad()
    outputs = []
    handles = [
        module.register_forward_hook(lambda _, __, output: outputs.append(weakref.ref(output)))
        for module in activation_modules(model)
    ]
    with context:
        loss = model(**inputs).loss
    for handle in handles:
        handle.remove()
    alive = sum(output() is not None for output in outputs)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return gradients, alive, len(outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen_half", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen", "gemma", "t5", "opt"])
def test_gradients_are_the_same_bits(kind, frozen_half, dtype):
    model = language_model(kind).to(dtype)
    if frozen_half:  # of a frozen projection nothing is kept but what the layers after it need
        for parameter in list(model.parameters())[1::2]:
            parameter.requires_grad = False
    ids = torch.randint(3, 90, (3, 9), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "labels": ids}
    expected, kept, number = run(model, nullcontext(), **inputs)
    gradients, alive, _ = run(model, activations_recomputed(model), **inputs)
    assert number > 0
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, expected[name]), name
    if kind == "opt":  # what ReLU gave is all that its own gradient needs
        assert alive == kept == number
    elif not frozen_half:
        assert kept == number
        assert alive == 0


def test_a_changed_output_is_kept_as_it_is():
    class Scaled(nn.Module):
        def __init__(self, in_place):
            super().__init__()
            self.first, self.act, self.second = nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 1)
            self.in_place = in_place

        def forward(self, states):
            states = self.act(self.first(states))
            states = states.mul_(3.0) if self.in_place else states * 3.0
            return self.second(states)

    torch.manual_seed(0)
    expected = Scaled(False)
    changed = Scaled(True)
    changed.load_state_dict(expected.state_dict())
    states = torch.randn(5, 4)
    expected(states).sum().backward()
    with activations_recomputed(changed):
        output = changed(states)
    output.sum().backward()
    for own, other in zip(changed.parameters(), expected.parameters()):
        assert torch.equal(own.grad, other.grad)


def test_a_changed_input_is_an_error():
    first, act, second = nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 1)
    model = nn.ModuleList([first, act, second])
    with activations_recomputed(model):
        before = first(torch.randn(5, 4))
        output = second(act(before))
    with torch.no_grad():
        before.mul_(2.0)
    with pytest.raises(RuntimeError, match="the input of GELU was changed in place"):
        output.sum().backward()


def test_views_of_an_output_and_a_second_backward_pass():
    torch.manual_seed(0)
    first, act, second = nn.Linear(4, 6), nn.SiLU(), nn.Linear(3, 1)
    model = nn.ModuleList([first, act, second])
    states = torch.randn(5, 4)

    def gradients(context):
        model.zero_grad()
        with context:
            output = act(first(states)).transpose(0, 1).reshape(10, 3)[2:]
            loss = second(output).pow(2).sum()
        loss.backward(retain_graph=True)
        loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    for own, expected in zip(gradients(activations_recomputed(model)), gradients(nullcontext())):
        assert torch.equal(own, expected)


def test_activation_checkpointing_goes_on_as_before():
    model = language_model("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(1))
    expected, _, _ = run(model, nullcontext(), input_ids=ids, labels=ids)
    gradients, _, _ = run(model, activations_recomputed(model), input_ids=ids, labels=ids)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, expected[name]), name


def test_activation_checkpointing_computes_nothing_more():
    model = language_model("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(1))
    calls = []
    model.model.layers[0].mlp.gate_proj.register_forward_hook(lambda *_: calls.append(1))
    with activations_recomputed(model):
        loss = model(input_ids=ids, labels=ids).loss
    assert len(calls) == 1
    loss.backward()
    assert len(calls) == 2


class Pair(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.first, self.act, self.second = nn.Linear(4, 8), act, nn.Linear(8, 1)

    def forward(self, states):
        return self.second(self.act(self.first(states)))


@pytest.mark.parametrize(
    "act",
    [nn.SiLU(inplace=True), nn.Hardswish(inplace=True), nn.Mish(inplace=True), nn.RReLU(), nn.GELU(), nn.PReLU()],
    ids=repr,
)
@pytest.mark.parametrize("hook", [None, lambda _, __, output: output * 3, lambda _, __, output: output.mul_(3)])
def test_whatever_a_module_does(act, hook):
    torch.manual_seed(0)
    model = Pair(act).train()
    handle = act.register_forward_hook(hook) if hook is not None else None
    states = torch.randn(5, 4)
    gradients = []
    for context in (nullcontext(), activations_recomputed(model)):
        model.zero_grad()
        torch.manual_seed(1)
        with context:
            loss = model(states).sum()
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    if handle is not None:
        handle.remove()
    for own, expected in zip(*gradients):
        assert torch.equal(own, expected)


def test_under_autocast_the_function_is_computed_as_before():
    class Product(nn.Module):
        """An activation of transformers' kind with an operation that autocast changes the dtype of."""

        def forward(self, states):
            return states * torch.sigmoid(states @ torch.ones(8, 8))

    from instructblip_hf.training import recomputation

    torch.manual_seed(0)
    model = Pair(Product())
    states = torch.randn(5, 4)
    gradients = []
    for recompute in (False, True):
        model.zero_grad()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recomputation, "activation_modules", lambda model: [model.act])
            with torch.autocast("cpu", torch.bfloat16), activations_recomputed(model) if recompute else nullcontext():
                loss = model(states).sum()
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for own, expected in zip(*gradients):
        assert torch.equal(own, expected)


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_training_gives_the_same_weights_and_keeps_less(kind, tmp_path):
    runs = []
    for recompute in (True, False):
        torch.manual_seed(0)
        model = tiny_model(kind, dropout=0.1)
        trainer = trainer_for(model, arguments(tmp_path), recompute_activations=recompute)
        alive = []

        def watch(_, __, output, alive=alive):
            alive.append(weakref.ref(output))

        model.qformer.encoder.layer[0].intermediate_query.activation_fn.register_forward_hook(watch)
        seen = []
        backward = trainer.accelerator.backward

        def look(loss, backward=backward, alive=alive, seen=seen, **kwargs):
            seen.append(alive[-1]() is not None)
            backward(loss, **kwargs)

        trainer.accelerator.backward = look
        trainer.train()
        runs.append((model.state_dict(), seen))
    (own, gone), (expected, kept) = runs
    assert kept
    assert all(kept)
    assert not any(gone)
    for name, weight in own.items():
        assert torch.equal(weight, expected[name]), name


class Upcast(nn.Module):
    """A norm in float32 over states of whatever dtype, as those of LLaMA."""

    def __init__(self, change):
        super().__init__()
        self.first, self.second, self.change = nn.Linear(4, 4), nn.Linear(4, 1), change
        self.kept = []

    def forward(self, states):
        states = self.first(states).to(torch.float32)
        if self.change:
            states.add_(1e-4)  # more digits than 16 bits have
        self.kept.append(weakref.ref(states))
        states = states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.second(states.to(self.second.weight.dtype))


@pytest.mark.parametrize("change", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_copies_in_float32_are_kept_in_their_16_bits(dtype, change):
    torch.manual_seed(0)
    model = Upcast(change).to(dtype)
    states = torch.randn(5, 4, dtype=dtype)
    gradients = []
    for context in (nullcontext(), activations_recomputed(model)):
        model.zero_grad()
        with context:
            loss = model(states).float().sum()
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for own, expected in zip(*gradients):
        assert torch.equal(own, expected)


def test_a_narrow_copy_frees_the_wide_one():
    model = Upcast(False).to(torch.bfloat16)
    states = torch.randn(5, 4, dtype=torch.bfloat16)
    losses = [model(states).sum()]
    with activations_recomputed(model):
        losses.append(model(states).sum())
    assert [kept() is not None for kept in model.kept] == [True, False]
    assert len(losses) == 2
