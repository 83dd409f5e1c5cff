"""The Q-Former's fused kernels: what would run on this machine and why, and how near each form is to float64.

    python examples/kernels.py                      # in plain torch where there is no GPU
    TRITON_INTERPRET=1 python examples/kernels.py   # the kernels themselves, interpreted on the CPU (slow)

The second command made the table in docs/kernels.md. It takes about a minute.
"""

import argparse
from collections.abc import Callable

import torch

from instructblip_hf.kernels import cross_attention, dropout_add_layer_norm, packed_attention, why_not_triton


def operations(device: str) -> dict[str, tuple[Callable[..., torch.Tensor], list[torch.Tensor]]]:
    """Each operation at the Q-Former's shapes with few rows: a function of tensors and an implementation."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    index = torch.tensor([0, 1, 0], device=device)  # rows 0 and 2 ask about the first image
    offsets = torch.tensor([0, 20, 27], dtype=torch.int32, device=device)  # a text of 20 tokens and one of 7

    def ask_images(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, form: str) -> torch.Tensor:
        return cross_attention(
            query, key, value, image_index=index, scaling=0.125, dropout_p=0.1, seed=7, implementation=form
        )

    def attend_packed(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, form: str) -> torch.Tensor:
        return packed_attention(
            query,
            key,
            value,
            rows=2,
            num_queries=32,
            text_offsets=offsets,
            max_text=20,
            scaling=0.125,
            dropout_p=0.1,
            seed=7,
            implementation=form,
        )

    def end_sub_layer(x: torch.Tensor, residual: torch.Tensor, *vectors: torch.Tensor | str) -> torch.Tensor:
        weight, bias, dense_bias, form = vectors
        return dropout_add_layer_norm(
            x, residual, weight, bias, 1e-12, 0.1, seed=7, dense_bias=dense_bias, implementation=form
        )

    return {
        "cross_attention": (ask_images, [draw(3, 32, 4, 64), draw(2, 257, 4, 64), draw(2, 257, 4, 64)]),
        "packed_attention": (attend_packed, [draw(2 * 32 + 27, 4, 64) for _ in range(3)]),
        "dropout_add_layer_norm": (end_sub_layer, [draw(64, 768), draw(64, 768), draw(768), draw(768), draw(768)]),
    }


def output_and_gradients(
    function: Callable[..., torch.Tensor], tensors: list[torch.Tensor], weights: torch.Tensor, form: str
) -> list[torch.Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    output = function(*leaves, form)
    return [output.detach(), *torch.autograd.grad(output, leaves, weights.to(output.dtype))]


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reason = why_not_triton(torch.empty(0, device=device), head_size=64)
    print(f"torch {torch.__version__} on {device}")
    print(f"Triton cannot run here: {reason}" if reason else "Triton runs here where it is named")
    forms = ["torch"] if reason else ["triton", "torch"]
    print("\nlargest difference from float64, as a part of the largest number: of the output, of all gradients")
    for name, (function, tensors) in operations(device).items():
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            rounded = [tensor.to(dtype) for tensor in tensors]
            weights = torch.randn(rounded[0].shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
            exact = output_and_gradients(function, [tensor.double() for tensor in rounded], weights, "torch")
            for form in forms:
                found = output_and_gradients(function, rounded, weights, form)
                off = [
                    ((got.double() - wanted).abs().max() / wanted.abs().max()).item()
                    for got, wanted in zip(found, exact)
                ]
                print(f"{name:24} {str(dtype)[6:]:10} {form:7} {off[0]:.1e}  {max(off[1:]):.1e}")


if __name__ == "__main__":
    main()
