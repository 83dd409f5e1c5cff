"""Gradients of embeddings: dense for whoever looks, equal to torch's, and sparse on the way."""

import copy

import pytest
import torch
from torch import nn

from instructblip_hf.training.embedding_gradients import keep_dense, sparse_gradients, trained_embeddings
from tiny_shapes import tiny_model
from tiny_training import arguments, trainer_for


def test_several_batches_add_up_to_torchs_gradient():
    torch.manual_seed(0)
    expected, own = nn.Embedding(50, 4, padding_idx=0), nn.Embedding(50, 4, padding_idx=0)
    own.load_state_dict(expected.state_dict())
    keep_dense([own])
    layouts = []
    own.weight.register_hook(lambda gradient: layouts.append(gradient.layout))
    for batch in range(3):
        ids = torch.tensor([[0, 7, 7, 3 + batch], [9, 9, 9, 49]])
        weights = torch.randn(2, 4, 4)
        (expected(ids) * weights).sum().backward()
        with sparse_gradients([own]):
            states = own(ids)
        (states * weights).sum().backward()
        assert own.weight.grad.layout == torch.strided
        torch.testing.assert_close(own.weight.grad, expected.weight.grad, rtol=1e-6, atol=1e-6)
    assert layouts == [torch.sparse_coo] * 3
    assert not own.sparse


def test_tied_and_frozen_embeddings_are_left_alone():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.tied, self.frozen, self.free = nn.Embedding(9, 4), nn.Embedding(9, 4), nn.Embedding(9, 4)
            self.scaled = nn.Embedding(9, 4, scale_grad_by_freq=True)
            self.head = nn.Linear(4, 9, bias=False)
            self.head.weight = self.tied.weight
            self.frozen.weight.requires_grad = False

    model = Tied()
    assert trained_embeddings(model) == [model.free]


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_training_gives_the_same_weights(kind, tmp_path, monkeypatch):
    weights = []
    for is_sparse in (True, False):
        model = tiny_model(kind, dropout=0.1)
        trainer = trainer_for(model, arguments(tmp_path, gradient_accumulation_steps=2, max_grad_norm=0.1))
        if not is_sparse:
            trainer._sparse_embeddings = []
        layouts = set()
        model.qformer.embeddings.word_embeddings.weight.register_hook(lambda g, seen=layouts: seen.add(g.layout))
        trainer.train()
        assert layouts == {torch.sparse_coo if is_sparse else torch.strided}
        weights.append(model.state_dict())
        copy.deepcopy(model)  # nothing of it stays with the model
        assert not any(getattr(module, "sparse", False) for module in model.modules())
    for name, weight in weights[0].items():
        if name.endswith("key.bias"):
            continue  # their exact gradient is 0, and Adam makes steps of its rounding
        torch.testing.assert_close(weight, weights[1][name], rtol=1e-5, atol=1e-6, msg=name)
