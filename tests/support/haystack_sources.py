"""The three sets that image haystacks are built from, with few and tiny pictures."""

from PIL import Image

from vlm.core.fetch.manifest import files_below, install
from vlm.core.home import dataset
from vlm.core.synth.vqa_records import NUMBER_WORDS, vqa_record, write_jsonl

SETS = ("digits", "easy-vqa", "photographs")


def write_haystack_sources(first_test_digit: int = 20) -> None:
    """Write digits, easy-vqa and photographs below `$VLM_HOME/dataset`, as they are after organizing."""
    for name in SETS:
        pictures = [f"{split}/images/{i}.png" for split in ("train", "test") for i in range(70)]
        for picture in pictures if name == "easy-vqa" else [f"images/{i}.png" for i in range(40)]:
            (dataset() / name / picture).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), "red").save(dataset() / name / picture)
    for split, first in (("train", 0), ("test", first_test_digit)):
        numbers = range(first, first + 20)
        digits = [vqa_record(f"d{i}", f"images/{i}.png", [("?", NUMBER_WORDS[i % 10])]) for i in numbers]
        write_jsonl(dataset() / "digits" / f"{split}.jsonl", digits)
    splits = ["train", "test", None]
    photographs = [vqa_record(f"p{i}", f"images/{i}.png", [("?", "!")], haystack=splits[i % 3]) for i in range(12)]
    write_jsonl(dataset() / "photographs" / "train.jsonl", photographs)
    for name in SETS:
        install(dataset() / name, files_below(dataset() / name), name=name, source={"made": name})
