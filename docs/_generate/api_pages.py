"""The Python API: one page for each package, with every name of its `__all__`, rendered by mkdocstrings.

A package without `__all__`, a name that is not found and a name without a docstring are warnings, and errors under
`mkdocs build --strict`.
"""

import logging
from pathlib import Path

import griffe
from docstring_examples import fence_examples

PACKAGES = ("core", "models", "train", "eval", "cli")
ROOT = Path(__file__).parents[2] / "packages"
log = logging.getLogger("mkdocs.hooks.api_pages")


def pages() -> dict[str, str]:
    """Return the page of each package. Log a warning for each public name without a docstring."""
    loader = griffe.GriffeLoader(search_paths=[str(ROOT / package / "src") for package in PACKAGES])
    for package in PACKAGES:
        loader.load(f"vlm.{package}")
    loader.resolve_aliases(implicit=True)
    return {f"api/{package}.md": page(loader, f"vlm.{package}") for package in PACKAGES}


def page(loader: griffe.GriffeLoader, name: str) -> str:
    """Return the page of one package: its docstring, then its public names in the order of `__all__`."""
    module = loader.modules_collection[name]
    text = [f"# {name}\n", fence_examples(module.docstring.value) if module.docstring else ""]
    if not module.exports:
        log.warning("%s declares no `__all__`", name)
    for public in module.exports or ():
        target = documented(module, str(public))
        if target:
            text.append(f"::: {target}\n    options: {{heading: {public}, toc_label: {public}}}")
    return "\n\n".join(text) + "\n"


def documented(module: griffe.Module | griffe.Alias, public: str) -> str | None:
    """Return the path where a public name is defined, or None after a warning."""
    member = module.members.get(public)
    if member is None:
        log.warning("%s.%s is in `__all__`, but the file does not import or define it", module.path, public)
        return None
    try:
        target = member.final_target if isinstance(member, griffe.Alias) else member
    except griffe.AliasResolutionError as error:
        log.warning("%s.%s leads to %s, which does not exist", module.path, public, error.alias.target_path)
        return None
    if not target.has_docstring:
        log.warning("%s.%s (%s) has no docstring", module.path, public, target.path)
    return target.path
