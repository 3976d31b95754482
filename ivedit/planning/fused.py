"""What torch.compile saves in a block: fewer tensors kept for the backward pass, fewer bytes moved, fewer kernels.

One block with its edit module is traced as the compiler traces it (AOTAutograd), and the compiler's own partitioner
decides what is kept and what is computed again; nothing is compiled or run. The traffic of the fused code is taken to
be what must be moved: whatever products write and the rest reads, and the other way round, once each.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from ivedit.planning.ledger import Ledger, gpu_kernels

__all__ = ["Fusion", "fusion_of"]

Block = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Fusion:
    """What is left of an eager block's by compiling it, as shares in (0, 1].

    Attributes:
        saved: Of the bytes kept for the backward pass.
        moved: Of the bytes that norms, activations and copies read and write.
        kernels: Of the number of kernels.
    """

    saved: float
    moved: float
    kernels: float


NONE = Fusion(1.0, 1.0, 1.0)


def fusion_of(block: Block, hidden: Tensor) -> Fusion:
    """Compare one block, eager and compiled.

    Args:
        block: hidden (B, S, C) -> (B, S, C), on fake tensors, with everything that it reads already made.
        hidden: Its input.
    """
    leaf = hidden.detach().requires_grad_(True)
    eager = Ledger()
    with eager:
        with eager.during("forward"):
            out = block(leaf)
        kept = sum(a.size for a in eager.allocations if a.died is None) - out.numel() * out.element_size()
        out.sum().backward()
    del out
    others = [o for o in eager.operations if not o.flops]
    forward, backward = _traced(block, leaf)
    saved = _saved(forward)
    moved, kernels = (sum(values) for values in zip(_traffic(forward), _traffic(backward), strict=True))
    products = len(eager.operations) - len(others)
    return Fusion(
        min(1.0, saved / max(kept, 1)),
        min(1.0, moved / max(1, sum(o.moved for o in others))),
        min(1.0, (products + kernels) / len(eager.operations)),
    )


class _Reads(TorchFunctionMode):
    """Collects the tensors that a function reads without having made them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, Tensor] = {}
        self._made: dict[int, Tensor] = {}  # held, so that an identity is not given twice

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs or {})):
            if isinstance(value, Tensor) and id(value) not in self._made:
                self.found[id(value)] = value
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and id(value) not in self.found:
                self._made[id(value)] = value
        return out


class _Exchanged(TorchFunctionMode):
    """Puts other tensors in the place of known ones."""

    def __init__(self, into: dict[int, Tensor]) -> None:
        super().__init__()
        self.into = into

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def other(value: Any) -> Any:
            return self.into.get(id(value), value) if isinstance(value, Tensor) else value

        args, kwargs = tree_map(other, (args, kwargs or {}))
        return func(*args, **kwargs)


def _traced(block: Block, leaf: Tensor) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Forward and backward graph as the compiler's partitioner leaves them."""
    with gpu_kernels(norms=False), _Reads() as reads:
        block(leaf)
    reads.found.pop(id(leaf), None)
    constants = list(reads.found.values())

    def lifted(hidden: Tensor, *given: Tensor) -> Tensor:
        places = [id(leaf), *(id(t) for t in constants)]
        with _Exchanged(dict(zip(places, (hidden, *given), strict=True))):
            return block(leaf)

    with gpu_kernels(norms=False):
        return _graphs(lifted, leaf, constants)


def _graphs(function: Any, leaf: Tensor, constants: list[Tensor]) -> tuple[fx.GraphModule, fx.GraphModule]:
    from torch._functorch.aot_autograd import aot_function, make_boxed_func
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    graphs: dict[str, fx.GraphModule] = {}

    def keep(name: str) -> Callable[..., Any]:
        def compiler(graph: fx.GraphModule, _: Any) -> Any:
            graphs[name] = graph
            return make_boxed_func(graph)

        return compiler

    traced = aot_function(
        function,
        keep("forward"),
        keep("backward"),
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    traced(leaf, *constants).sum().backward()
    return graphs["forward"], graphs["backward"]


def _values(node: fx.Node) -> list[Tensor]:
    return [t for t in tree_leaves(node.meta.get("val")) if isinstance(t, Tensor)]


def _size(node: fx.Node) -> int:
    return sum(t.numel() * t.element_size() for t in _values(node))


def _is_view(node: fx.Node) -> bool:
    return bool(getattr(node.target, "is_view", False)) or node.target in (
        torch.ops.aten._unsafe_view.default, torch.ops.aten.alias.default, torch.ops.aten.reshape.default,
    )  # fmt: skip


def _root(node: fx.Node) -> fx.Node:
    """The node whose memory this one looks at."""
    while node.op == "call_function" and _is_view(node):
        node = node.all_input_nodes[0]
    return node


def _is_product(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return _is_product(node.all_input_nodes[0])
    return getattr(node.target, "overloadpacket", None) in flop_registry


def _saved(forward: fx.GraphModule) -> int:
    """Bytes that the forward graph hands to the backward graph, the block's inputs and its output aside."""
    (output,) = (node for node in forward.graph.nodes if node.op == "output")
    result, *saved = output.args[0]
    roots = {_root(node) for node in saved if isinstance(node, fx.Node)} - {_root(result)}
    return sum(_size(node) for node in roots if node.op != "placeholder")


def _traffic(graph: fx.GraphModule) -> tuple[int, int]:
    """Bytes that the code between products reads and writes when all of it is fused, and about how many kernels."""
    read: set[fx.Node] = set()
    written: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op == "output":
            for value in tree_leaves(node.args[0]):
                if isinstance(value, fx.Node) and _fusible(_root(value)):
                    written.add(_root(value))
        elif node.op == "call_function" and not _is_view(node):
            for value in node.all_input_nodes:
                root = _root(value)
                if _fusible(node) and not _fusible(root):
                    read.add(root)
                elif not _fusible(node) and node.target is not operator.getitem and _fusible(root):
                    written.add(root)
    return sum(map(_size, read)) + sum(map(_size, written)), len(written)


def _fusible(node: fx.Node) -> bool:
    return node.op == "call_function" and not _is_view(node) and not _is_product(node)
