"""Gradients of a deep network, layer by layer, with and without shortcut connections.

    python docs/gradient_flow.py --out gradient_flow.png

draws the picture of docs/attention.md and prints its ends. The network is that of Raschka (2024),
section 4.4: in each layer a matrix, a bias and a GELU, with the mean square of the output as the
loss. The book has 5 layers of width 3; 20 wider ones, all of one width, show more.

Letters: D width, N layers.
"""

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import Array
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gptjax.model.ops import gelu

Layers = Sequence[tuple[Array, Array]]  # a kernel (in, out) and a bias each
WIDTH, DRAWS = 32, 16
SUFFIXES = (".png", ".svg", ".pdf")


def deep_network(layers: Layers, x_D: Array, shortcut: bool) -> Array:
    """The output; with shortcuts each layer adds to its input, unless the widths differ."""
    for kernel, bias in layers:
        y_D = gelu(x_D @ kernel + bias)
        x_D = x_D + y_D if shortcut and x_D.shape == y_D.shape else y_D
    return x_D


def mean_gradients(layers: Layers, x_D: Array, shortcut: bool) -> Array:
    """Mean of |gradient| over each layer's kernel, [N], where the loss is the output's square."""

    def loss(layers: Layers) -> Array:
        return jnp.mean(jnp.square(deep_network(layers, x_D, shortcut)))

    return jnp.stack([jnp.abs(kernel).mean() for kernel, _ in jax.grad(loss)(layers)])


def random_layers(key: Array, widths: Sequence[int]) -> Layers:
    """Kernels and biases uniform in +-1 / sqrt(in), the initial values of torch's `nn.Linear`."""
    layers = []
    for (fan_in, fan_out), of_layer in zip(
        pairwise(widths), jax.random.split(key, len(widths) - 1), strict=True
    ):
        shape, limit = (fan_in + 1, fan_out), fan_in**-0.5
        drawn = jax.random.uniform(of_layer, shape, minval=-limit, maxval=limit)
        layers.append((drawn[:-1], drawn[-1]))
    return layers


def gradient_flow(depth: int, shortcut: bool) -> Array:
    """`mean_gradients` of a random network and input, [N]; the median of several draws."""

    def drawn(key: Array) -> Array:
        of_layers, of_input = jax.random.split(key)
        layers = random_layers(of_layers, [WIDTH] * (depth + 1))
        return mean_gradients(layers, jax.random.normal(of_input, (WIDTH,)), shortcut)

    keys = jax.random.split(jax.random.key(0), DRAWS)
    return jnp.median(jax.jit(jax.vmap(drawn))(keys), axis=0)


def draw(depth: int) -> Figure:
    """A line for each of the two networks over the layers, on a logarithmic scale."""
    figure = Figure(figsize=(7, 3.6), dpi=100, layout="constrained")
    axes = figure.subplots()
    for shortcut, label, colour, above in ((True, "with", "C0", -18), (False, "without", "C3", 12)):
        gradient_N = gradient_flow(depth, shortcut)
        axes.semilogy(range(1, depth + 1), gradient_N, "o-", ms=4, color=colour)
        axes.annotate(
            f"{label} shortcuts",
            (depth / 2, float(gradient_N[depth // 2 - 1])),
            xytext=(0, above),
            textcoords="offset points",
            ha="right",
            color=colour,
        )
        first, last = gradient_N[0], gradient_N[-1]
        print(f"{label} shortcuts: {first:.1e} in the first layer, {last:.1e} in the last")
    axes.set(xlabel="layer, from input to output", ylabel="mean |gradient| of its weights")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, draw and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, help=f"picture to write: {', '.join(SUFFIXES)}"
    )
    parser.add_argument("--depth", type=int, default=20, help="layers of the network, 2 or more")
    args = parser.parse_args(argv)
    if args.depth < 2:
        parser.error(f"--depth is {args.depth}: expected 2 or more")
    if args.out.suffix not in SUFFIXES:
        parser.error(f"--out is {args.out}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if not args.out.parent.is_dir():
        parser.error(f"--out is {args.out}: there is no directory {args.out.parent}")
    draw(args.depth).savefig(args.out)


if __name__ == "__main__":
    main()
