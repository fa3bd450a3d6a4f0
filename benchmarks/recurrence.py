"""Which recurrent cell, and what becomes of gradients over time: equal networks, trained alike for the same short time.

    OMP_NUM_THREADS=1 python benchmarks/recurrence.py --config benchmarks/recurrence.toml --out runs/recurrence \\
        --minutes 30 --data train.tsv --dev dev.tsv [--cells lstm gru] [--words models/en]
    python benchmarks/recurrence.py --merge --out runs/recurrence

Cells are `lstm`, `gru`, `rnn` and `bidirectional` (an LSTM without look-ahead layers: it hears all of the future
anyway). Their widths are chosen so that all have as many parameters as the LSTM of the configuration. Each is trained
for the given minutes of one thread on the same batches, with the same schedule in *time* (warm-up over a twentieth,
peak until 40 %, cosine decay to the end), because a step of one cell takes longer than that of another. Then it writes
`CELL.json` to the `--out` folder, and `--merge` (also done at the end of every run) makes the table and the plots of
all that are there. So cells can be run apart, one on each core.

Per cell: parameters; seconds of audio trained on per second; greedy error of every head on the dev tables; with
`--words`, a model folder with lexicon and language model, the word error rate of the lexicon search over the emissions
of the parallel pass; the time of a streaming step (100 ms of audio, one stream); and gradient norms.

Gradient norms: the loss is minus the log-probability of the best unit at a step T (one that is not blank, where there
is one). The network is unrolled step by step, so that the derivative by the hidden state of k steps before, through all
paths that lead from it to the loss, can be read off: |d loss_T / d h_{T-k}|, for an LSTM by h and c together. It is
averaged (geometric mean) over utterances, for the fresh and for the trained network. Pascanu et al. 2013, "On the
difficulty of training recurrent neural networks", is about these norms.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asr import batching
from asr.checkpoint import find_model
from asr.config import to_dict
from asr.features import FRAME_MS
from asr.model import STEP_MS, AcousticModel, LookAhead, ModelConfig, RecurrentLayer
from asr.recognizer import Recognizer
from asr.training import metrics
from asr.training.batches import Batch
from asr.training.evaluate import decode_whole, load_utterances
from asr.training.export import export
from asr.training.manifest import read_corpora
from asr.training.run import Prepared, evaluate, new_model, prepare
from asr.training.train import TrainConfig, Trainer, model_config, read_config

CELLS = ("lstm", "gru", "rnn", "bidirectional")
DISTANCES = (0, 1, 2, 4, 8, 16, 32, 64, 128)  # k, in steps of 40 ms
ROWS = 16  # utterances whose gradients are averaged
CHUNK_MS = 100
COLORS = {"lstm": "C0", "gru": "C1", "rnn": "C2", "bidirectional": "C3"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--data", nargs="+", default=[])
    parser.add_argument("--dev", nargs="+", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0, help="training time of each cell")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--words", help="model whose lexicon, language model and search settings make words")
    parser.add_argument("--limit", type=int, help="only the first N utterances of each dev table for words")
    parser.add_argument("--merge", action="store_true", help="only make table and plots of what is there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.merge:
        if not (args.config and args.data and args.dev):
            parser.error("--config, --data and --dev are needed unless --merge is given")
        args.out.mkdir(parents=True, exist_ok=True)
        settings = read_config(args.config)
        prepared = prepare(settings, args.data, args.dev, args.out)
        for cell in args.cells:
            result = measure(cell, settings, prepared, args)
            (args.out / f"{cell}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    merge(args.out)


def measure(cell: str, settings: TrainConfig, prepared: Prepared, args: argparse.Namespace) -> dict[str, Any]:
    """Train one cell and measure it."""
    heads = {name: len(v) for name, v in prepared.data.heads.items()}
    target = parameters(model_config(settings, heads))
    shape = equal_shape(cell, model_config(settings, heads), target)
    table = {k: v for k, v in to_dict(shape).items() if k not in ("heads", "mels")}
    settings = dataclasses.replace(settings, model=table, prefetch=0)
    folder = args.out / cell
    folder.mkdir(parents=True, exist_ok=True)
    model = new_model(settings, prepared.data)
    trainer = TimedTrainer(settings, model, prepared.data, prepared.maker, folder)
    trainer.minutes = args.minutes
    probes = probe_rows([b for batches in prepared.dev.values() for b in batches])
    fresh = gradient_norms(model.eval(), probes)
    print(f"{cell}: width {shape.hidden}, {model.parameter_count:,} parameters, {args.minutes:g} minutes", flush=True)
    said = time.monotonic()
    while trainer.seconds < 60 * args.minutes:
        scalars = trainer.train_step()
        if time.monotonic() - said > 30:
            said = time.monotonic()
            print(f"  {trainer.seconds / 60:5.1f} min, step {trainer.step}, loss {scalars['loss']:.3f}", flush=True)
    result: dict[str, Any] = {
        "cell": cell,
        "model": to_dict(shape),
        "parameters": model.parameter_count,
        "minutes": args.minutes,
        "steps": trainer.step,
        "skipped": trainer.skipped,
        "audio_h": trainer.audio_s / 3600,
        "training_speed": trainer.audio_s / trainer.seconds,
        "latency_ms": None if shape.bidirectional else shape.algorithmic_latency_ms,
        "greedy": evaluate(trainer, prepared.dev),
    }
    with trainer.averaged() as averaged:
        result["gradients"] = {"fresh": fresh, "trained": gradient_norms(averaged, probes)}
        result["chunk_ms"] = None if shape.bidirectional else chunk_time(averaged, shape)
    if args.words:
        result["words"] = word_errors(trainer, args.words, args.dev, args.limit, folder / "model")
    print(f"  {json.dumps({k: v for k, v in result.items() if k not in ('model', 'gradients')})}", flush=True)
    return result


class TimedTrainer(Trainer):
    """A trainer whose schedule is a function of the time spent."""

    minutes: float

    def learning_rate(self) -> float:
        """Warm-up, peak, cosine decay as the module says."""
        c = self.config.optimizer
        done = self.seconds / (60 * self.minutes)
        if done < 0.05:
            return c.peak_rate * max(done / 0.05, 0.01)
        decayed = min(1.0, max(0.0, (done - 0.4) / 0.6))
        return c.final_rate + (c.peak_rate - c.final_rate) * 0.5 * (1 + math.cos(math.pi * decayed))


# -- networks of equal size --------------------------------------------------------------------------------------------


def parameters(shape: ModelConfig) -> int:
    """Trainable parameters of a shape."""
    with torch.device("meta"):
        return AcousticModel(shape).parameter_count


def equal_shape(cell: str, like: ModelConfig, target: int) -> ModelConfig:
    """The shape of another cell whose number of parameters is nearest to ``target``."""

    def shape(hidden: int) -> ModelConfig:
        if cell == "bidirectional":
            none = (0,) * like.layers
            return dataclasses.replace(like, cell="lstm", bidirectional=True, lookahead=none, hidden=hidden)
        return dataclasses.replace(like, cell=cell, bidirectional=False, hidden=hidden)  # type: ignore[arg-type]

    low, high = 1, 4096  # halves of the width: a bidirectional one must be even
    while low < high:
        middle = (low + high) // 2
        if parameters(shape(2 * middle)) < target:
            low = middle + 1
        else:
            high = middle
    return min((shape(2 * h) for h in (max(1, low - 1), low)), key=lambda s: abs(parameters(s) - target))


# -- gradients over time -----------------------------------------------------------------------------------------------


def probe_rows(batches: Sequence[Batch], rows: int = ROWS) -> Tensor:
    """(rows, frames, mels): beginnings of dev utterances, all of one length; of the longest ones if few are long."""
    wanted = (max(DISTANCES) + 32) * STEP_MS // FRAME_MS
    pieces = [b.frames[i, : int(n)] for b in batches for i, n in enumerate(b.lengths)]
    pieces.sort(key=len, reverse=True)
    long = [p for p in pieces if len(p) >= wanted]
    chosen = (long or pieces)[:: max(1, len(long or pieces) // rows)][:rows]
    length = min(wanted, *(len(p) for p in chosen))
    return torch.stack([p[:length] for p in chosen])


def gradient_norms(model: AcousticModel, frames: Tensor) -> dict[str, dict[str, float]]:
    """|d loss_T / d state_{T-k}| by k, for every recurrent layer (``1``, ...) and all of them together (``all``).

    ``frames``: (rows, frames, mels). Geometric mean over the rows.
    """
    with torch.enable_grad():
        log_probs, states = unrolled(model, frames)
    steps = log_probs.shape[1]
    last = steps - model.config.lookahead_steps - 1  # what lies later has seen the end of the row
    best = log_probs.argmax(-1)
    spoken = (best[:, : last + 1] != 0) * torch.arange(1, last + 2)
    at = torch.where(spoken.amax(1) > last // 2, spoken.amax(1) - 1, torch.full_like(best[:, 0], last))
    rows = torch.arange(len(frames))
    loss = -log_probs[rows, at, best[rows, at]].sum()
    wanted = [t for layer in states for t in layer]
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    norms: dict[str, dict[str, float]] = {}
    squares: dict[int, Tensor] = {}
    per_layer = len(wanted) // len(states)
    for number in range(len(states)):
        mine = gradients[number * per_layer : (number + 1) * per_layer]
        norms[str(number + 1)] = {}
        for k in DISTANCES:
            if k > int(at.min()):
                break
            square = torch.zeros(len(frames))
            for row, t in enumerate((at - k).tolist()):
                for kind in range(per_layer // steps):  # h, and c of an LSTM
                    g = mine[kind * steps + t]
                    square[row] += 0.0 if g is None else float(g[row].square().sum())
            norms[str(number + 1)][str(k)] = _mean_norm(square)
            squares[k] = squares.get(k, torch.zeros(len(frames))) + square
    norms["all"] = {str(k): _mean_norm(square) for k, square in squares.items()}
    return norms


def _mean_norm(squares: Tensor) -> float:
    return math.exp(float(squares.clamp_min(1e-60).sqrt().double().log().mean()))


def unrolled(model: AcousticModel, frames: Tensor) -> tuple[Tensor, list[list[Tensor]]]:
    """Log-probabilities of the first head, (rows, steps, units), as :meth:`AcousticModel.forward` gives them, and per
    recurrent layer the tensors h_0, h_1, ... (for an LSTM then c_0, c_1, ...), each (rows, hidden), of its forward
    direction."""
    c = model.config
    lengths = torch.full((len(frames),), frames.shape[1])
    first: list[Tensor] = []
    hook = model.front_end.register_forward_hook(lambda module, given, out: first.append(out))
    with torch.no_grad():
        model(frames, lengths)
    hook.remove()
    x = first[0]
    states: list[list[Tensor]] = []
    for i, layer in enumerate(model.recurrent):
        assert isinstance(layer, RecurrentLayer)
        z = layer.norm(x)
        y, held = _steps(layer.rnn, z, "", c.bidirectional)
        states.append(held)
        if c.bidirectional:
            back, _ = _steps(layer.rnn, z.flip(1), "_reverse", True)
            y = torch.cat([y, back.flip(1)], dim=2)
        x = x + y
        if str(i) in model.look_ahead:
            ahead = model.look_ahead[str(i)]
            assert isinstance(ahead, LookAhead)
            x = ahead(x)
    return next(iter(model.emit(x).values())), states


def _steps(rnn: Any, z: Tensor, suffix: str, one_direction: bool) -> tuple[Tensor, list[Tensor]]:
    """Outputs (rows, steps, hidden) of one direction of a recurrent module, one step at a time, and its states."""
    if one_direction:
        single = type(rnn)(rnn.input_size, rnn.hidden_size, batch_first=True)
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        single.load_state_dict({name: getattr(rnn, name + suffix).detach() for name in names})
        rnn = single
    h = z.new_zeros(1, len(z), rnn.hidden_size, requires_grad=True)
    c = z.new_zeros(1, len(z), rnn.hidden_size, requires_grad=True)
    hs, cs, out = [], [], []
    for t in range(z.shape[1]):
        if isinstance(rnn, nn.LSTM):
            _, (h, c) = rnn(z[:, t : t + 1], (h, c))
            # The state as one node of the graph, through which the output and all later steps go.
            h, c = h[0].clone(), c[0].clone()
            cs.append(c)
            h, c = h, c[None]
        else:
            _, h = rnn(z[:, t : t + 1], h)
            h = h[0].clone()
        hs.append(h)
        out.append(h)
        h = h[None]
    return torch.stack(out, dim=1), [*hs, *cs]


# -- speed and words ---------------------------------------------------------------------------------------------------


def chunk_time(model: AcousticModel, shape: ModelConfig, chunks: int = 300) -> float:
    """Median milliseconds of the network for one chunk of 100 ms of one stream."""
    frames = torch.randn(chunks, CHUNK_MS // FRAME_MS, shape.mels)
    head = next(iter(shape.heads))
    state = model.begin()
    times = []
    for chunk in frames:
        began = time.perf_counter()
        ((_, state),) = batching.advance(model, [(chunk, state)], head)
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times[chunks // 10 :])


def word_errors(trainer: Trainer, words: str, dev: Sequence[str], limit: int | None, folder: Path) -> dict[str, float]:
    """Word error rate on every dev table, with lexicon, language model and search settings of the model ``words``."""
    start = find_model(words)
    export(trainer, start.load_lexicon(), folder, start)
    recognizer = Recognizer.load(folder)
    rates = {}
    for name, utterances in read_corpora(dev).items():
        utterances = utterances[:limit]
        texts = decode_whole(recognizer, load_utterances(utterances))
        rates[name] = metrics.word_error_rate([u.text for u in utterances], texts).rate
    return rates


# -- table and plots ---------------------------------------------------------------------------------------------------


def merge(out: Path) -> None:
    """Write `table.md` and `gradients.png` from every `CELL.json` in ``out``."""
    results = {c: json.loads((out / f"{c}.json").read_text()) for c in CELLS if (out / f"{c}.json").is_file()}
    if not results:
        raise SystemExit(f"{out} holds no results")
    text = table(results)
    (out / "table.md").write_text(text, encoding="utf-8")
    plot(results, out / "gradients.png")
    print(text)


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results as Markdown."""
    greedy = dict.fromkeys(name for r in results.values() for name in r["greedy"])
    words = dict.fromkeys(name for r in results.values() for name in r.get("words", {}))
    rates = [(f"{name}, %", ("greedy", name)) for name in greedy] + [(f"{n} WER, %", ("words", n)) for n in words]
    head = ["cell", "width", "parameters", "latency, ms", "steps", "audio, h", "training, × real time"]
    head += [name.replace("/", " ").replace("_error", "") for name, _ in rates] + ["100 ms step, ms"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for cell, r in results.items():
        row = [
            cell,
            str(r["model"]["hidden"]),
            f"{r['parameters'] / 1e6:.2f} M",
            "whole recording" if r["latency_ms"] is None else str(r["latency_ms"]),
            str(r["steps"]),
            f"{r['audio_h']:.1f}",
            f"{r['training_speed']:.0f}",
        ]
        for _, (kind, name) in rates:
            row.append(f"{100 * r[kind][name]:.1f}" if name in r.get(kind, {}) else "")
        row.append("cannot stream" if r["chunk_ms"] is None else f"{r['chunk_ms']:.2f}")
        lines.append("| " + " | ".join(row) + " |")
    minutes = sorted({r["minutes"] for r in results.values()})
    lines += ["", f"Training time per cell: {' / '.join(f'{m:g}' for m in minutes)} minutes of one thread.", ""]
    for when in ("fresh", "trained"):
        distances = [k for k in map(str, DISTANCES) if all(k in r["gradients"][when]["all"] for r in results.values())]
        lines.append(f"| d loss_T / d state_(T-k), {when}, k = | " + " | ".join(distances) + " |")
        lines.append("|---" * (len(distances) + 1) + "|")
        for cell, r in results.items():
            norms = [f"{r['gradients'][when]['all'][k]:.1e}" for k in distances]
            lines.append(f"| {cell} | " + " | ".join(norms) + " |")
        lines.append("")
    return "\n".join(lines)


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Gradient norms over the distance, fresh and trained, all layers (bold) and each of them."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True, constrained_layout=True)
    for panel, when in zip(panels, ("fresh", "trained"), strict=True):
        for cell, r in results.items():
            for layer, norms in r["gradients"][when].items():
                together = layer == "all"
                points = [(int(k) * STEP_MS / 1000, v) for k, v in norms.items() if int(k)]
                panel.plot(
                    *np.array(points).reshape(-1, 2).T,
                    color=COLORS[cell],
                    alpha=1.0 if together else 0.3,
                    linewidth=2 if together else 1,
                    marker="o" if together else None,
                    markersize=4,
                    label=cell if together else None,
                )
        panel.set(xscale="log", yscale="log", xlabel="distance, s", title=f"{when} network")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("|d loss$_T$ / d state$_{T-k}$|")
    panels[1].legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
