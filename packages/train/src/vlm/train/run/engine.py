"""The DeepSpeed engine behind a small interface; the only module that knows DeepSpeed.

>>> engine = Engine(model, recipe, me)                                                      # doctest: +SKIP
>>> loss = engine.accumulate(batch, denominator=40.0, last=True); norm = engine.step()      # doctest: +SKIP
"""

import logging
import os
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm.core.errors import CheckpointError
from vlm.models.checkpoint.placement import DTYPES
from vlm.models.vlm import VisionLanguageModel
from vlm.train.parameters.optim import make_optimizer
from vlm.train.recipe.recipe import Recipe
from vlm.train.run.processes import World

Shapes = list[dict[str, torch.Size]]
"""Name -> shape of the trained parameters, group by group, in the order in which they lie."""


def config(recipe: Recipe) -> dict[str, Any]:
    """Return DeepSpeed's configuration. The loop counts the rows of a step, so accumulation is 1 here."""
    zero: dict[str, Any] = {"stage": recipe.zero_stage}
    if recipe.zero.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": recipe.optimizer.clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's AdamW: DeepSpeed's own would be compiled for minutes
        "zero_force_ds_cpu_optimizer": False,  # so also where it works on the host
        "bf16": {"enabled": recipe.precision == "bfloat16"},
        "steps_per_print": 10**9,
    }


def import_deepspeed(world: World) -> Any:
    """Import the library with the settings that it must have before its first use."""
    if world.device.type == "cpu":  # else it warns on standard output, where our results go
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a compile of minutes, for CPU only
    return deepspeed


def load_saved(path: str | Path, map_location: Any = "cpu", *, mmap: bool | None = None) -> dict[str, Any]:
    """Return what `Engine.save` wrote to one file: tensors, plain values, and DeepSpeed's three classes.

    Nothing in the file is executed, whoever wrote it and its manifest.

    Args:
        path: a `.pt` file of a training checkpoint.
        map_location: as of `torch.load`.
        mmap: map the tensors instead of reading them.

    Raises:
        CheckpointError: damaged, or it holds anything else.
    """
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    allowed = [LossScaler, ZeroStageEnum, fragment_address]
    try:
        with torch.serialization.safe_globals(allowed):
            state = torch.load(path, map_location=map_location, mmap=mmap, weights_only=True)
    except (
        pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError,
    ) as error:  # fmt: skip
        raise CheckpointError(
            f"{path} is refused, nothing in it was run: {str(error).splitlines()[0] if str(error) else error!r}",
            expected=f"tensors, plain values and {', '.join(c.__name__ for c in allowed)}",
            fix="do not resume from files that others have changed: delete this checkpoint, or start in a new folder",
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(
            f"{path} holds a {type(state).__name__}",
            expected="a dict, as a training run saves it",
            fix="delete this checkpoint, or start in a new folder",
        )
    return state


def slicer(recipe: Recipe, world: World) -> Callable[[nn.Parameter], None]:
    """Return a function that leaves this process its ZeRO-3 slice of a parameter, in the precision of training.

    All processes call it with the same parameters in the same order; the values are those of the first process.
    """
    deepspeed, made, dtype = import_deepspeed(world), config(recipe), DTYPES[recipe.precision]

    def keep_slice(parameter: nn.Parameter) -> None:
        # a copy, because it may be a mapped file, and the first process's values are written over the others'
        parameter.data = parameter.data.to(dtype, copy=True, memory_format=torch.contiguous_format)
        deepspeed.zero.Init(module=nn.ParameterList([parameter]), config_dict_or_path=made)
        parameter.whole_shape = parameter.ds_shape  # type: ignore[attr-defined]  # both are set on the object

    return keep_slice


@dataclass(frozen=True)
class ZeroSlices:
    """What this process holds of a run under ZeRO-1 to 3.

    `shapes`: the trained parameters. `state`: optimizer state as DeepSpeed saves it. `padded`: for each group the
    elements of its slice with padding, None under ZeRO-3, where each parameter is cut for itself.
    """

    stage: int
    shapes: Shapes
    state: dict[str, Any]
    padded: list[int] | None


class Engine:
    """A model under DeepSpeed. Losses handed to `backward` are already divided by the global weight of the step."""

    def __init__(self, model: VisionLanguageModel, recipe: Recipe, world: World):
        self.world = world
        self._deepspeed, self.optimizer, _, _ = import_deepspeed(world).initialize(
            model=model,
            optimizer=make_optimizer(model, recipe.optimizer, on_host=recipe.zero.offload),
            config=config(recipe),
            dist_init_required=False,
        )
        self._deepspeed.checkpoint_engine.load = self._load_file  # DeepSpeed's own would execute what a file asks for
        self.model: VisionLanguageModel = self._deepspeed.module
        self._deepspeed.train()

    @property
    def zero_stage(self) -> int:
        """The ZeRO stage in effect."""
        return int(self._deepspeed.zero_optimization_stage())

    def set_lr_factor(self, factor: float) -> float:
        """Scale each group's base rate; return the first group's rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        return float(self.optimizer.param_groups[0]["lr"])

    def accumulate(self, batch: dict[str, Any], denominator: float, last: bool) -> Tensor:
        """Run one row forward and backward; return its share of the step's loss, float64 on the device.

        Reading it would let the host wait for the row before it prepares the next one.

        Args:
            batch: arguments of the model's forward.
            denominator: total weight of the step's labels over all processes.
            last: whether it is this process's last row of the step.
        """
        self._deepspeed.set_gradient_accumulation_boundary(last)
        loss: Tensor = self._deepspeed(**batch, loss_denominator=denominator, logits=False).loss
        # DeepSpeed averages gradients over all processes, data x sequence; the losses are shares of one sum over them
        self._deepspeed.backward(loss * self.world.size, scale_wrt_gas=False)
        share: Tensor = loss.detach().double()
        return share

    def measure(self, batch: dict[str, Any]) -> Tensor:
        """Return the weighted sum of the losses of one row, float64, without dropout; nothing is learned from it."""
        self._deepspeed.eval()
        try:
            with torch.no_grad():
                loss: Tensor = self._deepspeed(**batch, loss_denominator=1.0, logits=False).loss
                return loss.double()
        finally:
            self._deepspeed.train()

    def step(self) -> float:
        """Clip, update, clear; return the gradient norm before clipping."""
        plain = [p.grad for p in self.model.parameters() if p.grad is not None]
        before = torch.nn.utils.get_total_norm(plain) if plain else None  # ZeRO 0 keeps plain gradients, and no norm
        self._deepspeed.step()
        norm = self._deepspeed.get_global_grad_norm()
        norm = before if norm is None else norm
        return 0.0 if norm is None else float(norm)

    def save(self, folder: Path, tag: str, state: Mapping[str, Any]) -> None:
        """Write the trained weights, the optimizer and `state` to `folder`/`tag`, each process its part."""
        self._deepspeed.save_checkpoint(
            str(folder), tag=tag, client_state=dict(state), save_latest=False, exclude_frozen_parameters=True
        )

    def load(self, folder: Path, tag: str) -> dict[str, Any]:
        """Load what as many processes `save`d; return its `state`. Raises CheckpointError for a file not of ours."""
        _, state = self._deepspeed.load_checkpoint(str(folder), tag=tag, load_module_strict=False)
        return dict(state)

    def _load_file(self, path: str, map_location: Any = "cpu", *_: Any, **__: Any) -> dict[str, Any]:
        """Load one file for DeepSpeed, which itself passes over trained weights that are missing in it."""
        state = load_saved(path, map_location)
        if path.endswith("model_states.pt"):
            self._check_weights(state, path)
        return state

    def _check_weights(self, state: Mapping[str, Any], path: str) -> None:
        """Raise CheckpointError unless the saved weights are those that are trained now, by name and shape."""
        odd: list[str] = []
        if self.zero_stage < 3:  # ZeRO-3 leaves no weights there
            trained = {n: p for n, p in self.model.named_parameters(remove_duplicate=False) if p.requires_grad}
            shapes = {name: tensor.shape for name, tensor in state["module"].items()}
            odd += [name for name, p in trained.items() if shapes.get(name) != p.shape]
            odd += shapes.keys() - trained.keys() - {n for n, _ in self.model.named_buffers()}
        if self.zero_stage and [*map(dict, state["param_shapes"])] != [*map(dict, self.slices().shapes)]:
            odd.append("the groups of parameters")
        if odd:
            raise CheckpointError(
                f"{path} was saved while other parameters were trained: {min(odd)} differs, {len(odd)} in all",
                fix="continue with the recipe that saved it, or start in a new folder",
            )

    def settings(self) -> list[dict[str, Any]]:
        """Return rates, decay and all else that the recipe sets for each group of parameters."""
        return [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]

    def put_settings(self, settings: list[dict[str, Any]]) -> None:
        """Set what `settings` returned: a checkpoint brings those of the run that saved it."""
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)

    def slices(self) -> ZeroSlices:
        """Return this process's slices, as they are now."""
        zero, stage = self._deepspeed.optimizer, self.zero_stage
        shapes = self._deepspeed._get_zero_param_shapes()  # the method whose result is in checkpoints
        padded = None if stage == 3 else [group["params"][0].numel() for group in zero.optimizer.param_groups]
        return ZeroSlices(stage, shapes, zero.state_dict(), padded)

    def put_slices(self, state: dict[str, Any], module: Mapping[str, Tensor], counts: Mapping[str, int]) -> None:
        """Replace this process's slices.

        Args:
            state: optimizer state of this process, as in `ZeroSlices`.
            module: tensors of the model that are in no slice.
            counts: DeepSpeed's counters.
        """
        zero, sliced = self._deepspeed.optimizer, self.zero_stage == 3
        if sliced:
            zero.checkpoint_event_prologue()
        buffers = {name for name, _ in self.model.named_buffers()}
        kept = {k: v for k, v in module.items() if not sliced or k in buffers}  # ZeRO-3 leaves no weights there
        self.model.load_state_dict(kept, strict=False)
        zero.load_state_dict({self.world.rank: state}, load_from_fp32_weights=True)  # it takes the entry of our rank
        if sliced:
            zero.checkpoint_event_epilogue()
        for name, count in counts.items():
            setattr(self._deepspeed, name, count)

    def shapes(self) -> dict[str, Tensor]:
        """Return the state dict without memory, in float32 as `gathered` returns it."""
        return {
            name: torch.empty(getattr(tensor, "ds_shape", tensor.shape), dtype=self._stored(tensor), device="meta")
            for name, tensor in self._tensors()
        }

    def gathered(self, names: Sequence[str]) -> list[Tensor]:
        """Return whole tensors of the state dict in float32 on the first process, [] on others; all processes call it.

        They are gathered where ZeRO-3 holds slices; a float32 tensor that lies on the CPU already is not copied.
        """
        state = dict(self._tensors())
        sliced = [state[name] for name in names if hasattr(state[name], "ds_shape")]
        with import_deepspeed(self.world).zero.GatheredParameters(sliced):
            if not self.world.first:
                return []
            wide = [state[n].detach().to("cpu", self._stored(state[n])) for n in names]
            return [t.clone() for t in wide] if sliced else wide

    @staticmethod
    def _stored(tensor: Tensor) -> torch.dtype:
        return torch.float32 if tensor.is_floating_point() else tensor.dtype

    def _tensors(self) -> Iterable[tuple[str, Tensor]]:
        return self.model.state_dict(keep_vars=True).items()


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed dropout and drop path by (seed, step, rank) alone, so that a resumed run repeats them."""
    torch.manual_seed((seed * 1_000_003 + step) * 1_009 + rank)
