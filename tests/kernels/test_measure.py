"""What fills the table of measurements: the calls that it builds, and that it times nothing that is wrong."""

import pytest
import torch

from instructblip_hf.kernels import measure as measuring
from instructblip_hf.kernels.measured import SHAPE_KEYS, read_table
from kernel_inputs import DEVICE


TINY = {
    "cross_attention": {"rows": 4, "images": 2, "queries": 3, "keys": 7, "heads": 1, "head_size": 16},
    "packed_attention": {"rows": 3, "queries": 2, "text_tokens": 6, "heads": 1, "head_size": 16},
    "dropout_add_layer_norm": {"rows": 3, "hidden": 16},
}
needs_triton = pytest.mark.skipif(
    measuring.why_not_triton(torch.empty(0, device=DEVICE)) is not None,
    reason="Triton runs neither here nor interpreted",
)


@needs_triton
@pytest.mark.parametrize("operation", TINY)
def test_right_results_pass_and_wrong_ones_are_not_timed(operation):
    tensors, call = measuring.build_call(operation, TINY[operation], torch.float32, DEVICE)
    measuring.check(call, tensors, measuring.draw_weights(tensors))

    def wrong(implementation):
        function = call(implementation)
        if implementation == "torch":
            return function
        return lambda *states: function(*states) * 1.01

    with pytest.raises(RuntimeError, match=r"tensor 0 is off by .* from float64, torch by .*: not timed"):
        measuring.check(wrong, tensors, None)


@needs_triton
@pytest.mark.skipif(DEVICE == "cuda", reason="for machines without a GPU")
def test_without_a_gpu_nothing_is_timed(monkeypatch, tmp_path, capsys):
    with pytest.raises(RuntimeError, match="is right, but there is no GPU"):
        measuring.measure("dropout_add_layer_norm", TINY["dropout_add_layer_norm"], device="cpu")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(RuntimeError, match="cannot be measured: the tensors are on the CPU"):
        measuring.measure("dropout_add_layer_norm", TINY["dropout_add_layer_norm"], device="cpu")
    with pytest.raises(SystemExit, match="1"):
        measuring.main(["--output", str(tmp_path / "measured.json")])
    assert "nothing can be measured here: the tensors are on the CPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("operation", TINY)
def test_a_measurement_is_an_entry_of_the_table(operation, tmp_path):
    entry = measuring.measure(operation, TINY[operation], torch.float32, gradients=True, turns=3, calls=2)
    measuring.write_table(tmp_path / "measured.json", (entry,))
    assert read_table(tmp_path / "measured.json") == (entry,)


def test_the_shapes_of_the_command_line_are_those_of_the_table():
    for operation, shapes in measuring.SHAPES.items():
        for shape in shapes:
            assert set(shape) == set(SHAPE_KEYS[operation])


def test_packed_rows_have_as_much_text_as_was_asked_for():
    tensors, _ = measuring.build_call("packed_attention", TINY["packed_attention"], torch.float32, "cpu")
    assert len(tensors[0]) == 3 * 2 + 6
