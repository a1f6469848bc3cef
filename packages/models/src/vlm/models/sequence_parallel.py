"""Rows that a group of processes holds together: each process runs its share of the tokens, tiles and labels.

>>> spread(model, group, "ring")                                                             # doctest: +SKIP
>>> model(input_ids, cu_seqlens=borders, labels=labels, ...).loss.backward()                 # doctest: +SKIP

Every process of the group is given the same whole row. The losses that they return add up to the loss of the row, and
the gradients of their parameters, added up, are its gradients: no other code needs to know of the split.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm.core.errors import ConfigError, DataError, UnknownName
from vlm.models.attention import PACKED, check_packed
from vlm.models.attention.ulysses import key_copies
from vlm.models.batch import Batch, Output, upload
from vlm.models.language import with_lengths
from vlm.models.loss import shifted, weighted_cross_entropy
from vlm.models.sequence.group import SequenceGroup
from vlm.models.sequence.sharding import LAYOUTS, TokenShard, owners
from vlm.models.vision.whole import Grids, as_pairs, image_shares
from vlm.models.vlm import VisionLanguageModel

TILES = 32
"""Tiles that are encoded at once where no gradients are kept."""


def spread(model: VisionLanguageModel, group: SequenceGroup, kind: str = "ring") -> "SharedRows":
    """Make `model` run rows together with the other processes of `group`; weights and their names stay the same.

    Raises:
        UnknownName: a kind that is not in `sharding.LAYOUTS`. ConfigError: ulysses with heads that do not divide.
    """
    if kind not in LAYOUTS:
        raise UnknownName("sequence_parallel kind", kind, LAYOUTS)
    if kind == "ulysses":
        key_copies(model.spec.language.heads, model.spec.language.kv_heads, group.size)
    model.set_attention(kind)
    rows = SharedRows(group)
    model.run_rows = rows
    return rows


@dataclass(frozen=True)
class SharedRows:
    """A forward pass over rows that a group of processes holds: see `spread`."""

    group: SequenceGroup

    def __call__(self, model: VisionLanguageModel, batch: Batch) -> Output:
        """Run this process's share of a packed row; the batch is that of the whole row.

        `pixel_values` may stay on the CPU: what is encoded here is moved. `loss` is the share of the row's: without
        `loss_denominator`, of sum(w * CE) / sum(w) over the whole row. `logits` [1, n, V] are of the held tokens
        (`sharding.TokenShard.places`), padding among them.

        Raises:
            ConfigError: a padded batch. DataError: borders or images that do not fit the ids.
        """
        if batch.cu_seqlens is None or batch.attention_mask is not None:
            raise ConfigError(
                "a padded batch for a group of processes", expected="a packed row with cu_seqlens and no attention_mask"
            )
        pixel_values = batch.pixel_values
        if pixel_values is not None and batch.image_flags is not None:
            pixel_values = pixel_values[batch.image_flags.flatten().to(pixel_values.device) == 1]
        hidden, shard = self.held_states(
            model,
            batch.input_ids,
            pixel_values,
            batch.position_ids,
            batch.cu_seqlens,
            batch.image_grids,
            batch.encoder_calls,
        )
        out = Output()
        if batch.labels is not None:
            out.loss = share_of_loss(model, hidden, batch, shard)
        if batch.logits:
            out.logits = model.language_model.lm_head(hidden)
        return out

    def held_states(
        self,
        model: VisionLanguageModel,
        input_ids: Tensor,
        pixel_values: Tensor | None,
        position_ids: Tensor | None,
        cu_seqlens: Tensor,
        grids: Grids | None = None,
        calls: int = 0,
    ) -> tuple[Tensor, TokenShard]:
        """Return the last hidden states [1, n, C] of the tokens that this process holds, and their places."""
        cu_seqlens = cu_seqlens.cpu()
        check_packed(cu_seqlens, input_ids[..., None])
        shard = LAYOUTS[model.attention](cu_seqlens, self.group.rank, self.group.size)
        features = self.held_features(model, input_ids, pixel_values, cu_seqlens, grids, calls)
        position_ids = with_lengths(position_ids, cu_seqlens, input_ids.device)
        hidden = model.language_model.model(
            inputs_embeds=model.embed(shard.take(input_ids, 0), features=features[None]),
            attention_mask=upload(PACKED, features.device),
            position_ids=shard.take(position_ids, 0),
            cu_seqlens=shard.borders,
            group=self.group,
            use_cache=False,
        ).last_hidden_state
        return hidden, shard

    def held_features(
        self,
        model: VisionLanguageModel,
        input_ids: Tensor,
        pixel_values: Tensor | None,
        cu_seqlens: Tensor,
        grids: Grids | None = None,
        calls: int = 0,
    ) -> Tensor:
        """Return features [n, C] of the image tokens that this process holds; each tile is encoded by one process.

        Tiles are split evenly, in their order; a process without one encodes a black tile (its collectives stay in
        step), and its features are not used. Each feature goes only to the process that holds its token. Of whole
        images (`grids`) each is encoded by one process.
        """
        size, rank = self.group.size, self.group.rank
        tiles = 0 if pixel_values is None else len(pixel_values)
        placeholder = (input_ids == model.spec.image_tokens.context_id)[0].cpu()
        share = max(1, -(-tiles // size))
        if pixel_values is None:
            pixel_values = torch.zeros(0, 3, model.image_size, model.image_size)
        # in training all at once: under ZeRO-3 each call gathers the weights again
        chunk = None if torch.is_grad_enabled() else TILES
        if grids is None:
            maker = torch.arange(tiles) // share
            mine = upload(pixel_values[rank * share : (rank + 1) * share], input_ids.device)
            mine = F.pad(mine, (0, 0) * (mine.dim() - 1) + (0, share - len(mine)))
            features = model.encode_images(mine, chunk)
        else:
            maker = makers(grids, size, tiles)
            mine = upload(pixel_values[maker == rank], input_ids.device)
            own = [as_pairs(grids)[i] for i in image_shares(grids, size)[rank]]
            if not own:
                mine, own = mine.new_zeros(1, *mine.shape[1:]), [(1, 1)]
            features = model.encode_images(mine, chunk, own, calls)
        tokens, features = features.shape[1], features.flatten(0, 1)
        if (slots := int(placeholder.sum())) != tiles * tokens:
            raise DataError(
                f"{slots} image placeholders in the ids but {tiles} tiles x {tokens} tokens (flags applied)",
                expected="one feature for each placeholder",
                fix="pass the pixels of exactly the images in the ids",
            )
        if tiles == 0:
            return features[:0]
        holder = owners(cu_seqlens, size, LAYOUTS[model.attention])[placeholder]
        maker = maker.repeat_interleave(tokens)
        to = holder[maker == rank]
        send = to.bincount(minlength=size).tolist()
        receive = maker[holder == rank].bincount(minlength=size).tolist()
        order = to.argsort(stable=True).to(features.device)
        return self.group.exchange(features[order], send, receive)


def makers(grids: Grids, size: int, cells: int) -> Tensor:
    """Return the process that encodes each cell of whole images, int64 [cells].

    Raises:
        DataError: the grids do not add up to the cells.
    """
    pairs = as_pairs(grids)
    counts = [sum(pairs[i][0] * pairs[i][1] for i in share) for share in image_shares(pairs, size)]
    if sum(counts) != cells:
        raise DataError(f"{cells} cells for grids of {sum(counts)}", expected="columns x rows cells for each image")
    return torch.arange(size).repeat_interleave(torch.tensor(counts))


def share_of_loss(model: VisionLanguageModel, hidden: Tensor, batch: Batch, shard: TokenShard) -> Tensor:
    """Return this process's share of the row's loss.

    Labels are shifted in the whole row, then split: the successor of a chunk's last token is on another process. Every
    process has the labels of the whole row, so the denominator needs no collective.
    """
    assert batch.labels is not None
    target, weight = shifted(batch.labels, batch.loss_weights, batch.cu_seqlens)
    denominator = weight.sum() if batch.loss_denominator is None else batch.loss_denominator
    target, weight = shard.take(target, -100), shard.take(weight, 0)
    total = weighted_cross_entropy(hidden, model.language_model.lm_head, target, weight)
    return total / torch.as_tensor(denominator).clamp(min=1e-12)
