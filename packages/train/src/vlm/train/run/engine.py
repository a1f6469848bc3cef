"""The DeepSpeed engine behind a small face: one configuration, one `backward`, one `step`."""

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vlm.models.checkpoint.placement import DTYPES
from vlm.models.vlm import VisionLanguageModel
from vlm.train.parameters.optim import make_optimizer
from vlm.train.recipe.recipe import Recipe
from vlm.train.run.processes import World


def config(recipe: Recipe) -> dict[str, Any]:
    """DeepSpeed's configuration. Accumulation is counted by the loop (rows of a step vary), so it is 1 here."""
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
    """The library, told what it must know before its first use."""
    if world.device.type == "cpu":  # else it warns on standard output, where our results go
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a compile of minutes, for CPU only
    return deepspeed


def slicer(recipe: Recipe, world: World) -> Callable[[nn.Parameter], None]:
    """For ZeRO-3: leaves of a parameter the slice of this process, in the precision of training.

    All processes call it with the same parameters in the same order; the values are those of the first process.
    """
    deepspeed, made, dtype = import_deepspeed(world), config(recipe), DTYPES[recipe.precision]

    def keep_slice(parameter: nn.Parameter) -> None:
        # a copy, because it may be a mapped file, and the first process's values are written over the others'
        parameter.data = parameter.data.to(dtype, copy=True, memory_format=torch.contiguous_format)
        deepspeed.zero.Init(module=nn.ParameterList([parameter]), config_dict_or_path=made)

    return keep_slice


class Engine:
    """A model under DeepSpeed. Losses handed to `backward` are already divided by the global weight of the step."""

    def __init__(self, model: VisionLanguageModel, recipe: Recipe, world: World):
        self.world = world
        self.deepspeed, self.optimizer, _, _ = import_deepspeed(world).initialize(
            model=model,
            optimizer=make_optimizer(model, recipe.optimizer, on_host=recipe.zero.offload),
            config=config(recipe),
            dist_init_required=False,
        )
        self.model: VisionLanguageModel = self.deepspeed.module

    def set_lr_factor(self, factor: float) -> float:
        """Scale each group's base rate; returns the first group's rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        return self.optimizer.param_groups[0]["lr"]

    def accumulate(self, batch: dict[str, Tensor | None], denominator: float, last: bool) -> float:
        """Forward and backward of one row; returns its share of the step's loss."""
        self.deepspeed.set_gradient_accumulation_boundary(last)
        loss = self.deepspeed(**batch, loss_denominator=denominator, logits=False).loss
        # DeepSpeed averages gradients over all processes, data x sequence; the losses are shares of one sum over them
        self.deepspeed.backward(loss * self.world.size, scale_wrt_gas=False)
        return loss.item()

    def step(self) -> float:
        """Clip, update, clear; returns the gradient norm before clipping."""
        plain = [p.grad for p in self.model.parameters() if p.grad is not None]
        before = torch.nn.utils.get_total_norm(plain) if plain else None  # ZeRO 0 keeps plain gradients, and no norm
        self.deepspeed.step()
        norm = self.deepspeed.get_global_grad_norm()
        norm = before if norm is None else norm
        return 0.0 if norm is None else float(norm)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout and drop path depend on (seed, step, rank) alone, so a resumed run repeats them."""
    torch.manual_seed((seed * 1_000_003 + step) * 1_009 + rank)
