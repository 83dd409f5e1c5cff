"""Compiles the kernels for GPUs that are not there, and reads registers, spills and matrix instructions off the result.

    python tests/kernels/compile_ahead.py          # every case, and an exit code of 1 where one is over its limit
    python tests/kernels/compile_ahead.py CASE...  # some

The operators themselves are called, with a recorder in the place of the kernels, so that what is compiled is what would be
launched: the same constants, block sizes, and properties of arguments that Triton specialises on. It must run in a
process of its own where TRITON_INTERPRET is not set: an interpreted kernel cannot be compiled.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from instructblip_hf.kernels import attention_kernels, attention_op, residual_norm_kernels
from instructblip_hf.kernels.attention_op import attention_backward, attention_forward
from instructblip_hf.kernels.residual_norm_op import residual_norm_backward, residual_norm_forward


TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TRITON_TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One kernel at one shape: ``form`` is ``rows`` (with a mask of keys), ``folded`` or ``packed`` for attention,
    ``norm`` for LayerNorm."""

    kernel: str
    form: str
    dtype: str
    size: int
    dropout: bool
    arch: int

    @property
    def name(self) -> str:
        dropout = "dropout" if self.dropout else "plain"
        return f"{self.kernel}-{self.form}-{self.dtype}-{self.size}-{dropout}-sm{self.arch}"


CASES = [
    Case(kernel, form, dtype, size, dropout, arch)
    for kernel in ("forward", "backward")
    for form, dtypes, sizes in (
        ("rows", ("bf16", "fp32"), (64, 128)),
        ("folded", ("bf16", "fp32"), (64, 128)),
        ("packed", ("bf16", "fp32"), (64, 128)),
        ("folded", ("fp16",), (32, 88)),
        ("norm", ("bf16",), (768,)),
    )
    for dtype in dtypes
    for size in sizes
    for dropout in (False, True)
    for arch in (80, 90)
]

LIMITS = {
    ("forward", "bf16", 64): (255, 0),
    ("forward", "bf16", 128): (248, 0),
    ("forward", "fp32", 64): (176, 0),
    ("forward", "fp32", 128): (72, 0),
    ("backward", "bf16", 64): (200, 0),
    ("backward", "bf16", 128): (200, 0),
    ("backward", "fp32", 64): (255, 0),
    ("backward", "fp32", 128): (128, 4),
    ("forward", "fp16", 32): (168, 0),
    ("backward", "fp16", 32): (255, 0),
    ("forward", "fp16", 88): (224, 0),
    ("backward", "fp16", 88): (184, 0),
    ("forward", "bf16", 768): (64, 0),
    ("backward", "bf16", 768): (96, 0),
}
"""Most registers a thread and most spill instructions, by kernel, type and size, on both GPUs."""


def broken_limits(case: Case, found: dict[str, int]) -> list[str]:
    """What a compiled case has too much or too little of."""
    registers, spills = LIMITS[case.kernel, case.dtype, case.size]
    broken = []
    if found["registers"] > registers:
        broken.append(f"{case.name}: {found['registers']} registers, at most {registers} are allowed")
    if found["spills"] > spills:
        broken.append(f"{case.name}: {found['spills']} spill instructions, at most {spills} are allowed")
    if case.dtype != "fp32" and case.form != "norm" and not found["hgmma"] + found["hmma"]:
        broken.append(f"{case.name}: no instruction of the tensor cores")
    if case.arch == 90 and case.dtype != "fp32" and case.form in ("folded", "packed") and not found["hgmma"]:
        broken.append(f"{case.name}: 64 queries a tile, and no matrix product of a warp group")
    return broken


class _Recorder:
    """Stands in for a kernel and keeps what it is launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.launch = kernel, None

    def __getitem__(self, grid: Any) -> Any:
        def record(*args: Any, **options: Any) -> None:
            self.launch = (args, options)

        return record


def call_attention(case: Case) -> None:
    dtype, heads, size = TYPES[case.dtype], 12, case.size
    seed = torch.zeros(1, dtype=torch.int64) if case.dropout else None
    p = 0.1 if case.dropout else 0.0
    if case.form == "packed":
        offsets = torch.tensor([0, 20, 60], dtype=torch.int32)
        states = torch.zeros(2 * 32 + 60, heads, size, dtype=dtype)
        arguments = (states, states, states, None, None, None, None, offsets, seed, 2, 32, 40, size**-0.5, p)
    else:
        images, rows = 2, 4 if case.form == "folded" else 2
        query = torch.zeros(rows, 32, heads, size, dtype=dtype)
        key = torch.zeros(images, 257, heads, size, dtype=dtype)
        index = (None,) * 3
        if case.form == "folded":
            index = (torch.tensor([0, 0, 1, 1]), torch.arange(4), torch.tensor([0, 2, 4]))
        mask = torch.ones(images, 257, dtype=torch.bool) if case.form == "rows" else None
        arguments = (query, key, key, mask, *index, None, seed, rows, 32, 0, size**-0.5, p)
    output, log_sum = arguments[0], torch.zeros(1)
    if case.kernel == "forward":
        attention_forward(*arguments)
    else:
        attention_backward(output, *arguments[:3], output, log_sum, *arguments[3:])


def call_norm(case: Case) -> None:
    x = torch.zeros(64, case.size, dtype=TYPES[case.dtype])
    vector, row = torch.zeros(case.size, dtype=x.dtype), torch.zeros(64)
    seed = torch.zeros(1, dtype=torch.int64) if case.dropout else None
    p = 0.1 if case.dropout else 0.0
    if case.kernel == "forward":
        residual_norm_forward(x, x, vector, vector, vector, seed, 1e-12, p, x.dtype)
    else:
        residual_norm_backward(x, x, x, vector, vector, row, row, seed, p)


def record(case: Case) -> tuple[Any, dict[str, Any]]:
    """The kernel of a case, and by name what it would be launched with on a GPU."""
    module, name = attention_kernels, f"attention_{case.kernel}_kernel"
    if case.form == "norm":
        module, name = residual_norm_kernels, f"residual_norm_{case.kernel}_kernel"
    recorder, is_hopper = _Recorder(getattr(module, name)), attention_op._is_hopper
    setattr(module, name, recorder)
    attention_op._is_hopper = lambda device: case.arch == 90
    try:
        (call_norm if case.form == "norm" else call_attention)(case)
    finally:
        setattr(module, name, recorder.kernel)
        attention_op._is_hopper = is_hopper
    args, options = recorder.launch
    return recorder.kernel, {**dict(zip(recorder.kernel.arg_names, args)), **options, "WIDEN": False}


def compile_case(case: Case) -> dict[str, int]:
    """Resources of a case; see [`resources`]."""
    kernel, values = record(case)
    launch = {name: values.pop(name) for name in ("num_warps", "num_stages", "enable_fp_fusion") if name in values}
    signature, constants, attributes = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        value, parameter = values[name], kernel.params[place]
        is_one = type(value) is int and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or is_one:
            signature[name], constants[(place,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + TRITON_TYPES[value.dtype]
            attributes[(place,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", case.arch, 32), options=launch)
    return {**resources(compiled.asm["cubin"]), "shared": compiled.metadata.shared}


def _run(tool: str, *options: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    return subprocess.run([str(path), *options], capture_output=True, text=True, check=True).stdout


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread, bytes of stack a thread, and how many instructions move registers to memory and back, or are
    matrix products of warp groups (HGMMA) and of warps (HMMA)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _run("cuobjdump", "--dump-resource-usage", str(path))
        listing = _run("nvdisasm", str(path))
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
    if found is None or "EXIT" not in listing:
        raise RuntimeError(f"cuobjdump or nvdisasm printed nothing that is known:\n{usage}\n{listing[:2000]}")
    counts = {name: len(re.findall(rf"\b{name}\b", listing)) for name in ("HGMMA", "HMMA", "LDL", "STL")}
    return {
        "registers": int(found[1]),
        "stack": int(found[2]),
        "spills": counts["LDL"] + counts["STL"],
        "hgmma": counts["HGMMA"],
        "hmma": counts["HMMA"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help="names of cases; all of them without")
    options = parser.parse_args()
    by_name = {case.name: case for case in CASES}
    broken = []
    for name in options.cases or by_name:
        found = compile_case(by_name[name])
        broken += broken_limits(by_name[name], found)
        print(f"{name:40}", *(f"{key} {value:5}" for key, value in found.items()), flush=True)
    if broken:
        sys.exit("\n".join(broken))


if __name__ == "__main__":
    main()
