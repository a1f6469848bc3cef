"""The whole model: silent failures of this field, each made loud."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vlm.core.errors import DataError
from vlm.core.sample.positions import positions
from vlm.core.sample.records import image, read_record, text
from vlm.models.processor import load_processor


def v2pe(model, layout, stride) -> torch.Tensor:
    """Positions [1, n] of a layout without brackets."""
    return torch.from_numpy(positions(layout, model.tokens_per_tile, stride, brackets=False))[None]


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters()}


# image features -------------------------------------------------------------------------------------------------------


def test_features_stand_where_the_placeholders_are_in_reading_order(preset, tiny, prompt, tiles):
    model = tiny(preset)
    ids, pixels = prompt(model, 2, "image", 3, "image", 1), tiles(model, 2)
    features, embeddings = model.encode_images(pixels), model.embed(ids, pixels)
    n = model.tokens_per_tile
    assert torch.equal(embeddings[0, 2 : 2 + n], features[0])
    assert torch.equal(embeddings[0, 5 + n : 5 + 2 * n], features[1])
    table = model.language_model.get_input_embeddings()
    assert torch.equal(embeddings[0, :2], table(ids[0, :2]))
    assert torch.equal(embeddings[0, -1], table(ids[0, -1]))


@pytest.mark.parametrize(("images", "pixels"), [(1, 2), (2, 1), (1, 0), (0, 1)])
def test_placeholders_and_features_that_differ_are_an_error_with_both_counts(
    preset, images, pixels, tiny, prompt, tiles
):
    model = tiny(preset)
    n = model.tokens_per_tile
    ids = prompt(model, 3, *["image"] * images)
    with pytest.raises(DataError, match=f"{images * n} image placeholders .* {pixels * n} image features"):
        model(ids, pixel_values=tiles(model, pixels) if pixels else None)


def test_a_record_with_another_number_of_images_is_refused_by_name_before_it_is_ids():
    """The model knows ids alone; the sample is named where it is read."""
    turn = {"from": "human", "value": "<image> and <image>?"}
    record = {"id": "s7", "image": "a.png", "conversations": [turn, {"from": "gpt", "value": "yes"}]}
    with pytest.raises(DataError, match=r"train.jsonl:7: 2 <image> placeholders but 1 files"):
        read_record(record, root=Path("images"), where="train.jsonl:7")


def test_an_image_that_does_not_fit_is_refused_by_name_and_not_cut(preset, checkpoint, picture):
    """Cut, it would have fewer placeholders than features."""
    processor = load_processor(checkpoint(preset))
    messages = [{"role": "user", "content": [image(str(picture())), text("What?")]}]
    whole = processor.encode(messages, id="sample-3")
    needed = int(np.flatnonzero(whole.input_ids == processor.spec.image_tokens.context_id)[-1])
    with pytest.raises(DataError, match="sample-3: truncation would cut image tokens"):
        processor.encode(messages, id="sample-3", max_length=needed)


def test_one_placeholder_too_few_is_an_error_and_not_a_shift(tiny, prompt, tiles):
    model = tiny()
    with pytest.raises(DataError, match=r"3 image placeholders .* 4 image features"):
        model(prompt(model, 3, "image")[:, :-1], pixel_values=tiles(model, 1))


def test_dummy_tiles_leave_no_trace(tiny, prompt, tiles):
    model = tiny()
    ids, pixels = prompt(model, 2, "image", 3, "image"), tiles(model, 3)
    flags = torch.tensor([1, 0, 1])
    expected = model(ids, pixel_values=pixels[[0, 2]]).logits
    torch.testing.assert_close(model(ids, pixel_values=pixels, image_flags=flags).logits, expected)


def test_chunks_of_images_give_the_features_of_all_at_once(preset, tiny, tiles):
    model = tiny(preset)
    pixels = tiles(model, 5)
    torch.testing.assert_close(model.encode_images(pixels, chunk=2), model.encode_images(pixels), atol=1e-5, rtol=1e-5)


def test_images_of_different_sizes_are_encoded_one_after_the_other(tiny):
    model = tiny("tiny-convllava")
    images = [torch.randn(3, 64, 128), torch.randn(3, 128, 128)]
    together = model.encode_images(images)
    assert together.shape == (1, 2 + 4, 64)
    assert torch.equal(together[:, :2], model.encode_images(images[0][None]))


# batches without images or labels -------------------------------------------------------------------------------------


def test_a_text_only_batch_touches_the_encoder_and_gives_it_zero_gradients(preset, tiny, prompt):
    """Under ZeRO-3 a rank that left the encoder out would hang its peers."""
    model, calls = tiny(preset), []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    ids = prompt(model, 12)
    quiet = model(ids, labels=ids)
    assert not calls  # only training needs it
    out = model.train()(ids, labels=ids)
    assert len(calls) == 1
    assert torch.equal(out.loss, quiet.loss)
    out.loss.backward()
    parts = [*model.encoder.named_parameters(), *model.projector.named_parameters()]
    assert all(p.grad is not None and not p.grad.any() for _, p in parts)
    assert all(p.grad.any() for p in model.language_model.lm_head.parameters())


def test_a_text_only_batch_trains_with_a_frozen_encoder(tiny, prompt):
    model = tiny().train()
    model.encoder.requires_grad_(False)
    model.projector.requires_grad_(False)
    model(prompt(model, 5), labels=prompt(model, 5)).loss.backward()
    assert all(p.grad is None for p in model.encoder.parameters())


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_without_labels_has_loss_zero_and_zero_gradients(packed, preset, tiny, prompt, tiles):
    model = tiny(preset).train()
    ids = prompt(model, 3, "image", 4)
    bounds = torch.tensor([0, ids.shape[1] - 2, ids.shape[1]], dtype=torch.int32) if packed else None
    out = model(ids, pixel_values=tiles(model, 1), labels=torch.full_like(ids, -100), cu_seqlens=bounds)
    assert out.loss.item() == 0
    out.loss.backward()
    assert not any(p.grad.any() for p in model.parameters())  # NaN would be any() too


# positions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2, 0.5, 16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_fractional_positions_are_not_read_as_document_borders(stride, checkpointing, tiny, prompt, tiles):
    """transformers takes a step other than 1 for a new document when there is no mask: each image token would be an
    island. The packed path, which has no mask at all, is the reference."""
    model = tiny().train()
    model.set_gradient_checkpointing(checkpointing)
    ids, pixels = prompt(model, 4, "image", 3, "image", "image", 5), tiles(model, 3)
    place = v2pe(model, [("text", 4), ("image", 1), ("text", 3), ("image", 2), ("text", 5)], stride)
    common = {"pixel_values": pixels, "position_ids": place, "labels": ids.masked_fill(ids < 0, 0)}
    seen = []
    for extra in (
        {"cu_seqlens": torch.tensor([0, ids.shape[1]], dtype=torch.int32)},
        {"attention_mask": torch.ones_like(ids)},
        {},
    ):
        model.zero_grad()
        out = model(ids, **common, **extra)
        out.loss.backward()
        seen.append((out.logits, gradients(model)))
    for logits, grads in seen[1:]:
        torch.testing.assert_close(logits, seen[0][0], atol=1e-4, rtol=1e-4)
        for name, gradient in grads.items():
            assert (gradient - seen[0][1][name]).norm() <= 1e-4 * gradient.norm() + 1e-6, name


def test_positions_matter(tiny, prompt, tiles):
    """Without this, the tests around it could not fail."""
    model = tiny()
    ids, pixels = prompt(model, 4, "image", 5), tiles(model, 1)
    layout = [("text", 4), ("image", 1), ("text", 5)]
    one, two = (model(ids, pixel_values=pixels, position_ids=v2pe(model, layout, s)).logits for s in (1, 16))
    assert (one - two).abs().max() > 0.1


@pytest.mark.parametrize("images", [1, 3])
def test_a_stride_of_as_many_positions_as_tokens_is_plain_counting(images, preset, tiny, prompt, tiles):
    model = tiny(preset)
    parts = [part for _ in range(images) for part in (3, "image")]
    ids, pixels = prompt(model, *parts, 2), tiles(model, images)
    layout = [item for _ in range(images) for item in (("text", 3), ("image", 1))] + [("text", 2)]
    place = v2pe(model, layout, model.tokens_per_tile)
    np.testing.assert_array_equal(place[0], np.arange(ids.shape[1]))
    plain = model(ids, pixel_values=pixels).logits
    assert torch.equal(model(ids, pixel_values=pixels, position_ids=place).logits, plain)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(side, tiny, prompt):
    model = tiny()
    ids = prompt(model, 9)
    pad = (4, 0) if side == "left" else (0, 4)
    mask = F.pad(torch.ones_like(ids), pad)
    padded = model(F.pad(ids, pad, value=7), attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(padded, model(ids).logits[0], atol=1e-5, rtol=1e-4)


# packing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [None, 1])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_packed_row_equals_its_documents_one_by_one(stride, checkpointing, preset, tiny, prompt, tiles):
    model = tiny(preset).train()
    model.set_gradient_checkpointing(checkpointing)
    documents, weights = [], []
    for k, parts in enumerate([(4, "image", 6), (7,), (2, "image", "image", 3), (1,)]):
        images = parts.count("image")
        ids = prompt(model, *parts, seed=k)
        layout = [("image", 1) if part == "image" else ("text", part) for part in parts]
        labels = ids.clone()
        labels[:, : 1 + k] = -100
        labels[ids == model.spec.image_tokens.context_id] = -100
        documents.append((ids, labels, v2pe(model, layout, stride), tiles(model, images, seed=k)))
        weights.append(torch.rand(ids.shape, generator=torch.Generator().manual_seed(k)))
    ids, labels, place = (torch.cat([d[i] for d in documents], dim=1) for i in range(3))
    pixels, weight = torch.cat([d[3] for d in documents]), torch.cat(weights, dim=1)
    bounds = torch.tensor([0, *np.cumsum([d[0].shape[1] for d in documents])], dtype=torch.int32)
    packed = model(ids, pixel_values=pixels, position_ids=place, labels=labels, loss_weights=weight, cu_seqlens=bounds)
    packed.loss.backward()
    together = gradients(model)

    model.zero_grad()
    total = sum(float((w * (d[1] != -100))[:, 1:].sum()) for d, w in zip(documents, weights, strict=True))
    loss, logits = 0.0, []
    for (ids, labels, place, pixels), weight in zip(documents, weights, strict=True):
        out = model(
            ids,
            pixel_values=pixels if len(pixels) else None,
            position_ids=place,
            labels=labels,
            loss_weights=weight,
            loss_denominator=total,
        )
        out.loss.backward()
        loss += out.loss.item()
        logits.append(out.logits)
    torch.testing.assert_close(packed.logits, torch.cat(logits, dim=1), atol=1e-4, rtol=1e-4)
    assert packed.loss.item() == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients(model).items():
        assert (gradient - together[name]).norm() <= 1e-4 * gradient.norm() + 1e-6, name


def test_documents_of_a_packed_row_do_not_see_each_other(tiny, prompt):
    model = tiny()
    first, second, other = prompt(model, 6), prompt(model, 5, seed=1), prompt(model, 6, seed=2)
    bounds = torch.tensor([0, 6, 11], dtype=torch.int32)
    place = torch.tensor([[*range(6), *range(5)]])
    a, b = (
        model(torch.cat([head, second], 1), position_ids=place, cu_seqlens=bounds).logits[:, 6:]
        for head in (first, other)
    )
    assert torch.equal(a, b)


def test_the_first_label_of_a_document_is_never_learned(tiny, prompt):
    model = tiny()
    ids = prompt(model, 11)
    bounds = torch.tensor([0, 6, 11], dtype=torch.int32)
    masked = ids.clone()
    masked[:, [0, 6]] = -100
    a, b = (model(ids, labels=labels, cu_seqlens=bounds).loss for labels in (ids, masked))
    assert torch.equal(a, b)


# the training path ----------------------------------------------------------------------------------------------------


def test_without_logits_the_loss_is_the_same_and_the_head_sees_labeled_tokens_only(tiny, prompt):
    model, rows = tiny(), []
    ids = prompt(model, 12)
    labels = ids.clone()
    labels[:, :8] = -100
    expected = model(ids, labels=labels).loss
    model.language_model.lm_head.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[0]))
    out = model(ids, labels=labels, logits=False)
    assert out.logits is None and torch.equal(out.loss, expected)
    assert rows == [4]


def test_gradient_checkpointing_goes_on_and_off_in_both_towers(tiny):
    model = tiny().train()
    states = []
    for on in (True, False):
        model.set_gradient_checkpointing(on)
        states.append((model.encoder.gradient_checkpointing, model.language_model.is_activation_checkpointing))
    assert states == [(True, True), (False, False)]
