"""Which catalogue entries a command line means: names, a group, a recipe, a benchmark."""

from vlm.core.fetch.catalogue import Entry, find_benchmark, find_entry, find_file, find_group, with_needs
from vlm.core.fetch.installed import is_built


def chosen(
    catalogue: dict[str, Entry],
    *,
    names: list[str] | None = None,
    group: str | None = None,
    recipe: str | None = None,
    benchmark: str | None = None,
) -> list[Entry]:
    """The entries, each once. A recipe, a benchmark, and a set that is made from others bring what they need, before
    them.

    Raises:
        UnknownName: with the nearest names.
    """
    entries: list[Entry] = []
    for name in names or []:
        entry = find_entry(name, catalogue)
        entries += with_needs([entry], catalogue) if is_built(entry) and entry.organize else [entry]
    entries += find_group(group, catalogue) if group else []
    if recipe:
        entries += with_needs(of_recipe(recipe, catalogue), catalogue)
    if benchmark:
        entries += with_needs(find_benchmark(benchmark, catalogue), catalogue)
    return list({entry.name: entry for entry in entries}.values())


def of_recipe(name: str, catalogue: dict[str, Entry]) -> list[Entry]:
    """The entries in whose folders the start weights and the data of a recipe lie (what is made here has none)."""
    from vlm.train.recipe.recipe import load_recipe  # a tenth of a second that other commands need not pay

    recipe = load_recipe(name)
    weights = [
        e for e in catalogue.values() if e.kind == "weights" and f"{recipe.model.start}/".startswith(f"{e.folder}/")
    ]
    data = [entry for data in recipe.data if (entry := find_file(data.file, catalogue))]
    return weights + data
