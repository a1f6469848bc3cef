"""Features of tiles by content: equal to those without a cache, bounded, the least recently used forgotten first."""

import numpy as np
import pytest
import torch

from vlm.models.checkpoint.load import load_model
from vlm.models.features import TileFeatures
from vlm.models.processor import load_processor


@pytest.fixture(scope="module")
def loaded(checkpoint):
    folder = checkpoint()
    return load_model(folder), load_processor(folder)


@pytest.fixture
def tiles(loaded):
    size = loaded[0].image_size
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (size, size, 3), np.uint8) for _ in range(4)]


@torch.inference_mode()
def test_known_tiles_have_the_features_that_encoding_them_gives(loaded, tiles):
    model, processor = loaded
    cache = TileFeatures(model, processor)
    alone = torch.cat([model.encode_images(processor.pixels(tile[None])) for tile in tiles])
    for order in ([0, 1, 0], [3, 1, 2, 0], [2, 2]):
        assert torch.equal(cache.of([tiles[i] for i in order], chunk=1), alone[order])
    assert len(cache.kept) == 4


@torch.inference_mode()
def test_no_more_bytes_are_kept_than_the_limit(loaded, tiles):
    model, processor = loaded
    one = TileFeatures(model, processor).of(tiles[:1], 1).nbytes
    cache = TileFeatures(model, processor, limit=2 * one)
    for order in ([0], [1], [0], [2]):  # 1 is the least recently used when 2 comes
        cache.of([tiles[i] for i in order], 1)
    assert cache.nbytes == 2 * one
    kept = list(cache.kept)
    cache.of([tiles[0]], 1)
    assert set(cache.kept) == set(kept)  # 0 was still known
    assert len(cache.of(tiles, 4)) == 4 and cache.nbytes == 2 * one  # a batch larger than the limit
