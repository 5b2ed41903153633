"""The bytes that a fusion moves: the elements of each operand that its results need.

The need is followed backwards from the results. An elementwise operation needs as many elements as
it gives, a reduction its whole input, a slice or a gather no more than it takes.
"""

from collections.abc import Iterable, Mapping

from gptjax.planning.instructions import Instruction, root_of

VIEWS = {"bitcast", "reshape"}
IN_PLACE = {"dynamic-update-slice", "scatter"}
TAKES = {"dynamic-slice", "slice", "gather"}
WHOLE = {
    "dot",
    "custom-call",
    "fusion",
    "sort",
    "convolution",
    "reduce-window",
    "select-and-scatter",
}


def bytes_read(body: list[Instruction], nested: Mapping[str, list[Instruction]]) -> int:
    """Bytes of all parameters that the results of a fusion need; `nested` are fusions within."""
    needs = _needs(body)
    total = 0
    for item in body:
        if item.opcode == "parameter" and item.elements:
            wanted = min(item.elements, needs.get(item.name, 0))
            total += round(item.bytes * wanted / item.elements)
    return total


def bytes_written(body: list[Instruction]) -> int:
    """Bytes of the results of a fusion; an update in place counts as what it changes."""
    known, root = {item.name: item for item in body}, root_of(body)

    def written(item: Instruction) -> int:
        if item.opcode in VIEWS:
            return written(known[item.operands[0]])
        if item.opcode == "tuple":
            return sum(written(known[name]) for name in item.operands)
        if item.opcode == "dynamic-update-slice":
            return known[item.operands[1]].bytes
        if item.opcode == "scatter":  # reads what it adds to, and writes the sum
            return 2 * known[item.operands[2]].bytes
        scratch = ("s8", "u8") if item.opcode in ("custom-call", "get-tuple-element") else ()
        return sum(array.bytes for array in item.arrays if array.dtype not in scratch)

    return written(root)


def _updated_in_place(body: list[Instruction]) -> set[str]:
    """The results that are an operand with a part changed."""
    known, found, waiting = {item.name: item for item in body}, set(), [root_of(body)]
    while waiting:
        item = waiting.pop()
        if item.opcode in IN_PLACE:
            found.add(item.name)
        elif item.opcode in VIEWS | {"tuple", "convert"}:
            waiting += [known[name] for name in item.operands if name in known]
    return found


def _needs(body: list[Instruction]) -> dict[str, float]:
    """Elements needed of every instruction, by name; definitions come before their uses."""
    known, in_place = {item.name: item for item in body}, _updated_in_place(body)
    root = root_of(body)
    needs: dict[str, float] = {root.name: root.elements}

    def want(names: Iterable[str], elements: float | None = None) -> None:
        for name in names:
            if (item := known.get(name)) is not None:
                wanted = item.elements if elements is None else elements
                needs[name] = min(item.elements, needs.get(name, 0) + wanted)

    for item in reversed(body):
        wanted, operands = needs.get(item.name, 0), item.operands
        if not wanted or not operands:
            continue
        if item.opcode in TAKES:
            want(operands[:1], wanted)
            want(operands[1:])
        elif item.opcode in IN_PLACE:
            want(operands[:1], 0 if item.name in in_place else wanted)
            want(operands[1:])
        elif item.opcode == "reduce":
            inputs = operands[: len(operands) // 2]
            share = wanted / item.elements if item.elements else 1
            want(inputs, share * known[inputs[0]].elements)
            want(operands[len(inputs) :])
        elif item.opcode in WHOLE or item.opcode == "tuple":
            want(operands)
        else:
            want(operands, wanted)
    return needs
