"""The model on rows that a group of processes holds together: each runs its share of the tokens, tiles and labels.

>>> spread(model, group, "ring")                                                             # doctest: +SKIP
>>> model(input_ids, cu_seqlens=borders, labels=labels, ...).loss.backward()                 # doctest: +SKIP

Every process of the group is given the same whole row. The losses that they return add up to the loss of the row, and
the gradients of their parameters, added up, are its gradients: nothing else has to be known of the split outside.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm.core.errors import ConfigError, DataError, UnknownName
from vlm.models.attention import PACKED, check_packed
from vlm.models.language import document_positions
from vlm.models.loss import shifted, weighted_cross_entropy
from vlm.models.sequence.group import SequenceGroup
from vlm.models.sequence.sharding import LAYOUTS, Shard, owners
from vlm.models.sequence.ulysses import key_copies
from vlm.models.vlm import Output, VisionLanguageModel

TILES = 32
"""Tiles that are encoded at once where no gradients are kept."""


def spread(model: VisionLanguageModel, group: SequenceGroup, kind: str = "ring") -> None:
    """Have `model` run rows together with the other processes of `group`; weights and their names stay the same.

    Raises:
        UnknownName: a kind that is not in `layout.LAYOUTS`. ConfigError: ulysses with heads that do not divide.
    """
    if kind not in LAYOUTS:
        raise UnknownName("sequence_parallel kind", kind, LAYOUTS)
    if kind == "ulysses":
        key_copies(model.spec.language.heads, model.spec.language.kv_heads, group.size)
    model.__class__ = SpreadModel
    assert isinstance(model, SpreadModel)
    model.group = group
    model.set_attention(kind)


class SpreadModel(VisionLanguageModel):
    """See `spread`."""

    group: SequenceGroup

    def forward(
        self,
        input_ids: Tensor,
        *,
        pixel_values: Tensor | None = None,
        image_flags: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        loss_weights: Tensor | None = None,
        loss_denominator: float | Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        logits: bool = True,
    ) -> Output:
        """This process's share of a packed row; the arguments are those of the whole row. `pixel_values` may stay on
        the CPU: what is encoded here is moved.

        `loss` is the share of the row's: without `loss_denominator`, of sum(w * CE) / sum(w) over the whole row.
        `logits` [1, n, V] are of the held tokens (`layout.Shard.places`), padding among them.

        Raises:
            ConfigError: a padded batch. DataError: borders or images that do not fit the ids.
        """
        if cu_seqlens is None or attention_mask is not None:
            raise ConfigError(
                "a padded batch for a group of processes", expected="a packed row with cu_seqlens and no attention_mask"
            )
        if pixel_values is not None and image_flags is not None:
            pixel_values = pixel_values[image_flags.flatten().to(pixel_values.device) == 1]
        hidden, shard = self.held_states(input_ids, pixel_values, position_ids, cu_seqlens)
        out = Output()
        if labels is not None:
            out.loss = self.share_of_loss(hidden, labels, loss_weights, loss_denominator, cu_seqlens, shard)
        if logits:
            out.logits = self.language_model.lm_head(hidden)
        return out

    def held_states(
        self, input_ids: Tensor, pixel_values: Tensor | None, position_ids: Tensor | None, cu_seqlens: Tensor
    ) -> tuple[Tensor, Shard]:
        """Last hidden states [1, n, C] of the tokens that this process holds, and where in the row they stand."""
        check_packed(cu_seqlens, input_ids[..., None])
        shard = LAYOUTS[self.attention](cu_seqlens, self.group.rank, self.group.size)
        features = self.held_features(input_ids, pixel_values, cu_seqlens)
        counting, length = document_positions(cu_seqlens)
        position_ids = counting if position_ids is None else position_ids
        if not position_ids.is_floating_point():  # rotary scaling goes by the length of the whole document
            position_ids = torch.stack([position_ids, length.expand_as(position_ids)], dim=-1)
        hidden = self.language_model.model(
            inputs_embeds=self.embed(shard.take(input_ids, 0), features=features[None]),
            attention_mask=PACKED.to(features.device),
            position_ids=shard.take(position_ids, 0),
            cu_seqlens=shard.borders,
            group=self.group,
            use_cache=False,
        ).last_hidden_state
        return hidden, shard

    def share_of_loss(
        self,
        hidden: Tensor,
        labels: Tensor,
        loss_weights: Tensor | None,
        denominator: float | Tensor | None,
        cu_seqlens: Tensor,
        shard: Shard,
    ) -> Tensor:
        """Labels are shifted in the whole row, then split: the successor of a chunk's last token is on another process.

        Every process has the labels of the whole row, so the denominator needs no collective.
        """
        target, weight = shifted(labels, loss_weights, cu_seqlens)
        denominator = weight.sum() if denominator is None else denominator
        target, weight = shard.take(target, -100), shard.take(weight, 0)
        total = weighted_cross_entropy(hidden, self.language_model.lm_head, target, weight)
        return total / torch.as_tensor(denominator).clamp(min=1e-12)

    def held_features(self, input_ids: Tensor, pixel_values: Tensor | None, cu_seqlens: Tensor) -> Tensor:
        """[n, C]: features of the image tokens that this process holds, each tile encoded by one process of the group.

        Tiles are split evenly, in their order; a process without one encodes a black tile (its collectives stay in
        step), and nobody takes its features. What a tile's tokens need goes to their holders alone.
        """
        size, rank = self.group.size, self.group.rank
        tiles = 0 if pixel_values is None else len(pixel_values)
        placeholder = (input_ids == self.spec.image_tokens.context_id)[0].cpu()
        share = max(1, -(-tiles // size))
        if pixel_values is None:
            pixel_values = torch.zeros(0, 3, self.image_size, self.image_size)
        mine = pixel_values[rank * share : (rank + 1) * share].to(input_ids.device)
        mine = F.pad(mine, (0, 0) * (mine.dim() - 1) + (0, share - len(mine)))
        # in training all at once: under ZeRO-3 each call gathers the weights anew
        features = self.encode_images(mine, chunk=None if torch.is_grad_enabled() else TILES)
        tokens, features = features.shape[1], features.flatten(0, 1)
        if (slots := int(placeholder.sum())) != tiles * tokens:
            raise DataError(
                f"{slots} image placeholders in the ids but {tiles} tiles x {tokens} tokens (flags applied)",
                expected="one feature for each placeholder",
                fix="pass the pixels of exactly the images in the ids",
            )
        if tiles == 0:
            return features[:0]
        holder = owners(cu_seqlens, size, LAYOUTS[self.attention])[placeholder]
        maker = torch.arange(len(holder)) // (share * tokens)
        to = holder[maker == rank]
        send = to.bincount(minlength=size).tolist()
        receive = maker[holder == rank].bincount(minlength=size).tolist()
        order = to.argsort(stable=True).to(features.device)
        return self.group.exchange(features[order], send, receive)
