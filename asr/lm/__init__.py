"""N-gram language models: estimate, mix, prune, score, read and write.

>>> model = estimate(["the cat sat", "the cat ran"], order=2)
>>> round(model.logprob("cat", ["the"]), 3)
-0.135

A model is estimated by interpolated modified Kneser-Ney smoothing (:func:`estimate`), several are mixed into one
(:func:`mix`, :func:`tune_weights`) and pruned by relative entropy to a size (:func:`prune`). :func:`save` writes a
compact file that :func:`load` reads at once, or by the name's ending an ARPA file or a KenLM binary, which
:func:`open_kenlm` opens; all three are read.
"""

from asr.lm.arpa import read_arpa, write_arpa
from asr.lm.build import BuildReport, DevResult, TextFile, build, file_size, load, save
from asr.lm.compact import load_compact, save_compact
from asr.lm.complete import complete
from asr.lm.estimate import estimate
from asr.lm.kenlm import binary_size, load_binary, open_kenlm, read_words, save_binary
from asr.lm.mix import mix, tune_weights
from asr.lm.model import NgramModel
from asr.lm.prune import prune
from asr.lm.text import Corpus, Normalizer, encode, select_vocabulary

__all__ = [
    "BuildReport",
    "Corpus",
    "DevResult",
    "NgramModel",
    "Normalizer",
    "TextFile",
    "binary_size",
    "build",
    "complete",
    "encode",
    "estimate",
    "file_size",
    "load",
    "load_binary",
    "load_compact",
    "mix",
    "open_kenlm",
    "prune",
    "read_arpa",
    "read_words",
    "save",
    "save_binary",
    "save_compact",
    "select_vocabulary",
    "tune_weights",
    "write_arpa",
]
