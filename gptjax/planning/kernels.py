"""The kernels of a program for a GPU: the bytes that each reads and writes, and its FLOPs.

Every fusion, library call or lone operation of an optimised program is one kernel. It reads each
element of memory at most once, and only those that its results need: a fused slice or gather is
charged with what it takes, not with the array that it takes from. It writes its result, or the part
of an array that it changes in place. Caches and launches are left out, so these are bounds from the
compiled program and no measurements.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from gptjax.planning.instructions import Instruction
from gptjax.planning.module import Module, read_module
from gptjax.planning.reads import bytes_read, bytes_written

NARROW, FLOAT32, TF32 = "bfloat16 products", "float32 products", "tf32 products"
ATTENTION, COLLECTIVES, REST = "flash attention", "collectives", "everything else"
CLASSES = (NARROW, FLOAT32, TF32, ATTENTION, COLLECTIVES, REST)
TYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "f64": "float64"}

NO_KERNEL = {
    *["parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "conditional"],
    *["call", "after-all", "partition-id", "replica-id", "add-dependency", "opt-barrier"],
    *["optimization-barrier", "async-update", "async-done", "copy-done", "fusion-done"],
}
NO_CALL = {"AllocateBuffer", "annotate_device_placement", "PinToDevice", "UnpinToDevice"}
MOVES = {
    *["parameter", "constant", "bitcast", "tuple", "get-tuple-element", "reshape", "copy"],
    *["transpose", "slice", "dynamic-slice", "dynamic-update-slice", "concatenate"],
}
CONTRACTED = re.compile(r'lhs_contracting_dim(?:ensions|s)"?[:=]\s*[\[{]((?:"?\d+"?,?)*)')
TARGET = r'custom_call_target="([^"]+)"'
FORWARD, BACKWARD = 2, 5  # products of queries, keys and values in cuDNN's flash attention
OWN_BACKWARD = 7  # of `gptjax.model.flash_kernels`, which forms the scores and two more twice
WRAPPER = "/pallas_call"  # what jax appends to the name of a kernel
BACKWARDS = re.compile(r"backward|bwd|dkv|_dq", re.IGNORECASE)
FLASH = re.compile(r"flash|attention|fmha|mha", re.IGNORECASE)


@dataclass(frozen=True)
class Kernel:
    """One kernel of a compiled program."""

    name: str
    kind: str
    """One of `CLASSES`."""
    dtype: str
    """The type of a product's factors, as jax names it; the result's type for other kernels."""
    read: int
    """Bytes read in one run."""
    written: int
    """Bytes written in one run."""
    flops: float
    """Floating-point operations of products in one run, 2 for a multiplication with its sum."""
    times: float
    """Runs in one call of the program."""
    shape: str
    source: str
    """The operation of the traced function that it comes from."""
    computation: str
    only_moves: bool
    """Whether it copies or reorders and computes nothing."""
    is_backward: bool = False
    """Whether it is the backward pass of flash attention."""

    @property
    def bytes(self) -> int:
        """Bytes read and written in one run."""
        return self.read + self.written

    @property
    def operation(self) -> str:
        """The last part of its source, such as the name of a kernel of flash attention."""
        return _operation(self.source)


def kernels(hlo: str | Module) -> list[Kernel]:
    """Every kernel of an optimised program, in the order of its text."""
    module = read_module(hlo) if isinstance(hlo, str) else hlo
    return [
        kernel
        for name, times in module.runs().items()
        for kernel in _kernels_of(module, name, times)
    ]


def _kernels_of(module: Module, name: str, times: float) -> Iterator[Kernel]:
    instructions = module.computations.get(name, [])
    known = {item.name: item for item in instructions}
    for item in instructions:
        if item.opcode in NO_KERNEL or item.opcode.endswith("-done"):
            continue
        if item.attribute(TARGET) in NO_CALL:
            continue
        operands = [known[operand] for operand in item.operands if operand in known]
        body = _body(module, item)
        inside = _all_inside(module, body) if body else [item]
        products = _products(inside, body, operands)
        flash = [x for x in inside if _is_flash(x)]
        read, written = _traffic(item, operands, body, module)
        yield Kernel(
            name=item.name,
            kind=_kind(item, products, flash),
            dtype=_dtype(item, products, operands if flash else []),
            read=read,
            written=written,
            flops=sum(p.flops for p in products) + sum(_flash_flops(x) for x in flash),
            times=times,
            shape=re.sub(r"\{[^}]*\}", "", item.shape),
            source=item.source,
            computation=name,
            only_moves=_only_moves(item, body, inside),
            is_backward=any(_is_backward(x) for x in flash),
        )


@dataclass(frozen=True)
class _Product:
    flops: float
    factors: tuple[str, ...]
    is_tf32: bool

    @property
    def dtype(self) -> str:
        widest = "f32" if "f32" in self.factors or "f64" in self.factors else self.factors[0]
        return "tf32" if self.is_tf32 and widest == "f32" else TYPES.get(widest, widest)


def _body(module: Module, item: Instruction) -> list[Instruction]:
    """The instructions of a fusion, or of a library call that XLA wraps into one."""
    callee = item.called("calls") if item.opcode in ("fusion", "fusion-start") else None
    return module.computations.get(callee, []) if callee else []


def _all_inside(module: Module, body: list[Instruction]) -> list[Instruction]:
    """The instructions of a fusion and of the fusions within it."""
    nested = [_body(module, item) for item in body]
    return [*body, *(inner for inside in nested if inside for inner in _all_inside(module, inside))]


def _products(
    inside: list[Instruction], body: list[Instruction], operands: list[Instruction]
) -> list[_Product]:
    known = {item.name: item for item in (inside if body else [*operands, *inside])}
    found = []
    for item in inside:
        is_product = item.opcode == "dot" or "cublas" in (item.attribute(TARGET) or "")
        factors = [known[name] for name in item.operands[:2] if name in known]
        if is_product and len(factors) == 2 and (contracted := CONTRACTED.search(item.line)):
            dims = factors[0].arrays[0].dims
            depth = math.prod(dims[int(d)] for d in re.findall(r"\d+", contracted[1]))
            types = tuple(factor.arrays[0].dtype for factor in factors)
            flops = 2.0 * item.arrays[0].elements * depth
            found.append(_Product(flops, types, "tf32" in item.line.lower()))
    return found


def _is_flash(item: Instruction) -> bool:
    """Whether it calls a kernel of flash attention: cuDNN's, or one written for this purpose."""
    target = item.attribute(TARGET) or ""
    is_written = any(word in target for word in ("triton", "mosaic"))
    return "fmha" in target or (is_written and bool(FLASH.search(f"{item.name} {item.source}")))


def _operation(source: str) -> str:
    return source.removesuffix(WRAPPER).rpartition("/")[2]


def _is_backward(item: Instruction) -> bool:
    """Whether a kernel of flash attention is a backward one; recomputed ones are not."""
    words = f"{item.attribute(TARGET)} {item.name} {_operation(item.source)}"
    return bool(BACKWARDS.search(words))


def _flash_flops(item: Instruction) -> float:
    """Products of one kernel; half of them if it is causal.

    cuDNN's says so in its backend's config. Our own always is; inside documents it leaves out more,
    but how much depends on the batch.
    """
    if "fmha" in (item.attribute(TARGET) or ""):
        pairs = item.attribute(r'"intermediate_tensor_shape":.*?"dimensions": ?\[([^\]]*)\]')
        rows, heads, queries, keys = (int(n) for n in re.findall(r"\d+", pairs or ""))
        width = item.arrays[0].elements / (rows * heads * queries)
        share, backward = (0.5 if "CAUSAL" in item.line else 1.0), BACKWARD
    else:
        rows, queries, heads, width = item.arrays[0].dims
        keys, share, backward = queries, 0.5, OWN_BACKWARD
    products = backward if _is_backward(item) else FORWARD
    return 2.0 * products * rows * heads * queries * keys * width * share


def _kind(item: Instruction, products: list[_Product], flash: list[Instruction]) -> str:
    if item.collective or item.opcode == "async-start":
        return COLLECTIVES
    if flash:
        return ATTENTION
    types = {product.dtype for product in products}
    if not types:
        return REST
    wide = types - {"bfloat16", "float16"}
    return NARROW if not wide else (TF32 if wide == {"tf32"} else FLOAT32)


def _dtype(item: Instruction, products: list[_Product], queries: list[Instruction]) -> str:
    if products:
        types = {product.dtype for product in products}
        return next((t for t in ("float32", "tf32") if t in types), products[0].dtype)
    arrays = queries[0].arrays if queries else item.arrays
    return TYPES.get(arrays[0].dtype, arrays[0].dtype) if arrays else ""


def _traffic(
    item: Instruction, operands: list[Instruction], body: list[Instruction], module: Module
) -> tuple[int, int]:
    """Bytes read and written; scratch space of a library, bytes without a type, is left out."""
    if body:
        nested = {x.name: _body(module, x) for x in body}
        return bytes_read(body, nested), bytes_written(body)
    scratch = ("s8", "u8") if item.opcode == "custom-call" else ()
    if item.opcode == "dynamic-update-slice":
        return operands[1].bytes, operands[1].bytes
    if item.opcode in ("dynamic-slice", "slice", "gather"):
        return item.bytes, item.bytes
    written = sum(array.bytes for array in item.arrays if array.dtype not in scratch)
    if item.opcode.endswith("-start"):  # its result has its operands as well
        written = item.arrays[-1].bytes if len(item.arrays) > 1 else written
    return sum(operand.bytes for operand in operands), written


def _only_moves(item: Instruction, body: list[Instruction], inside: list[Instruction]) -> bool:
    if item.opcode in ("copy", "transpose", "copy-start"):
        return True
    reads_arrays = any(x.opcode == "parameter" and x.elements > 1 for x in body)
    return reads_arrays and all(x.opcode in MOVES for x in inside)
