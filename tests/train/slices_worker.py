"""One of two ranks that load models as ZeRO-3 does, in slices, and whole, and report what they saw.

test_train_slices.py gives the names in capitals through runpy.
"""
# ruff: noqa: F821

import gc
import json
import os
import time
from pathlib import Path

os.environ.update(ENV)

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from vlm.models.checkpoint.load import load_model
from vlm.train.parameters.lora import prepare
from vlm.train.parameters.optim import parameter_groups
from vlm.train.recipe.recipe import load_recipe
from vlm.train.run import engine
from vlm.train.run.processes import world

torch.set_num_threads(1)
me = world()
deepspeed = engine.import_deepspeed(me)
make_config = engine.config


def settled(collective):
    """Returns when gloo's thread has let go of the tensor: what is freed there, the profiler does not see."""

    def call(tensor, *args, **kwargs):
        held = tensor._use_count()
        result = collective(tensor, *args, **kwargs)
        while tensor._use_count() > held:
            time.sleep(0)
        return result

    return call


def config(*given):
    """Without DeepSpeed's buffers of 2 GB, which are the same however the model is loaded."""
    made = make_config(*given)
    made["zero_optimization"] |= {"reduce_bucket_size": 1000, "stage3_prefetch_bucket_size": 1000}
    return made


engine.config = config
dist.broadcast = settled(dist.broadcast)


def recipe(*overrides):
    return load_recipe(RECIPE, overrides=("zero.stage=3", *overrides))


def in_slices(folder, given):
    return load_model(folder, placed=engine.slicer(given, me))


def compared(folder, given):
    """Names that differ between both ways, and the greatest share of a parameter that stays here."""
    whole, sliced = load_model(folder), in_slices(folder, given)
    dtype = getattr(torch, given.precision)
    wanted = dict(whole.named_parameters())
    found = dict(sliced.named_parameters())
    assert list(found) == list(wanted)
    here = max(p.ds_tensor.numel() / p.ds_numel for p in found.values() if p.ds_numel >= 64)
    assert not any(p.numel() for p in found.values())
    wrong = []
    for name, parameter in found.items():
        with deepspeed.zero.GatheredParameters([parameter]):
            if parameter.dtype != dtype or not torch.equal(parameter, wanted[name].to(dtype)):
                wrong.append(name)
    buffers = dict(sliced.named_buffers())
    wrong += [name for name, t in whole.named_buffers() if not torch.equal(t, buffers[name])]
    tied = sliced.language_model.lm_head.weight is sliced.language_model.model.embed_tokens.weight
    return {"wrong": wrong, "share": here, "tied": tied, "training": sliced.training}


def groups(model, given):
    """Trained parameters of each part, and the names of each optimizer group."""
    counts = prepare(model, given)
    names = {p: n for n, p in model.named_parameters()}
    split = [
        [g["weight_decay"], *sorted(names[p] for p in g["params"])] for g in parameter_groups(model, given.optimizer)
    ]
    return [counts, split]


def peak(load):
    """Peak bytes of what `load` allocates, those inside kernels too; mapped files are none."""
    gc.collect()  # nothing older may be freed meanwhile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        kept = load()
    mapped = {file.stat().st_size for file in Path(WIDE).glob("*.safetensors")}
    now = most = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]" and abs(event.nbytes()) not in mapped:
            now += event.nbytes()
            most = max(most, now)
    del kept
    return most


def whole_way(given):
    """As it was: all of it, then DeepSpeed cuts it up."""
    model = load_model(WIDE)
    prepare(model, given)
    return engine.Engine(model, given, me)


def sliced_way(given):
    model = in_slices(WIDE, given)
    prepare(model, given)
    return engine.Engine(model, given, me)


plain, half = recipe(), recipe("precision=bfloat16")
adapters = recipe('lora={"rank": 2, "alpha": 4, "targets": ["language_model.*_proj"]}', "trainable=[projector.*]")
few = recipe("trainable=[projector.*]")
report = {
    "compared": {folder: compared(folder, plain) for folder in FOLDERS},
    "bfloat16": compared(FOLDERS[0], half),
    "groups": [
        [groups(load_model(FOLDERS[0]), given), groups(in_slices(FOLDERS[0], given), given)]
        for given in (plain, adapters)
    ],
    "peaks": {"load": peak(lambda: in_slices(WIDE, few)), "all": peak(lambda: sliced_way(few))}
    | {"whole": peak(lambda: whole_way(few))},
}
Path(OUT).with_suffix(f".{me.rank}.json").write_text(json.dumps(report))
