"""From a trainer to a model folder: averaged weights, log priors of the units, lexicon."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from asr.checkpoint import G2P, LANGUAGE_MODEL, LEXICON, RECURRENT, TAGGER, FolderConfig, ModelFolder, save_folder
from asr.lexicon import Lexicon
from asr.model import AcousticModel
from asr.training.batches import NO_AUGMENT, BatchMaker, BatchPlan
from asr.training.train import Trainer

PRIOR_BATCHES = 20  # 1.7 h at the usual 300 s: more does not move the priors


def export(
    trainer: Trainer,
    lexicon: Lexicon,
    folder: Path,
    start: ModelFolder | None = None,
    prior_batches: int = PRIOR_BATCHES,
) -> None:
    """Write the averaged weights as a model folder, which then replaces one that is there.

    Language model, search and endpoint settings are those of ``start``, the model that was fine-tuned.
    """
    with trainer.averaged() as model:
        priors = estimate_log_priors(trainer, model, prior_batches)
        weights = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("intermediate")}
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    lexicon.save(new / LEXICON)
    if lexicon.g2p is not None:
        lexicon.g2p.save(new / G2P)
    heads = trainer.config.heads
    config = FolderConfig(
        # The intermediate head is for training alone; its weights are not part of the folder.
        model=dataclasses.replace(trainer.model.config, intermediate=0),
        features=trainer.config.features,
        head=heads[0],
        name=folder.name,
    )
    files: dict[str, Path] = {}
    if start:
        known = start.config
        config = dataclasses.replace(
            config,
            head=known.head if known.head in heads else heads[0],
            name=start.name,
            language=known.language,
            search=known.search,
            endpoint=known.endpoint,
        )
        if start.language_model:
            files[LANGUAGE_MODEL] = start.language_model
        files |= {name: start.path / name for name in (RECURRENT, TAGGER) if name in known.files}
    save_folder(new, config, weights, trainer.data.heads, priors, files)
    shutil.rmtree(folder, ignore_errors=True)
    new.replace(folder)


def estimate_log_priors(trainer: Trainer, model: AcousticModel, batches: int = PRIOR_BATCHES) -> dict[str, Tensor]:
    """Log of the mean posterior of every unit over some training batches without augmentation, per head."""
    config = trainer.config
    plan = BatchPlan(trainer.data, NO_AUGMENT, config.batch_seconds, config.seed, 0)
    maker = BatchMaker(trainer.data, NO_AUGMENT)
    sums: dict[str, Tensor] = {}
    with torch.no_grad(), trainer.autocast():
        for i in range(min(batches, len(plan))):
            batch = maker.make(plan.rows(i), np.random.default_rng(i))
            out, steps, _ = model(batch.frames.to(trainer.device), batch.lengths.to(trainer.device))
            for name in trainer.data.heads:
                log_probs = out[name]
                inside = torch.arange(log_probs.shape[1], device=trainer.device) < steps[:, None]
                total = log_probs.exp()[inside].double().sum(0).cpu()
                sums[name] = sums[name] + total if name in sums else total
    return {name: (total / total.sum()).clamp_min(1e-8).log().float() for name, total in sums.items()}
