"""Products of edges with their end nodes on dense layouts, without building an edge-sized copy of the nodes.

A dense layout's edges [..., e, C] are contiguous blocks [..., out, in, C], one per layer, so an end node is a broadcast
view. Autograd over slices and concatenations would copy and zero-fill edge-sized tensors several times; the functions
here write each block in place and have their gradients written out. They are the fast twins of the plain definitions in
`Layout` (graph.py), and a test holds them to those. Their backward is itself not differentiable: a second derivative
through a metanetwork needs the plain layout operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class BlockTable:
    """Per layer: the slice of its edges, the slices of its target and source nodes, and (out, in)."""

    rows: tuple[tuple[slice, slice, slice, tuple[int, int]], ...]

    def ends(self, target: Tensor, source: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Per layer the views [..., out, 1, C] and [..., 1, in, C]."""
        for _, above, below, _ in self.rows:
            yield target[..., above, :].unsqueeze(-2), source[..., below, :].unsqueeze(-3)

    def blocks(self, edges: Tensor) -> Iterator[Tensor]:
        """Per layer the view [..., out, in, C]."""
        for part, _, _, shape in self.rows:
            yield edges[..., part, :].unflatten(-2, shape)

    def nodes(self, nodes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Per layer the views of target and source nodes, [..., out, C] and [..., in, C]."""
        for _, above, below, _ in self.rows:
            yield nodes[..., above, :], nodes[..., below, :]


class Modulate(torch.autograd.Function):
    """edges[i, j] * target[i] * source[j]."""

    @staticmethod
    def forward(ctx: Any, edges: Tensor, target: Tensor, source: Tensor, table: BlockTable) -> Tensor:
        result = torch.empty_like(edges)
        parts = zip(table.blocks(result), table.blocks(edges), table.ends(target, source), strict=True)
        for out, block, (above, below) in parts:
            torch.mul(block, above, out=out).mul_(below)
        ctx.save_for_backward(edges, target, source)
        ctx.table = table
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (edges, target, source), table = gradients, ctx.saved_tensors, ctx.table
        of_edges, of_target, of_source = map(torch.empty_like, (edges, target, source))
        _zero_ends(table, of_target, of_source)
        parts = zip(
            table.blocks(of_edges),
            table.blocks(gradient),
            table.blocks(edges),
            table.ends(target, source),
            table.nodes(of_target),
            table.nodes(of_source),
            strict=True,
        )
        for out, g, block, (above, below), (sum_above, _), (_, sum_below) in parts:
            torch.mul(g, below, out=out)
            torch.sum(out * block, -2, out=sum_above)
            out.mul_(above)
            torch.sum((g * block).mul_(above), -3, out=sum_below)
        return of_edges, of_target, of_source, None


class AddEnds(torch.autograd.Function):
    """edges[i, j] + target[i] + source[j]."""

    @staticmethod
    def forward(ctx: Any, edges: Tensor, target: Tensor, source: Tensor, table: BlockTable) -> Tensor:
        result = torch.empty_like(edges)
        parts = zip(table.blocks(result), table.blocks(edges), table.ends(target, source), strict=True)
        for out, block, (above, below) in parts:
            torch.add(block, above, out=out).add_(below)
        ctx.like, ctx.table = (target.new_empty(0), target.shape, source.shape), table
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (like, target_shape, source_shape), table = gradients, ctx.like, ctx.table
        of_target, of_source = like.new_empty(target_shape), like.new_empty(source_shape)
        _zero_ends(table, of_target, of_source)
        parts = zip(table.blocks(gradient), table.nodes(of_target), table.nodes(of_source), strict=True)
        for g, (sum_above, _), (_, sum_below) in parts:
            torch.sum(g, -2, out=sum_above)
            torch.sum(g, -3, out=sum_below)
        return gradient, of_target, of_source, None


class CollectAtTarget(torch.autograd.Function):
    """sum_j edges[i, j] * source[j], at every target node; zero at the inputs."""

    @staticmethod
    def forward(ctx: Any, edges: Tensor, source: Tensor, table: BlockTable) -> Tensor:
        result = torch.empty_like(source)
        _zero_ends(table, result, None)
        parts = zip(table.blocks(edges), table.ends(source, source), table.nodes(result), strict=True)
        for block, (_, below), (out, _) in parts:
            torch.sum(block * below, -2, out=out)
        ctx.save_for_backward(edges, source)
        ctx.table = table
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (edges, source), table = gradients, ctx.saved_tensors, ctx.table
        of_edges, of_source = torch.empty_like(edges), torch.empty_like(source)
        _zero_ends(table, None, of_source)
        blocks = zip(table.blocks(of_edges), table.blocks(edges), strict=True)
        for (out, block), (above, below), (_, sum_below) in zip(
            blocks, table.ends(gradient, source), table.nodes(of_source), strict=True
        ):
            torch.mul(above, below, out=out)
            torch.sum(block * above, -3, out=sum_below)
        return of_edges, of_source, None


class CollectAtSource(torch.autograd.Function):
    """sum_i edges[i, j] * target[i], at every source node; zero at the outputs."""

    @staticmethod
    def forward(ctx: Any, edges: Tensor, target: Tensor, table: BlockTable) -> Tensor:
        result = torch.empty_like(target)
        _zero_ends(table, None, result)
        parts = zip(table.blocks(edges), table.ends(target, target), table.nodes(result), strict=True)
        for block, (above, _), (_, out) in parts:
            torch.sum(block * above, -3, out=out)
        ctx.save_for_backward(edges, target)
        ctx.table = table
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (edges, target), table = gradients, ctx.saved_tensors, ctx.table
        of_edges, of_target = torch.empty_like(edges), torch.empty_like(target)
        _zero_ends(table, of_target, None)
        blocks = zip(table.blocks(of_edges), table.blocks(edges), strict=True)
        for (out, block), (above, below), (sum_above, _) in zip(
            blocks, table.ends(target, gradient), table.nodes(of_target), strict=True
        ):
            torch.mul(above, below, out=out)
            torch.sum(block * below, -2, out=sum_above)
        return of_edges, of_target, None


class SumAtTarget(torch.autograd.Function):
    """sum_j edges[i, j], at every target node; zero at the inputs."""

    @staticmethod
    def forward(ctx: Any, edges: Tensor, nodes: int, table: BlockTable) -> Tensor:
        result = edges.new_empty(*edges.shape[:-2], nodes, edges.shape[-1])
        _zero_ends(table, result, None)
        for block, (out, _) in zip(table.blocks(edges), table.nodes(result), strict=True):
            torch.sum(block, -2, out=out)
        ctx.shape, ctx.table = edges.shape, table
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), table = gradients, ctx.table
        of_edges = gradient.new_empty(ctx.shape)
        for out, (above, _) in zip(table.blocks(of_edges), table.nodes(gradient), strict=True):
            out.copy_(above.unsqueeze(-2).expand_as(out))
        return of_edges, None, None


class SumAtSource(torch.autograd.Function):
    """sum_i edges[i, j], at every source node; zero at the outputs."""

    @staticmethod
    def forward(ctx: Any, edges: Tensor, nodes: int, table: BlockTable) -> Tensor:
        result = edges.new_empty(*edges.shape[:-2], nodes, edges.shape[-1])
        _zero_ends(table, None, result)
        for block, (_, out) in zip(table.blocks(edges), table.nodes(result), strict=True):
            torch.sum(block, -3, out=out)
        ctx.shape, ctx.table = edges.shape, table
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), table = gradients, ctx.table
        of_edges = gradient.new_empty(ctx.shape)
        for out, (_, below) in zip(table.blocks(of_edges), table.nodes(gradient), strict=True):
            out.copy_(below.unsqueeze(-3).expand_as(out))
        return of_edges, None, None


def _zero_ends(table: BlockTable, at_target: Tensor | None, at_source: Tensor | None) -> None:
    """Zero the nodes that no layer writes: the inputs as targets, the outputs as sources."""
    if at_target is not None:
        at_target[..., table.rows[0][2], :] = 0
    if at_source is not None:
        at_source[..., table.rows[-1][1], :] = 0
