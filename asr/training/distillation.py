"""Learning from a trained network what it says of every step, beside the transcripts (Hinton et al. 2015).

For CTC with a teacher whose look-ahead is the student's, frame by frame is right (Kurata and Audhkhasi 2018, "Improved
knowledge distillation from bi-directional to uni-directional LSTM CTC for end-to-end speech recognition", meet the
difficulty where it is not: spikes come at other steps). The teacher hears the batch as the student does, masks and
noises included, but begins every row from the initial state.

Several teachers are worth more than each of them (models that ended in different runs, the student's own beginning
among them): what they say is then the mean of their log-probabilities, made a distribution again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asr.checkpoint import ModelFolder
from asr.errors import ModelError
from asr.features import FeatureConfig
from asr.training.consistency import divergence
from asr.vocabulary import Vocabulary


class Teacher:
    """The networks of ``folders``, of whose ``head`` is learned.

    Raises ModelError where their units or features are not the student's.
    """

    def __init__(
        self,
        folders: Sequence[ModelFolder],
        head: str,
        units: Vocabulary,
        features: FeatureConfig,
        device: torch.device,
    ) -> None:
        for folder in folders:
            own = folder.load_vocabularies().get(head)
            if own is None or own.to_dict() != units.to_dict():
                raise ModelError(f"{folder.path} has other units than the network: give a teacher of the same {head}")
            if folder.config.features != features:
                raise ModelError(f"{folder.path} has other features than the network: a teacher must hear the same")
        self.networks = [folder.load_network(str(device)).requires_grad_(False).eval() for folder in folders]
        self.head = head

    def __call__(self, frames: Tensor, lengths: Tensor, log_probs: Tensor, steps: Tensor) -> Tensor:
        """The sum over rows and steps of KL(teachers || student), in nats.

        ``frames``: (rows, time, mels) as the student has heard them, ``lengths`` of each row; ``log_probs``: (rows,
        steps, units) of the student, ``steps`` of each row.
        """
        return divergence(self.said(frames, lengths), log_probs, steps)

    @torch.no_grad()
    def said(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(rows, steps, units) log-probabilities of all teachers together."""
        one, *more = (network(frames, lengths)[0][self.head] for network in self.networks)
        return one if not more else (sum(more, one) / (1 + len(more))).log_softmax(-1)
