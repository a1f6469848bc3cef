"""Decoded picture -> normalized tiles: dynamic tiling as InternVL does it, then its transform tile by tile.

The peer is written from the published description: resize to the grid, crop, thumbnail, and for each tile torchvision's
Resize, ToTensor and Normalize. `exact`: the same bytes (two threads). `fast`: opt-in, torch's antialiased bicubic on
uint8, channels last; what leaves the worker is uint8 (a quarter of the bytes), and its normalizing is in the clock.
Companion: largest and mean difference of the uint8 tiles from the published ones, in units of 1/255.
A ratio of processors, on synthetic pictures with edges, gradients and noise.
"""

from typing import Any

import numpy as np
import torch
from harness import paired, report
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from vlm.core.sample.tiling import IMAGENET, ImageRule

SIZE, MAX_TILES = 448, 12
SIZES = {"1080p": (1920, 1080), "A4 scan, 300 dpi": (2480, 3508), "640x480": (640, 480)}


def picture(width: int, height: int) -> Image.Image:
    """Smooth gradients, hard lines and some noise."""
    y, x = np.mgrid[:height, :width]
    planes = [x * 255 // width, y * 255 // height, ((x // 40 + y // 25) % 2) * 255]
    noise = np.random.default_rng(0).integers(-20, 20, (height, width, 3))
    return Image.fromarray((np.stack(planes, -1) + noise).clip(0, 255).astype(np.uint8))


def published_grid(width: int, height: int) -> tuple[int, int]:
    """Nearest aspect ratio among all grids of up to twelve tiles; on a tie the larger one if the area allows."""
    grids = {(c, r) for n in range(1, MAX_TILES + 1) for c in range(1, n + 1) for r in range(1, n + 1) if c * r <= n}
    best, nearest = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        distance = abs(width / height - columns / rows)
        if distance < nearest:
            best, nearest = (columns, rows), distance
        elif distance == nearest and width * height > 0.5 * SIZE * SIZE * columns * rows:
            best = (columns, rows)
    return best


def published_tiles(image: Image.Image) -> list[Image.Image]:
    """Resized to the grid, cut row by row, the thumbnail last."""
    columns, rows = published_grid(*image.size)
    canvas = image.resize((columns * SIZE, rows * SIZE))
    tiles = []
    for i in range(columns * rows):
        left, top = i % columns * SIZE, i // columns * SIZE
        tiles.append(canvas.crop((left, top, left + SIZE, top + SIZE)))
    return [*tiles, image.resize((SIZE, SIZE))] if len(tiles) > 1 else tiles


TRANSFORM = transforms.Compose(
    [
        transforms.Lambda(lambda tile: tile.convert("RGB") if tile.mode != "RGB" else tile),
        transforms.Resize((SIZE, SIZE), interpolation=InterpolationMode.BICUBIC),
        transforms.ToTensor(),
        transforms.Normalize(*IMAGENET),
    ]
)


def on_device(tiles: np.ndarray) -> torch.Tensor:
    """uint8 tiles to float32, channels last, as a device would normalize them."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
    return torch.from_numpy(tiles).permute(0, 3, 1, 2).float().mul_(1 / (255 * std)).sub_(mean / std)


def main() -> None:
    rows: list[dict[str, Any]] = []
    for name, size in SIZES.items():
        image = picture(*size)
        exact, fast = (ImageRule(kind="tiles", size=SIZE, resize=r) for r in ("published", "fast"))

        def peer(image=image):
            return torch.stack([TRANSFORM(tile) for tile in published_tiles(image)])

        def ours(image=image, rule=exact):
            return torch.from_numpy(rule.normalize(rule.apply(image)))

        def ours_fast(image=image, rule=fast):
            return on_device(rule.apply(image))

        reference = np.stack([np.asarray(tile) for tile in published_tiles(image)]).astype(int)
        values = peer()
        for path, call, rule in (("exact", ours, exact), ("fast", ours_fast, fast)):
            difference = np.abs(rule.apply(image).astype(int) - reference)
            assert path == "fast" or not difference.any()
            row = {
                "picture": name,
                "path": path,
                "tiles": len(reference),
                "max_difference_lsb": int(difference.max()),
                "mean_difference_lsb": float(difference.mean()),
                "max_difference_normalised": (call() - values).abs().max().item(),
                **paired(call, peer, 15),
            }
            rows.append(row)
    report("tiles", rows)


if __name__ == "__main__":
    main()
