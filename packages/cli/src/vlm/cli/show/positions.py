"""The line that says which positions a command uses, and why: V2PE is never off in silence."""

from vlm.models.specs import ModelSpec


def positions_line(spec: ModelSpec, asked: float | str | None = "model") -> str:
    """Return which positions a checkpoint is used with, and why. `asked`: as `--stride`, "model" where it is not given.

    >>> from vlm.models.specs import load_preset
    >>> positions_line(load_preset("tiny-internvl2"))
    'positions: 0, 1, 2, ... (the checkpoint says nothing of V2PE; --stride turns it on)'
    """
    drawn = spec.stride_choices
    if drawn:
        trained = f"trained with random strides from {min(drawn):g} to {max(drawn):g}"
    else:
        trained = f"its own stride is {spec.strides:g}" if spec.strides else "the checkpoint says nothing of V2PE"
    if asked == "model":
        if spec.strides is None and drawn is not None:
            return "positions: V2PE, but the checkpoint names no stride; --stride chooses one"
        if spec.strides is None:
            return f"positions: 0, 1, 2, ... ({trained}; --stride turns it on)"
        return f"positions: V2PE, stride {spec.strides:g} (" + (
            f"default; {trained})" if drawn else "the checkpoint's)"
        )
    return f"positions: {'0, 1, 2, ...' if asked is None else f'V2PE, stride {asked:g}'} (--stride; {trained})"
