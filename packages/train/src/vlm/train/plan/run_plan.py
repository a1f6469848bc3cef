"""One resolved run: everything that a recipe's run on some machine is known by before any weight is loaded.

>>> plan = RunPlan.resolve(load_recipe("convllava-stage3"), processes=8, machine="a100-80")      # doctest: +SKIP
>>> plan.estimate.hours, plan.faults, plan.missing                                               # doctest: +SKIP

`vlm plan`, `train`, `launch` and `reproduce` and the speed meter read it. Each fact is computed when it is first asked
for, and once: the spec is read once, the meta-device model is built once, the data is counted once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from vlm.core.errors import CheckpointError, ConfigError
from vlm.models.checkpoint.agreement import beyond_range
from vlm.models.checkpoint.layout import read_layout
from vlm.models.checkpoint.locate import find_checkpoint
from vlm.models.specs import ModelSpec, load_preset
from vlm.models.vlm import VisionLanguageModel
from vlm.train.parameters.optim import parameter_groups
from vlm.train.plan.costs import ModelCosts, meta_model
from vlm.train.plan.faults import Fault, MixtureRow, arithmetic_faults, data_faults, mixture_rows
from vlm.train.plan.fit import Estimate, estimate_fit, smallest_change
from vlm.train.plan.machines import get_machine
from vlm.train.plan.missing import missing_disk, missing_files, missing_hardware
from vlm.train.plan.points import Point, nearest_point
from vlm.train.recipe.recipe import Recipe, training_spec

GB = 1e9
NODE = 8
"""Default number of GPUs per node, as on the published machines."""


@dataclass(frozen=True, eq=False)
class RunPlan:
    """A recipe on `nodes` x `gpus_per_node` processes of a machine, as `resolve` makes it.

    >>> plan = RunPlan.resolve(load_recipe("v2pe-256k"))
    >>> plan.processes, plan.groups, plan.samples_per_group
    (32, 4, 1)

    Sizes are of one process, in GB of 10^9 bytes, without activations; `estimate` has those and all that depends on the
    machine. `tokens_per_sample` is the mean length for the time, None for the upper bound `max_length`.
    """

    recipe: Recipe
    processes: int
    machine: str
    nodes: int
    gpus_per_node: int
    tokens_per_sample: float | None = None

    @classmethod
    def resolve(
        cls,
        recipe: Recipe,
        processes: int | None = None,
        machine: str | None = None,
        *,
        nodes: int | None = None,
        gpus_per_node: int | None = None,
        tokens_per_sample: float | None = None,
    ) -> "RunPlan":
        """Settle where a recipe runs. Nothing is computed yet.

        Args:
            recipe: the stage.
            processes: GPUs or processes in all; default `nodes` x `gpus_per_node`, else as many as published.
            machine: a name of `machines.yaml` or `cpu`; default `a100-80` for published recipes, else `cpu`.
            nodes: machines, where `processes` is not given.
            gpus_per_node: processes of each; default the most, up to 8, that divide the processes.
            tokens_per_sample: mean length of a sample.

        Raises:
            ConfigError: the processes do not fill whole nodes.
        """
        default = recipe.hardware.gpus if recipe.hardware else 1
        total = processes or (nodes * (gpus_per_node or NODE) if nodes else default)
        each = min(gpus_per_node, total) if gpus_per_node else max(n for n in range(1, NODE + 1) if total % n == 0)
        if total % each:
            raise ConfigError(f"{total} processes on nodes of {each}", expected="whole nodes", fix="--gpus-per-node N")
        name = machine or ("a100-80" if recipe.hardware else "cpu")
        return cls(recipe, total, name, total // each, each, tokens_per_sample)

    @cached_property
    def _start(self) -> ModelSpec | CheckpointError:
        try:
            return read_layout(find_checkpoint(self.recipe.model.start)).spec
        except CheckpointError as error:
            return error

    @cached_property
    def spec(self) -> ModelSpec:
        """Spec of the start checkpoint if it is here, else of the preset, with the keys that the recipe sets."""
        start = load_preset(self.recipe.model.preset) if isinstance(self._start, CheckpointError) else self._start
        return training_spec(self.recipe.model, start)

    @cached_property
    def _prepared(self) -> tuple[VisionLanguageModel, dict[str, int]]:
        return meta_model(self.spec, self.recipe)

    @property
    def model(self) -> VisionLanguageModel:
        """The model on the meta device, frozen and adapted. Raises ConfigError for patterns that match nothing."""
        return self._prepared[0]

    @property
    def trainable(self) -> dict[str, int]:
        """Trained parameters of each part."""
        return self._prepared[1]

    @cached_property
    def parameters(self) -> dict[str, int]:
        """All parameters of encoder, projector and language model, exact."""
        model = self.model
        parts = {"encoder": model.encoder, "projector": model.projector, "language_model": model.language_model}
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}

    @property
    def tokens_per_image(self) -> int:
        """Tokens of one tile."""
        return self.model.tokens_per_tile

    @cached_property
    def mixture(self) -> Sequence[MixtureRow]:
        """Records, samples of an epoch and share of each entry of `data`."""
        return mixture_rows(self.recipe)

    @property
    def samples(self) -> int | None:
        """Samples of an epoch; None while the count of a file is unknown."""
        counts = [row["samples"] for row in self.mixture]
        return None if None in counts else sum(count or 0 for count in counts)

    @property
    def steps(self) -> int | None:
        """Steps of the whole run; None while the count of a file is unknown."""
        return self.recipe.steps if self.samples is None else self.recipe.total_steps(self.samples)

    @property
    def unseen(self) -> int:
        """Samples at the end of the last pass that do not fill a step; 0 while the count of a file is unknown."""
        return 0 if self.samples is None else self.recipe.unseen(self.samples)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step at most."""
        return self.recipe.batch.samples * self.recipe.max_length

    @property
    def beyond_positions(self) -> str | None:
        """Sentence about positions of the longest sample that the model was not trained for; None within its range.

        With strides, the sample is taken to be all images at the largest of them.
        """
        recipe = self.recipe
        largest = max(recipe.stride_choices) if recipe.strides == "random" else recipe.strides
        share = 1.0 if largest is None else min(1.0, float(largest) / self.tokens_per_image)
        return beyond_range(self.spec.language, math.ceil(recipe.max_length * share), "a sample of max_length")

    @property
    def groups(self) -> int:
        """Data-parallel groups of processes that hold a row together."""
        return self.processes // self.recipe.sequence_parallel.size

    @property
    def samples_per_group(self) -> int:
        """Samples of a step for each group, rounded up."""
        return -(-self.recipe.batch.samples // self.groups)

    @property
    def gb_weights(self) -> float:
        """GB of weights in the precision of training."""
        parts = self.processes if self.recipe.zero_stage == 3 else 1
        return sum(self.parameters.values()) * self._width / parts / GB

    @property
    def gb_gradients(self) -> float:
        """GB of gradients."""
        parts = self.processes if self.recipe.zero_stage >= 2 else 1
        return sum(self.trainable.values()) * self._width / parts / GB

    @property
    def gb_optimizer(self) -> float:
        """GB of AdamW's two moments, with the float32 weights that it keeps beside bfloat16 ones."""
        states = 12 if self.recipe.precision == "bfloat16" else 8
        parts = self.processes if self.recipe.zero_stage >= 1 else 1
        return sum(self.trainable.values()) * states / parts / GB

    @property
    def gb_states(self) -> float:
        """GB of weights, gradients and optimizer states."""
        return self.gb_weights + self.gb_gradients + self.gb_optimizer

    @property
    def _width(self) -> int:
        return 2 if self.recipe.precision == "bfloat16" else 4

    @cached_property
    def costs(self) -> ModelCosts:
        """FLOPs and activations of the model, on any machine."""
        return ModelCosts(self.model, self.recipe)

    @cached_property
    def estimate(self) -> Estimate:
        """Bytes, FLOPs, transfers and hours on the machine; `fix` is the smallest change that fits where it does not.

        Raises UnknownName for a machine that is not in the table.
        """
        found = self._estimate(self.tokens_per_sample, self.steps)
        if not found.problems:
            return found
        machine = get_machine(self.machine)
        change = smallest_change(self.recipe, self.costs, machine, self.machine, self.nodes, self.gpus_per_node)
        return replace(found, fix=change)

    def _estimate(self, tokens_per_sample: float | None, steps: int | None) -> Estimate:
        return estimate_fit(
            self.recipe,
            self.costs,
            get_machine(self.machine),
            self.machine,
            nodes=self.nodes,
            gpus_per_node=self.gpus_per_node,
            steps=steps,
            tokens_per_sample=tokens_per_sample,
        )

    @cached_property
    def point(self) -> Point | None:
        """The published run of this recipe, the one on as many GPUs where there are several; None without any."""
        return nearest_point(self.recipe.name, self.processes)

    @cached_property
    def expected(self) -> Estimate | None:
        """The estimate at the mean length that is given, or known of the published run; None without either."""
        tokens = self.tokens_per_sample or (self.point.our_tokens if self.point else None)
        return None if tokens is None else self._estimate(tokens, self._known_steps)

    @cached_property
    def bound(self) -> Estimate:
        """The estimate if every sample had `max_length` tokens."""
        return self._estimate(None, self._known_steps)

    @property
    def _known_steps(self) -> int | None:
        """Steps of the run; while files are not here, those of the published run."""
        return self.steps or (self.point.steps if self.point else None)

    @property
    def faults(self) -> list[Fault]:
        """All that is wrong with the recipe or its data on `processes` processes."""
        return self.faults_on(self.processes)

    def faults_on(self, processes: int) -> list[Fault]:
        """Return all that is wrong with the recipe or its data, as a run on that many processes would find it."""
        return [*arithmetic_faults(self.recipe, self.spec, processes), *self._other_faults]

    @cached_property
    def _other_faults(self) -> list[Fault]:
        found: list[Fault] = []
        try:
            parameter_groups(self.model, self.recipe.optimizer)
        except ConfigError as error:
            found.append({"what": "recipe", "found": error.found, "fix": "correct the patterns"})
        return [*found, *data_faults(self.recipe, self.mixture)]

    @property
    def missing(self) -> list[Fault]:
        """What is missing here to run the recipe as published: weights, data, hardware, disk space."""
        return self.missing_for(None, None)

    def missing_for(self, gpus: int | None, here: int | None) -> list[Fault]:
        """Return what is missing for a launch on `gpus` GPUs, `here` of them here; see `missing_hardware`."""
        return [*self._missing_files, *missing_hardware(self.recipe.hardware, gpus, here), *missing_disk()]

    @cached_property
    def _missing_files(self) -> list[Fault]:
        return missing_files(self.recipe, self._start if isinstance(self._start, CheckpointError) else None)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan for JSON, without the estimate."""
        return {
            "recipe": self.recipe.name,
            "parameters": self.parameters,
            "trainable": self.trainable,
            "tokens_per_image": self.tokens_per_image,
            "processes": self.processes,
            "zero_stage": self.recipe.zero_stage,
            "gb_weights": self.gb_weights,
            "gb_gradients": self.gb_gradients,
            "gb_optimizer": self.gb_optimizer,
            "samples": self.samples,
            "steps": self.steps,
            "unseen": self.unseen,
            "tokens_per_step": self.tokens_per_step,
            "beyond_positions": self.beyond_positions,
            "lacking": self.missing,
            "gb_states": self.gb_states,
        }
