"""The batches of a training run by their place in it, made when they are asked for or ahead of that by threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from asr.errors import UsageError
from asr.training.batches import Batch, BatchMaker, BatchPlan, TrainingSet
from asr.training.consistency import two_views
from asr.training.train_config import TrainConfig

_MOST_THREADS = 4


class Place(NamedTuple):
    """Where a batch stands in a run: epoch, step within the epoch, slot (see :mod:`asr.training.batches`)."""

    epoch: int
    position: int
    slot: int


class BatchSource:
    """Batches as a pure function of their :class:`Place`.

    With ``ahead`` > 0, asking for a batch has the ``ahead`` following ones of ``slots`` made by threads. As a batch
    depends on nothing but its place, what is given is the same with and without them, and after a resume.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingSet,
        maker: BatchMaker,
        slots: Sequence[int],
        all_slots: int,
        ahead: int = 0,
    ) -> None:
        self.config = config
        self.data = data
        self.maker = maker
        self.slots = slots
        self.all_slots = all_slots
        self.ahead = ahead
        self._plans: dict[int, BatchPlan] = {}
        self._made: dict[Place, Future[Batch]] = {}
        self._threads: ThreadPoolExecutor | None = None

    def plan(self, epoch: int) -> BatchPlan:
        """The batches of an epoch. Raises UsageError when the data do not fill one step."""
        if epoch not in self._plans:
            config = self.config
            plan = BatchPlan(
                self.data,
                config.augment,
                config.batch_seconds,
                config.seed,
                epoch,
                self.all_slots,
                fewest_rows=config.fewest_rows,
            )
            if len(plan) == 0:
                raise UsageError(
                    f"{len(self.data)} utterances are too few for {self.all_slots} batches per step (processes times "
                    "'accumulate'): lower these or give more data"
                )
            self._plans[epoch] = plan
        return self._plans[epoch]

    def get(self, place: Place) -> Batch:
        """The batch of a place; those of earlier epochs are not expected to be asked for again."""
        self._plans = {epoch: plan for epoch, plan in self._plans.items() if epoch >= place.epoch}
        if not self.ahead:
            return self._make(place, self.plan(place.epoch).rows(place.position, place.slot))
        if self._threads is None:
            self._threads = ThreadPoolExecutor(min(_MOST_THREADS, self.ahead), "batches")
        wanted = list(self._following(place))
        for old in [p for p in self._made if p not in wanted]:
            self._made.pop(old).cancel()
        for new in wanted:
            if new not in self._made:
                rows = self.plan(new.epoch).rows(new.position, new.slot)
                self._made[new] = self._threads.submit(self._make, new, rows)
        return self._made.pop(place).result()

    def close(self) -> None:
        """Stop the threads; :meth:`get` starts them again."""
        for future in self._made.values():
            future.cancel()
        self._made.clear()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
            self._threads = None

    def _make(self, place: Place, rows: Sequence[Sequence[tuple[int, int]]]) -> Batch:
        rng = np.random.default_rng([self.config.seed, *place])
        if not self.config.consistency:
            return self.maker.make(rows, rng)
        return two_views(self.maker.make(rows, rng, mask=False), self.maker.mask, rng)

    def _following(self, place: Place) -> Iterator[Place]:
        """``place`` and the ``ahead`` places that this process needs after it."""
        epoch, position, slot = place
        number = self.slots.index(slot)
        for _ in range(self.ahead + 1):
            yield Place(epoch, position, self.slots[number])
            number += 1
            if number == len(self.slots):
                number, position = 0, position + 1
                if position == len(self.plan(epoch)):
                    epoch, position = epoch + 1, 0
