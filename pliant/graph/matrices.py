"""The rules of linear algebra: products of other shapes than a layer's, diagonals, distances, decompositions."""

from dataclasses import replace

from pliant.graph.labels import Field, along, vectors
from pliant.graph.products import add_bias, contract, matmul_of
from pliant.graph.rules import Call, Fields, Result, axis_of, concatenate, drop, merge, rule, unknown_result, without


@rule("outer", "ger", "addr")
def outer(call: Call) -> Result:
    """`a[n] b[m]`, added to a matrix by `addr`."""
    first, second = call.tensors[-2:]
    fields = contract(call, [(first, ["n"]), (second, ["m"])], ["n", "m"], per_output=True)
    return add_bias(call, fields, call.args[0], call.out) if call.node.packet == "aten.addr" else fields


@rule("inner")
def inner(call: Call) -> Result:
    """`a[..., k] b[..., k]`: all other axes in a row."""
    a, b = call.tensors
    if not a.shape or not b.shape:
        return unknown_result(call)
    rows, columns = [f"a{i}" for i in range(len(a.shape) - 1)], [f"b{i}" for i in range(len(b.shape) - 1)]
    return contract(call, [(a, [*rows, "k"]), (b, [*columns, "k"])], [*rows, *columns])


@rule("tensordot")
def tensordot(call: Call) -> Result:
    """Pairs of axes are summed over, the others lie in a row."""
    a, b = call.tensors
    first = {axis_of(d, len(a.shape)): f"k{i}" for i, d in enumerate(call.arg("dims_self"))}
    second = {axis_of(d, len(b.shape)): f"k{i}" for i, d in enumerate(call.arg("dims_other"))}
    left = [first.get(i, f"a{i}") for i in range(len(a.shape))]
    right = [second.get(i, f"b{i}") for i in range(len(b.shape))]
    return contract(call, [(a, left), (b, right)], [letter for letter in left + right if letter[0] != "k"])


@rule("cdist", "_cdist_forward", "_euclidean_dist")
def distances(call: Call) -> Result:
    """Between rows of `a[..., p, m]` and of `b[..., r, m]`: the coordinates are summed over."""
    a, b = call.tensors[:2]
    flipped = replace(b, value=b.value.mT, fields=tuple(Field(f.labels.mT, f.soft) for f in b.fields))
    return matmul_of(call, a, flipped, free=True)


@rule("cosine_similarity", "pairwise_distance", "linalg_vecdot")
def pairwise(call: Call) -> Result:
    """Entry by entry, then one number for each vector along an axis."""
    dims = max(len(t.shape) for t in call.tensors[:2])
    dim = axis_of(call.arg("dim", 1 if call.node.packet == "aten.cosine_similarity" else -1), dims)
    call.mix("other", *((t, dim) for t in call.tensors[:2] if len(t.shape) == dims))
    fields = merge(call, [(t.fields, t.shape) for t in call.tensors[:2]], dims)
    return drop(call, fields, [dim], call.arg("keepdim", False))


@rule("linalg_cross", "cross")
def cross(call: Call) -> Result:
    """The axis of three is fixed."""
    dim, dims = call.arg("dim", -1 if call.node.packet == "aten.linalg_cross" else None), call.out.dim()
    fields = merge(call, [(t.fields, t.shape) for t in call.tensors], dims)
    return without(call, fields, range(dims) if dim is None else [axis_of(dim, dims)])


@rule("kron")
def kron(call: Call) -> Result:
    """Each entry of the first times the whole second; along an axis the larger one bends and the other is fixed."""
    (a, b), dims = call.tensors, call.out.dim()
    if len(a.shape) != len(b.shape):
        return unknown_result(call)
    first, second = (vectors(call.labels.settle(t.fields)) for t in (a, b))
    fields = []
    for axis, (n, m) in enumerate(zip(a.shape, b.shape, strict=True)):
        if axis in first and (axis not in second or n >= m):
            call.labels.fix([second[axis]] if axis in second else [])
            fields.append(Field(along(first[axis].repeat_interleave(m), axis, dims)))
        elif axis in second:
            call.labels.fix([first[axis]] if axis in first else [])
            fields.append(Field(along(second[axis].repeat(n), axis, dims)))
    return tuple(fields)


# -- diagonals -------------------------------------------------------------------------------------------------------


@rule("diagonal", "diagonal_copy", "linalg_diagonal", "diag", "diag_embed", "trace")
def diagonal(call: Call) -> Result:
    """Two axes as one, which is the last, or the last as two."""
    packet, source, dims = call.node.packet, call.tensors[0], len(call.tensors[0].shape)
    last = packet in ("aten.diag_embed", "aten.linalg_diagonal")
    offset = call.arg("offset", call.arg("diagonal", 0))
    if packet == "aten.diag_embed" or (packet == "aten.diag" and dims == 1):
        pair = [axis_of(call.arg(f"dim{i}", i - 3), dims + 1) for i in (1, 2)]
        return _spread_diagonal(call, pair, offset)
    pair = [axis_of(call.arg(f"dim{i}", i - 3 if last else i - 1), dims) for i in (1, 2)]
    rest = without(call, source.fields, pair) if offset or source.shape[pair[0]] != source.shape[pair[1]] else None
    settled = vectors(call.labels.settle(source.fields if rest is None else rest))
    own = [settled.pop(axis) for axis in pair if axis in settled]
    others = [axis for axis in range(dims) if axis not in pair]
    fields = [Field(along(v, others.index(axis), dims - 1)) for axis, v in settled.items()]
    if len(own) < 2:
        call.labels.fix(own)
        return tuple(fields)
    call.labels.tie(own[0], own[1])
    return () if packet == "aten.trace" else (*fields, Field(along(own[0], dims - 2, dims - 1)))


def _spread_diagonal(call: Call, pair: list[int], offset: int) -> Fields:
    source, dims = call.tensors[0], call.out.dim()
    last = len(source.shape) - 1
    settled = vectors(call.labels.settle(without(call, source.fields, [last]) if offset else source.fields))
    others = [axis for axis in range(dims) if axis not in pair]
    fields = [Field(along(v, others[axis], dims)) for axis, v in settled.items() if axis != last]
    return (*fields, *(Field(along(settled[last], axis, dims)) for axis in pair if last in settled))


# -- whole matrices --------------------------------------------------------------------------------------------------


@rule("linalg_inv", "linalg_inv_ex", "linalg_pinv", "linalg_det", "linalg_slogdet", "logdet", "linalg_cholesky",
      "linalg_cholesky_ex", "linalg_qr", "linalg_svd", "linalg_svdvals", "linalg_eigh", "linalg_eigvalsh", "linalg_eig",
      "linalg_solve", "linalg_solve_triangular", "linalg_lstsq", "linalg_matrix_exp", "matrix_exp", "matrix_power",
      "linalg_matrix_power", "cholesky", "cholesky_solve", "linalg_householder_product", "linalg_lu",
      "linalg_ldl_factor", "linalg_matrix_rank", "inverse", "det", "slogdet", "svd", "qr", "pinverse")  # fmt: skip
def whole(call: Call) -> Result:
    """All entries of a matrix hang together: only a single operand's leading axes pass."""
    if len(call.tensors) > 1:
        return unknown_result(call)
    source = call.tensors[0]
    lead = len(source.shape) - 2
    rest = vectors(call.labels.settle(without(call, source.fields, [lead, lead + 1])))
    outs = call.out if isinstance(call.out, tuple | list) else [call.out]
    results: list[Fields] = [tuple(Field(along(v, axis, out.dim())) for axis, v in rest.items()) for out in outs]
    return results if isinstance(call.out, tuple | list) else results[0]


_STACKS = {"aten.hstack": 1, "aten.column_stack": 1, "aten.vstack": 0, "aten.row_stack": 0, "aten.dstack": 2}


@rule("hstack", "column_stack", "vstack", "row_stack", "dstack")
def stacked(call: Call) -> Result:
    """`cat` along a certain axis, for tensors that have it."""
    dim = _STACKS[call.node.packet]
    if any(len(t.shape) < max(2, dim + 1) for t in call.tensors):
        return unknown_result(call)
    node = replace(call.node, target="aten.cat.default", args=(call.node.args[0], dim), kwargs={})
    return concatenate(replace(call, node=node, args=[call.args[0], dim], kwargs={}))
