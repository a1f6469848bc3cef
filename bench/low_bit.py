"""New tokens of the language model of InternVL2-2B in its published size, packed, in int8 and in int4.

Random weights, one row, one prompt of 64 tokens; the head (92,553 x 2,048) is int8 beside int4. The peer is the same
model in bfloat16 with torch's own linear layers. Companion: bytes of the weights that a token reads; difference of the
logits, as a part of their norm.
"""

from typing import Any

import torch
from harness import paired, report
from torch import nn

from vlm.models import load_preset
from vlm.models.checkpoint.placement import HEAD, quantizations, quantized_linears, replace_module
from vlm.models.linear.low_bit import BITS, LowBitLinear
from vlm.models.linear.packed import PackedLinear
from vlm.models.vlm import make_model

PROMPT, NEW = 64, 8


def filled(spec: Any) -> Any:
    """The model in bfloat16 with random weights of the usual sizes."""
    with torch.device("meta"):
        model = make_model(spec)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in list(model.language_model.named_parameters()):
        module, leaf = model.language_model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        values = torch.empty(parameter.shape, dtype=torch.bfloat16)
        values.fill_(1) if values.dim() == 1 else values.uniform_(-0.035, 0.035, generator=generator)
        setattr(module, leaf, nn.Parameter(values, requires_grad=False))
    return model.eval()


def replaced(whole: Any, spec: Any, weights: str) -> Any:
    """The same model with other linear layers; the other weights are shared."""
    with torch.device("meta"):
        model = make_model(spec)
    kinds = quantizations(model, weights) if weights in BITS else dict.fromkeys([*quantized_linears(model), HEAD], "")
    for name, kind in kinds.items():
        old: Any = model.get_submodule(name)
        part = LowBitLinear(old, BITS[kind]) if kind else PackedLinear(old)
        part.pack(whole.get_submodule(name).weight)
        replace_module(model, name, part)
    for name, parameter in whole.language_model.named_parameters(prefix="language_model"):
        parent, _, leaf = name.rpartition(".")
        if parent not in kinds:
            setattr(model.get_submodule(parent), leaf, parameter)
    return model.eval()


def read_bytes(model: Any) -> int:
    """Bytes of all weights of the language model but the embedding, of which a token reads one row."""
    tensors = [*model.language_model.parameters(), *model.language_model.buffers()]
    embedding = model.language_model.get_input_embeddings().weight
    return sum(t.numel() * t.element_size() for t in tensors if t is not embedding)


@torch.inference_mode()
def main() -> None:
    spec = load_preset("internvl2-2b")
    whole = filled(spec)
    ids = torch.randint(10, 300, (1, PROMPT), generator=torch.Generator().manual_seed(1))
    prefixes: dict[int, Any] = {}

    def answer(model: Any) -> Any:
        if id(model) not in prefixes:
            prefixes[id(model)] = model.prefill(ids)
        return model.generate(
            ids[:, :1],
            prefix=prefixes[id(model)],
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            return_dict_in_generate=True,
            output_logits=True,
        )

    rows = []
    for name in ("bfloat16, packed", *BITS):
        model = replaced(whole, spec, name)
        found, wanted = (torch.stack(answer(m).logits[:1]).float() for m in (model, whole))
        rows.append(
            {
                "weights": name,
                "bytes_read": read_bytes(model),
                "peer_bytes_read": read_bytes(whole),
                "logit_difference": ((found - wanted).norm() / wanted.norm()).item(),
                **paired(lambda model=model: answer(model), lambda: answer(whole), 3),
            }
        )
        del model
    assert rows[0]["logit_difference"] == 0
    assert all(row["bytes_read"] < row["peer_bytes_read"] for row in rows[1:])
    report("low_bit", rows)


if __name__ == "__main__":
    main()
