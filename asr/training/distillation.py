"""Learning from a trained network what it says of every step, beside the transcripts (Hinton et al. 2015).

For CTC with a teacher whose look-ahead is the student's, frame by frame is right (Kurata and Audhkhasi 2018, "Improved
knowledge distillation from bi-directional to uni-directional LSTM CTC for end-to-end speech recognition", meet the
difficulty where it is not: spikes come at other steps). The teacher hears the batch as the student does, masks and
noises included, but begins every row from the initial state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asr.checkpoint import ModelFolder
from asr.errors import ModelError
from asr.features import FeatureConfig
from asr.training.consistency import divergence
from asr.vocabulary import Vocabulary


class Teacher:
    """The network of ``folder``, of whose ``head`` is learned.

    Raises ModelError where its units or features are not the student's.
    """

    def __init__(
        self, folder: ModelFolder, head: str, units: Vocabulary, features: FeatureConfig, device: torch.device
    ) -> None:
        own = folder.load_vocabularies().get(head)
        if own is None or own.to_dict() != units.to_dict():
            raise ModelError(f"{folder.path} has other units than the network: give a teacher of the same {head}")
        if folder.config.features != features:
            raise ModelError(f"{folder.path} has other features than the network: a teacher must hear the same")
        self.network = folder.load_network(str(device)).requires_grad_(False).eval()
        self.head = head

    def __call__(self, frames: Tensor, lengths: Tensor, log_probs: Tensor, steps: Tensor) -> Tensor:
        """The sum over rows and steps of KL(teacher || student), in nats.

        ``frames``: (rows, time, mels) as the student has heard them, ``lengths`` of each row; ``log_probs``: (rows,
        steps, units) of the student, ``steps`` of each row.
        """
        with torch.no_grad():
            said = self.network(frames, lengths)[0][self.head]
        return divergence(said, log_probs, steps)
