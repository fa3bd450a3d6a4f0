"""Speed of an LSTM layer's pass in training on a CPU: torch's own and the compiled one, forward and backward.

    OMP_NUM_THREADS=1 python benchmarks/training.py [--hidden 448 560] [--rows 36] [--steps 100 200]

Prints milliseconds (the best of some rounds in which both take turns), their ratio, and how far each is from single
precision (outputs, gradients of inputs, of weights; root of the mean square, relative). Keep the machine quiet; with
jemalloc preloaded, as training does well to have it, memory costs less and both are faster.
"""

import argparse
import time

import torch
from torch import nn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, nargs="+", default=[448, 560])
    parser.add_argument("--rows", type=int, default=36)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 200])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| units | steps | torch, ms | compiled, ms | ratio | torch, off by | compiled, off by |")
    print("|---|---|---|---|---|---|---|")
    for hidden in args.hidden:
        for steps in args.steps:
            torch.manual_seed(0)
            layer, x = nn.LSTM(hidden, hidden, batch_first=True), torch.randn(args.rows, steps, hidden)
            toward = torch.randn(args.rows, steps, hidden)
            exact = turn(layer, x, toward, plain)[1]
            best, off = {}, {}
            for _ in range(args.rounds):
                for name, run in (("torch", halved), ("compiled", ours)):
                    seconds, found = turn(layer, x, toward, run)
                    best[name] = min(best.get(name, seconds), seconds)
                    apart = [(a - b).norm() / b.norm() for a, b in zip(found, exact, strict=True)]
                    off[name] = ", ".join(f"{one:.4f}" for one in apart)
            print(
                f"| {hidden} | {steps} | {1e3 * best['torch']:.0f} | {1e3 * best['compiled']:.0f} | "
                f"{best['torch'] / best['compiled']:.2f} | {off['torch']} | {off['compiled']} |",
                flush=True,
            )


def turn(layer, x, toward, run):
    """Seconds of a pass in both directions, and what came of it: outputs, gradients of inputs and of weights."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    began = time.perf_counter()
    y = run(layer, x)
    y.backward(toward.to(y.dtype))
    return time.perf_counter() - began, [y.detach().float(), x.grad, layer.weight_ih_l0.grad, layer.weight_hh_l0.grad]


def plain(layer, x):
    """Single precision."""
    return layer(x)[0]


def halved(layer, x):
    """As training has it by default."""
    with torch.autocast("cpu", torch.bfloat16):
        return layer(x)[0]


def ours(layer, x):
    """The compiled pass."""
    from asr.training.compiled_lstm import compiled_lstm

    zeros = torch.zeros(len(x), layer.hidden_size)
    return compiled_lstm(layer, x, zeros, zeros)[0]


if __name__ == "__main__":
    main()
