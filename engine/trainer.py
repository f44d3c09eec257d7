"""PrivacyEngine: sample, clip, add noise, account, step."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

from dpcheck.engine.accounting import Bounds
from dpcheck.engine.adaptive import next_norm
from dpcheck.engine.admission import opened, refuse_ledger
from dpcheck.engine.available import budget_of
from dpcheck.engine.certified import Demanded, admitted
from dpcheck.engine.checkpoint import load_checkpoint, loaded_norm
from dpcheck.engine.clipping import Clipper
from dpcheck.engine.kinds import AdaptiveQuantile, Clipping, grouping_of
from dpcheck.engine.ledger import Ledger
from dpcheck.engine.metrics import Bar, Metrics, metrics_of
from dpcheck.engine.noise import Gaussian, GridGaussian, Mechanism
from dpcheck.engine.publishing import rendered
from dpcheck.engine.ranks import Ranks
from dpcheck.engine.sampling import Loader, LogicalBatch, poisson
from dpcheck.engine.settings import Settings, settle
from dpcheck.engine.statement import describe, statement
from dpcheck.engine.streams import streams_of
from dpcheck.engine.summing import ClipperLike, Summer
from dpcheck.engine.watch import Watch
from torch import nn
from torch.optim import Optimizer

from dpcheck.capture import LossFn
from dpcheck.errors import DpcheckError
from dpcheck.records import CollateFn, map_style, unit_of
from dpcheck.unit import Unit

log = logging.getLogger("dpcheck")


class PrivacyEngine:
    """Trains a model with DP-SGD: any torch optimizer, plain modules, gradients in ``p.grad``.

        engine = PrivacyEngine(model, loss_fn, optimizer, dataset, expected_batch_size=256, max_grad_norm=1.0,
                               delta=1e-5, target_epsilon=8.0, epochs=10)
        for batch in engine:
            metrics = engine.step(batch)

    After all steps the weights are (epsilon, delta)-differentially private for one record added or removed, with
    ``engine.epsilon().upper``. Loss and clipped fraction, in :class:`Metrics` and the progress bar, are computed from
    the records without noise: they are not private.

    In a torch.distributed world every rank makes an engine of the same model, data set and arguments, and does the same
    (:mod:`dpcheck.engine.ranks`): the whole draw is one Poisson sample, of which each rank computes a part.

    Args:
        model: an ``nn.Module`` in the train/eval state in which it is to be trained.
        loss_fn: ``loss_fn(model, batch) -> losses [B]``.
        optimizer: holds exactly the trainable parameters of the model (frozen ones may be in it).
        dataset: map-style; one item is one record, the unit of privacy, or one user (:func:`dpcheck.by_user`).
        expected_batch_size: B. Each record is drawn with probability B / len(dataset); gradients are divided by B.
        max_grad_norm: C, L2 norm to which each record's gradient is clipped, over all parameters together: the
            sensitivity that the noise is scaled to.
        delta: of the guarantee; at most 1 / len(dataset).
        noise_multiplier: sigma; or target_epsilon, for which sigma is calibrated.
        epochs: steps = epochs * len(dataset) / B, rounded up; or steps.
        physical_batch_size: samples in one forward and backward; if None at most 256, and as many as fit into the
            memory budget. It changes memory and time only.
        memory_budget: bytes that one forward and backward may take, by the plan's estimate; larger physical batches are
            computed in parts. If None, half of what is free now, or no limit with a physical_batch_size.
        compile: compile the plan of each shape of batch with ``torch.compile``.
        seed: makes samples and noise repeatable. **Such a run is not private.**
        secure: randomness from the operating system and noise on an integer grid (:class:`GridGaussian`); records are
            then computed one at a time.
        collate_fn: list of records -> batch, one sample for each record.
        check: run :func:`dpcheck.check` on a few records first and refuse a model with findings.
        ledger: path of a file that records every step before its data is read, so that a crash can only over-count.
            Steps already in it count, whichever run they belong to.
        unit: where a record lies in the batches of ``collate_fn``, if it is not one index of axis 0
            (:class:`dpcheck.Unit`); a data set of users knows its own.
        clipping: "flat", "per-layer", "automatic", "normalised", "adaptive", or a kind with its settings
            (:mod:`dpcheck.engine.kinds`). One record moves the sum by at most C whatever the kind.
        num_workers: processes that read records ahead of their use; 0 reads them when they are needed.
        pin_memory: batches in page-locked memory, where there is an accelerator.
        certificate: of :func:`dpcheck.certify`, or the path of one: nothing else is trained than what it is of.
        resume: path of a checkpoint of :func:`dpcheck.engine.save_checkpoint`: its run goes on, with the same settings.

    Raises:
        DpcheckError: for each argument that is wrong, by name and value; for a model that the check refuses.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        optimizer: Optimizer,
        dataset: Any,
        *,
        expected_batch_size: int,
        max_grad_norm: float,
        delta: float,
        noise_multiplier: float | None = None,
        target_epsilon: float | None = None,
        epochs: float | None = None,
        steps: int | None = None,
        physical_batch_size: int | None = None,
        memory_budget: int | None = None,
        compile: bool = False,
        seed: int | None = None,
        secure: bool = False,
        collate_fn: CollateFn | None = None,
        check: bool = True,
        ledger: str | os.PathLike[str] | None = None,
        unit: Unit | None = None,
        clipping: Clipping | str = "flat",
        num_workers: int = 0,
        pin_memory: bool = False,
        certificate: Demanded = None,
        resume: str | os.PathLike[str] | None = None,
        _clipper: Callable[..., ClipperLike] = Clipper,
    ) -> None:
        self._ranks = Ranks.here()
        self.settings: Settings = settle(
            dataset_size=len(map_style(dataset)),
            expected_batch_size=expected_batch_size,
            max_grad_norm=max_grad_norm,
            delta=delta,
            noise_multiplier=noise_multiplier,
            target_epsilon=target_epsilon,
            epochs=epochs,
            steps=steps,
            physical_batch_size=physical_batch_size,
            seed=seed,
            secure=secure,
            unit=unit_of(dataset, unit),
            clipping=clipping,
        )
        self._max_grad_norm = self.settings.max_grad_norm
        self.model, self.loss_fn, self.optimizer, unit = model, loss_fn, optimizer, self.settings.unit
        self._watch = Watch(model, optimizer)
        size = self.settings.physical_batch_size
        self._loader = Loader(dataset, collate_fn, size, unit, num_workers=num_workers, pin_memory=pin_memory)
        self._ranks.agree(asdict(self.settings))
        self._ranks.equal(model)
        self.ledger, self.run = opened(ledger, self._ranks, self.settings, resume)
        refuse_ledger(self.ledger, self.settings, self.settings.record(self.run, self._max_grad_norm))
        losses, kind, parameters = unit.loss(loss_fn), self.settings.clipping, self._watch.parameters
        self._grouping = grouping_of(kind, parameters)
        method, guarded = admitted(model, loss_fn, self._loader, parameters, check, certificate)
        budget = budget_of(memory_budget, physical_batch_size, next(iter(parameters.values())).device)
        how = {"method": method, "clipping": kind, "memory_budget": budget, "compile": compile}
        self._clipper = guarded(_clipper(model, losses, max_grad_norm=self._max_grad_norm, **how))
        self._summer = Summer(self._clipper, self._loader, parameters, self._grouping)
        self._streams = streams_of(seed, secure)
        self._pending: LogicalBatch | None = None
        for note in self.settings.notes():
            log.warning("%s", note)
        if resume is not None:
            load_checkpoint(self, resume)

    # -- training

    @property
    def steps_taken(self) -> int:
        """Steps of this run, over all its sessions, as the ledger has them."""
        return self.ledger.steps(self.run)

    def __len__(self) -> int:
        """Steps that are left."""
        return max(0, self.settings.steps - self.steps_taken)

    def __iter__(self) -> Iterator[LogicalBatch]:
        """Draws a batch for each step that is left. Each must be given to :meth:`step` before the next is drawn."""
        while self.steps_taken < self.settings.steps:
            if self._pending is None:
                self._pending = self._draw()
            batch = self._pending
            yield batch
            if self._pending is batch:
                raise DpcheckError(
                    f"the batch of step {batch.step} was not given to engine.step(): the samples would not be Poisson",
                    next="for batch in engine: metrics = engine.step(batch)",
                )

    def step(self, batch: LogicalBatch) -> Metrics:
        """One step of DP-SGD on a batch from iterating the engine.

        The step is in the ledger before its records are read: whatever fails afterwards is counted.

        Raises:
            DpcheckError: for another batch; for parameters, modes or an optimizer that changed; for a gradient in
                p.grad that is not the engine's; for what the clipper refuses, such as a loss that is not finite.
        """
        if self._pending is None or batch is not self._pending:
            raise DpcheckError(
                "this batch is not the one that the engine drew for this step, and only that one is a Poisson sample",
                where="batch",
                next="for batch in engine: metrics = engine.step(batch)",
            )
        self._ranks.refuse_change()
        self._ranks.every(self._watch.refuse)
        s, norm, ranks = self.settings, self._max_grad_norm, self._ranks
        mechanism: Mechanism = (GridGaussian if s.secure else Gaussian)(s.gradient_noise, norm)
        self._pending = None
        self.ledger.append(self.settings.record(self.run, self._max_grad_norm))
        try:
            total, seen = self._summer.sum_of_ranks(ranks, batch.indices, mechanism, norm)
        except Exception as error:
            error.add_note(f"step {batch.step} is counted in the ledger; parameters and optimizer are as they were")
            raise
        stream = partial(self._streams.stream, step=batch.step)  # of rank 0 only
        self._watch.publish(
            ranks.published(lambda: mechanism.release(total, s.expected_batch_size, stream("noise")), total)
        )
        if isinstance(s.clipping, AdaptiveQuantile) and s.count_noise is not None:
            count, count_noise = seen.within(norm), s.count_noise
            share = ranks.first(lambda: count.released(s.expected_batch_size, count_noise, stream("count")))
            self._max_grad_norm = next_norm(s.clipping, norm, s.max_grad_norm, share)
        self.optimizer.step()
        return metrics_of(batch, seen, norm, s.delta, self.ledger.phases())

    @property
    def max_grad_norm(self) -> float:
        """C of the next step: as given, or what :class:`dpcheck.engine.AdaptiveQuantile` made of released values."""
        return self._max_grad_norm

    def fit(self, progress: bool = True) -> Bounds:
        """Takes all steps that are left, and returns the epsilon spent.

        Args:
            progress: show a bar on stderr with epsilon so far and, **not private**, loss and clipped fraction.
        """
        with Bar(self.settings.steps, self.steps_taken) if progress else nullcontext() as bar:
            for batch in self:
                metrics = self.step(batch)
                if bar is not None:
                    bar.show(metrics)
        return self.epsilon()

    def _draw(self) -> LogicalBatch:
        step, s = self.steps_taken, self.settings
        if len(self._loader.dataset) != s.dataset_size:
            raise DpcheckError(
                f"the data set has {len(self._loader.dataset)} {s.unit.noun}s now, and {s.dataset_size} at first",
                where="dataset",
                next="make a new PrivacyEngine with the new data set and the same ledger",
            )
        streams, sizes = self._streams, (s.dataset_size, s.expected_batch_size)
        # One sample of all ranks, each of which then reads a part of it.
        return LogicalBatch(step, self._ranks.first(lambda: poisson(*sizes, streams.stream("sampling", step))))

    # -- accounting and saving

    def epsilon(self) -> Bounds:
        """What every step in the ledger has spent, at ``delta``. ``.upper`` is the guarantee."""
        return self.ledger.epsilon(self.settings.delta)

    def report(self, format: str = "text") -> str:
        """A statement of the guarantee so far, of what is not private and of what is not accounted for.

        Args:
            format: "text", "json" (with a schema, :func:`dpcheck.engine.publishing.rendered`) or "html", a whole page.

        Raises:
            DpcheckError: for another format.
        """
        known = self._clipper.method.replace("undecided", "none computed since this engine was made")
        method = " ".join([known, *([f"({reason})"] if (reason := self._clipper.reason) else [])])
        kind = describe(self.settings, self._grouping, self._max_grad_norm)
        bounds = self.epsilon()
        return rendered(statement(self.settings, kind, self.ledger, self.run, bounds, method), format)

    def state_dict(self) -> dict[str, Any]:
        """The run and its ledger, in plain values. Model and optimizer have their own ``state_dict``.

        No key and no state of a generator is in it, so that a published checkpoint does not give the noise away.
        """
        run = {"run": self.run, "max_grad_norm": self._max_grad_norm}
        return {**run, "settings": self.settings.plain(), "ledger": self.ledger.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues the run of ``state``. Steps already in this engine's ledger stay counted.

        Noise and samples come from a new key, so none is used twice (with a seed: from that seed, at the next step).

        Raises:
            DpcheckError: if the ledgers contradict each other, belong to another data set, or leave no room for
                ``target_epsilon``. The engine is then as it was before.
        """
        norm = loaded_norm(state, self.settings.max_grad_norm)
        trial = Ledger()
        trial.absorb(self.ledger.state_dict())
        trial.absorb(state["ledger"])
        self._ranks.agree({"the run of the state": state["run"], "the number of steps": trial.steps()})
        refuse_ledger(trial, self.settings, self.settings.record(state["run"], self._max_grad_norm))
        self.ledger.absorb(state["ledger"])
        if isinstance(self.settings.clipping, AdaptiveQuantile):
            self._max_grad_norm = norm
        self.run, self._pending = state["run"], None
        self._streams = streams_of(self.settings.seed, self.settings.secure)
