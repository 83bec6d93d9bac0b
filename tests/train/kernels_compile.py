"""Compile every kernel for a card that need not be there: python kernels_compile.py CAPABILITY"""

import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from transcoder import kernels

SIZES = {"ENTRIES": 8, "BLOCK": 256}
CONSTANTS = {"WIDTH", "ENTRIES", "BLOCK", "ACC", "GROUPS"}


def compiled(kernel, types, constants):
    names = [*types, *constants]
    signature = {name: "constexpr" if name in CONSTANTS else types[name] for name in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    return len(triton.compile(source, target=target).asm["cubin"]) > 0


def main():
    ints = dict.fromkeys(("index", "offsets", "bag", "feature"), "*i32")
    for table, kept in (("fp32", "fp32"), ("bf16", "fp32"), ("fp64", "fp64")):
        sizes = {**SIZES, "ACC": getattr(tl, {"fp32": "float32", "fp64": "float64"}[kept])}
        floats = {"out": f"*{kept}", "table": f"*{table}", "weight": f"*{table}", "grad_sums": f"*{table}"}
        given = {**floats, **ints, "width": "i32", "active": "i32", "blocks": "i32"}
        sums = ("out", "table", "index", "weight", "offsets", "width")
        assert compiled(kernels._sums_kernel, {name: given[name] for name in sums}, sizes)
        dots = ("out", "grad_sums", "table", "bag", "feature", "active")
        assert compiled(kernels._dots_kernel, {name: given[name] for name in dots}, {"WIDTH": 768, **sizes})
        grad_sums = dict.fromkeys(("sums", "left", "weight", "squares", "residual"), f"*{kept}")
        types = {**grad_sums, "width": "i32", "blocks": "i32"}
        assert compiled(kernels._grad_sums_kernel, types, {"GROUPS": 4, "BLOCK": 256})
    print("compiled")


main()
