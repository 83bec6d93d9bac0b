"""Compile every kernel for cards that this machine need not have: python kernels_compile.py CAPABILITY,...

Prints JSON: for every capability, kernel, table type and width the registers and bytes of spilled registers a thread,
the widest global load of the table in bits, and whether its addresses are computed in 64 bits.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from train.arrays import update_kernel
from transcoder import kernels

INTS = {"index": "*i32", "offsets": "*i32", "bag": "*i32", "feature": "*i32", "owners": "*i32"}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compiled(kernel, types, constants, *, warps, capability):
    """The kernel as the launcher would compile it for aligned arrays, and for a width that is a multiple of 16."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    divisible = [name for name in names if name in ("width", "count") or signature[name].startswith("*")]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in divisible}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": warps})


def report(binary):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    ptx = binary.asm["ptx"]
    loads = [int(count or 1) * int(bits) for count, bits in re.findall(r"ld\.global(?:\.v(\d))?\.b(\d+)", ptx)]
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "spilled": int(re.search(r"STACK:(\d+)", usage)[1]) + int(re.search(r"LOCAL:(\d+)", usage)[1]),
        "widest_load_bits": max(loads),
        "wide_addresses": "mul.wide" in ptx or "mad.wide" in ptx or "mul.lo.s64" in ptx or "mad.lo.s64" in ptx,
    }


def compile_all(capability):
    found = {}
    for table, kept in (("fp32", "fp32"), ("bf16", "fp32"), ("fp16", "fp32"), ("fp64", "fp64")):
        floats = {
            "out": f"*{kept}",
            "pieces": f"*{kept}",
            "along": f"*{kept}",
            "unit": f"*{table}",
            "table": f"*{table}",
            "weight": f"*{table}",
        }
        types = {
            **floats,
            **INTS,
            "grad_sums": f"*{table}",
            **dict.fromkeys(("width", "bags", "windows", "active"), "i32"),
        }
        for width in (768, 2304):
            constants = {
                "WINDOW": kernels._WINDOW,
                "ACC": getattr(tl, {"fp32": "float32", "fp64": "float64"}[kept]),
                "WIDTH": width,
                "PROJECT": True,
            }
            sums = kernels.sums_tile(width)
            tiles = {"_sums_kernel": sums, "_dots_kernel": kernels.dots_tile(width), "_add_pieces_kernel": sums}
            for name, tile in tiles.items():
                kernel = getattr(kernels, name)
                of_tile = {"ENTRIES": tile.entries, "BLOCK": tile.block}
                given = {key: value for key, value in (constants | of_tile).items() if key in kernel.arg_names}
                warps = kernels._PIECE_WARPS if name == "_add_pieces_kernel" else tile.warps
                binary = compiled(kernel, types, given, warps=warps, capability=capability)
                found[f"{name} {table} {width}"] = report(binary)
        grad_sums = dict.fromkeys(("sums", "left", "weight", "scale", "squares", "residual"), f"*{kept}")
        types = {**grad_sums, "width": "i32", "blocks": "i32"}
        for scaled in (False, True):
            given = {"GROUPS": 4, "BLOCK": 256, "SCALED": scaled}
            binary = compiled(kernels._grad_sums_kernel, types, given, warps=4, capability=capability)
            found[f"_grad_sums_kernel {table}{', scaled' * scaled}"] = report(binary)
    for width in (768, 2304):
        arrays = dict.fromkeys(("weights", "gradient", "first", "second", "norm", "divisor", "numbers"), "*fp32")
        numbers = dict.fromkeys(("rest1", "rest2", "epsilon", "decay"), "fp32")
        types = {**arrays, **numbers, "rounded": "*bf16", "count": "i32", "width": "i32"}
        constants = {
            "DECOUPLED": False,
            "UNIT": True,
            "ROUNDED": True,
            "ROUNDED_DTYPE": tl.bfloat16,
            "BLOCK": 1 << (width - 1).bit_length(),
        }
        warps = constants["BLOCK"] // 512
        binary = compiled(update_kernel._update_kernel, types, constants, warps=warps, capability=capability)
        found[f"_update_kernel {width}"] = report(binary)
    return found


print(json.dumps({capability: compile_all(int(capability)) for capability in sys.argv[1].split(",")}))
