"""Speed of the network alone: its inference forms against the plain modules, one core, streams fed in 100 ms chunks.

    OMP_NUM_THREADS=1 python benchmarks/network.py [--model en] [--rows 1 16 50] [--rounds 20]

Prints, for each number of streams in a step, milliseconds per chunk, the share of real time (of one stream), and the
ratio to the plain network; then the largest differences of log-probabilities from one pass to 20 ms chunks, 100 ms
chunks and a stream in company; then one layer's product with the inputs by several kernels. Times are CPU time of the
thread, so that other processes steal none of it (they still empty its caches: keep the machine quiet); medians over
rounds in which the forms take turns, each for ten chunks.
"""

import argparse
import statistics
import time
import warnings
from pathlib import Path

import torch

CLIPS = Path(__file__).resolve().parent.parent / "tests" / "clips"
CHUNK = 5  # frames of 20 ms
SPAN = 10  # chunks of a form's turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="en")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 50])
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()

    from asr.checkpoint import find_model
    from asr.inference import PRECISIONS, inference_form

    torch.set_num_threads(1)
    folder = find_model(args.model)
    plain = folder.load_network()
    forms = {precision: inference_form(plain, precision) for precision in PRECISIONS}
    frames = speech(folder)
    for count in args.rows:
        times = {name: [] for name in forms}
        for _ in range(args.rounds):
            for name, form in forms.items():
                times[name].append(turn(form, folder.config.head, frames, count))
        for name, seconds in times.items():
            middle, ratio = statistics.median(seconds), statistics.median(ratios(seconds, times["fp32"]))
            share = middle / count / (CHUNK * 0.02)
            print(f"{count:3} streams, {name}: {1000 * middle:7.3f} ms per chunk, {share:.4f} of real time a stream, "
                  f"ratio {ratio:.2f}", flush=True)  # fmt: skip
    for name, form in forms.items():
        print(f"{name}: {differences(form, plain, folder.config.head, frames)}")
    for count in args.rows:
        print(f"{3 * count:3} rows times W_ih, us: {products(plain, 3 * count)}", flush=True)


def speech(folder):
    """(frames, mels) of the clips of the tests."""
    from asr.audio import load_audio
    from asr.features import LogMel

    audio = torch.cat([torch.from_numpy(load_audio(file)) for file in sorted(CLIPS.glob("*.wav"))])
    return LogMel(folder.config.features)(audio[None])[0]


def turn(form, head, frames, count):
    """Seconds per chunk of ``count`` streams in one step, stacking and splitting their states included."""
    from asr import batching

    states = [form.begin() for _ in range(count)]
    seconds = 0.0
    for i in range(-4, SPAN):  # four chunks to fill the look-ahead
        chunk = frames[(i + 4) * CHUNK : (i + 5) * CHUNK]
        began = time.thread_time()
        advanced = batching.advance(form, [(chunk, state) for state in states], head)
        if i >= 0:
            seconds += time.thread_time() - began
        states = [state for _, state in advanced]
    return seconds / SPAN


def ratios(ours, theirs):
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def differences(form, plain, head, frames):
    """Largest differences of log-probabilities."""
    frames = frames[:400]
    whole = stream(form, head, frames, len(frames))
    pairs = {
        "to fp32": stream(plain, head, frames, len(frames)),
        "20 ms chunks": stream(form, head, frames, 1),
        "100 ms chunks": stream(form, head, frames, CHUNK),
        "in company of 15": stream(form, head, frames, CHUNK, 15),
        "in company of 49": stream(form, head, frames, CHUNK, 49),
    }
    return ", ".join(f"{name} {(other - whole).abs().max().item():.1e}" for name, other in pairs.items())


def stream(form, head, frames, size, company=0):
    """Log-probabilities of a stream fed in chunks of ``size`` frames beside others."""
    from asr import batching

    states, out = [form.begin() for _ in range(1 + company)], []
    for i in range(0, len(frames), size):
        chunk = frames[i : i + size]
        advanced = batching.advance(form, [(chunk + 0.1 * n, state) for n, state in enumerate(states)], head)
        out.append(advanced[0][0])
        states = [state for _, state in advanced]
    return torch.cat([*out, batching.end(form, states[:1], head)[0]])


def products(plain, count):
    """Microseconds of one layer's product, weights of all layers in turn, by kernel."""
    from asr.inference import _IntegerProduct, _pack_integers
    from asr.int8 import quantise

    weights = [p for name, p in plain.named_parameters() if "weight_ih" in name]
    x = torch.randn(count, weights[0].shape[1]).tanh()
    kernels = {
        "fp32": (lambda w: w, torch.nn.functional.linear),
        "bf16": (torch.Tensor.bfloat16, lambda x, w: torch.nn.functional.linear(x.bfloat16(), w).float()),
        "fp16 weights": (torch.fbgemm_pack_gemm_matrix_fp16, half),
        "int8 weights, two parts of activations": (_IntegerProduct, lambda x, product: product.rows(x)),
        "int8 weights, 8-bit activations": (lambda w: _pack_integers(*quantise(w)), eight_bits),
        "int8 weights, bf16 activations": (scaled, lambda x, w: torch._weight_int8pack_mm(x.bfloat16(), *w).float()),
    }
    results = []
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, (pack, multiply) in kernels.items():
            try:
                packed, times = [pack(w) for w in weights], []
                for _ in range(30):
                    for w in packed:
                        began = time.thread_time()
                        multiply(x, w)
                        times.append(time.thread_time() - began)
                results.append(f"{name} {1e6 * statistics.median(times):.0f}")
            except (RuntimeError, AttributeError):
                results.append(f"{name} (not on this machine)")
    return ", ".join(results)


def half(x, packed):
    return torch.fbgemm_linear_fp16_weight_fp32_activation(x, packed, None)


def eight_bits(x, packed):
    """A scale per row, so that a stream does not depend on its company."""
    from asr.inference import _multiply_integers

    scale = torch.linalg.vector_norm(x, float("inf"), dim=1, keepdim=True)
    return _multiply_integers(x / scale, packed, 127).mul_(scale)


def scaled(weight):
    scale = weight.abs().amax(1) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale.bfloat16()


if __name__ == "__main__":
    main()
