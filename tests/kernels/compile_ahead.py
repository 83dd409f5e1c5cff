"""Compiles the kernels for GPUs that are not there, and reads registers, spills and matrix instructions off the result.

    python tests/kernels/compile_ahead.py                 # every case, as a table
    python tests/kernels/compile_ahead.py --json CASE...  # some, for the tests

The operators themselves are called, with a recorder in the place of the kernels, so that what is compiled is what would be
launched: the same constants, block sizes, and properties of arguments that Triton specialises on. It must run in a
process of its own where TRITON_INTERPRET is not set: an interpreted kernel cannot be compiled.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
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

from instructblip_hf.kernels import attention_kernels
from instructblip_hf.kernels.attention_op import attention_backward, attention_forward


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
    """One kernel at one shape: ``form`` is ``rows``, ``folded`` or ``packed``."""

    kernel: str
    form: str
    dtype: str
    head_size: int
    dropout: bool
    arch: int

    @property
    def name(self) -> str:
        dropout = "dropout" if self.dropout else "plain"
        return f"{self.kernel}-{self.form}-{self.dtype}-{self.head_size}-{dropout}-sm{self.arch}"


class _Recorder:
    """Stands in for a kernel and keeps what it is launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.launch = kernel, None

    def __getitem__(self, grid: Any) -> Any:
        def record(*args: Any, **options: Any) -> None:
            self.launch = (args, options)

        return record


def attention_arguments(case: Case) -> tuple[Any, ...]:
    dtype, heads, size = TYPES[case.dtype], 12, case.head_size
    seed = torch.zeros(1, dtype=torch.int64) if case.dropout else None
    p = 0.1 if case.dropout else 0.0
    if case.form == "packed":
        offsets = torch.tensor([0, 20, 60], dtype=torch.int32)
        states = torch.zeros(2 * 32 + 60, heads, size, dtype=dtype)
        return (states, states, states, None, None, None, None, offsets, seed, 2, 32, 40, size**-0.5, p)
    images, rows = 2, 4 if case.form == "folded" else 2
    query = torch.zeros(rows, 32, heads, size, dtype=dtype)
    key = torch.zeros(images, 257, heads, size, dtype=dtype)
    index = (None,) * 3
    if case.form == "folded":
        index = (torch.tensor([0, 0, 1, 1]), torch.arange(4), torch.tensor([0, 2, 4]))
    return (query, key, key, None, *index, None, seed, rows, 32, 0, size**-0.5, p)


def record(case: Case) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The kernel of a case and what it would be launched with."""
    name = f"attention_{case.kernel}_kernel"
    recorder = _Recorder(getattr(attention_kernels, name))
    setattr(attention_kernels, name, recorder)
    try:
        arguments = attention_arguments(case)
        if case.kernel == "forward":
            attention_forward(*arguments)
        else:
            query, _, _, _, _, _, _, packed, _, rows, queries = arguments[:11]
            tokens = query.shape[0] if packed is not None else rows * queries
            attention_backward(query, *arguments[:3], query, torch.zeros(query.shape[-2], tokens), *arguments[3:])
    finally:
        setattr(attention_kernels, name, recorder.kernel)
    args, options = recorder.launch
    return recorder.kernel, args, {**options, "WIDEN": False}


def compile_case(case: Case) -> dict[str, int]:
    """Registers, bytes spilled and matrix instructions of a case."""
    kernel, args, options = record(case)
    launch = {name: options.pop(name) for name in ("num_warps", "num_stages", "enable_fp_fusion")}
    values = {**dict(zip(kernel.arg_names, args)), **options}
    signature, constants, attributes = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        value = values[name]
        plain = kernel.params[place].do_not_specialize
        if (
            kernel.params[place].is_constexpr
            or value is None
            or (not isinstance(value, (torch.Tensor, float)) and value == 1 and not plain)
        ):
            signature[name], constants[(place,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + TRITON_TYPES[value.dtype]
            attributes[(place,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not plain:
                attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", case.arch, 32), options=launch)
    return {**resources(compiled.asm["cubin"]), "shared": compiled.metadata.shared}


def _tool(name: str) -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _run(tool: str, *options: str) -> str:
    return subprocess.run([_tool(tool), *options], capture_output=True, text=True, check=True).stdout


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread, bytes of stack a thread, shared bytes a program, and instructions: those that move registers
    to memory and back, and matrix products of warp groups and of warps."""
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


CASES = [
    Case(kernel, form, dtype, head_size, dropout, arch)
    for kernel in ("forward", "backward")
    for form in ("rows", "folded", "packed")
    for dtype in ("bf16", "fp32")
    for head_size in (64, 128)
    for dropout in (False, True)
    for arch in (80, 90)
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", help="names of cases; all of them without")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    options = parser.parse_args()
    chosen = [case for case in CASES if not options.cases or case.name in options.cases]
    results = {}
    for case in chosen:
        results[case.name] = compile_case(case)
        if not options.json:
            print(case.name, results[case.name], flush=True)
    if options.json:
        json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
