"""The MkDocs hook: add the pages made from the code and its tables, and their part of the navigation.

    mkdocs build --strict        # or `make docs`

Each `*_pages` module returns a dict: path of a page -> its Markdown. Nothing is written into docs/.
"""

from pathlib import Path

import api_pages
import benchmark_pages
import catalogue_pages
import command_pages
import published_pages
import recipe_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

BOOSTS = {"results/tables.md": 1e-5, "changelog.md": 1e-5, "contributing.md": 1e-5, "api/": 1e-2, "reference/": 1e-1}
"""Weight in a search of the pages whose path starts so; guides, with 1, come first."""
ROOT = Path(__file__).parents[2]
PAGES: dict[str, str] = {}
"""Pages of this build; `on_config` fills it, because the navigation names them."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the pages and add them to the navigation."""
    api = api_pages.pages()
    tables = {
        "Command line": command_pages.pages(),
        "Recipes": recipe_pages.pages(),
        "Benchmarks": benchmark_pages.pages(),
        "Catalogue": catalogue_pages.pages(),
        "Published READMEs": published_pages.pages(),
    }
    PAGES.clear()
    PAGES.update({"changelog.md": root_page("CHANGELOG.md"), "contributing.md": root_page("CONTRIBUTING.md")})
    for made in (*tables.values(), api):
        PAGES.update(made)
    how_to = sorted(f"how-to/{path.name}" for path in (ROOT / "docs/how-to").glob("*.md"))
    assert isinstance(config.nav, list)
    config.nav += [
        {"Reference": [{title: list(made)} for title, made in tables.items()]},
        {"Python API": list(api)},
        {"Extend": ["contributing.md", "design.md", *([{"How-to": how_to}] if how_to else [])]},
    ]
    return config


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Give each page its weight in a search."""
    for start, boost in BOOSTS.items():
        if page.file.src_uri.startswith(start):
            page.meta["search"] = {"boost": boost}
    return markdown


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to the files of the site."""
    for path, text in PAGES.items():
        files.append(File.generated(config, path, content=text))
    return files


def root_page(name: str) -> str:
    """Return a Markdown file of the repository's root with its links relative to docs/."""
    text = (ROOT / name).read_text("utf-8").replace("](docs/", "](")
    return text.replace("](CHANGELOG.md)", "](changelog.md)").replace("](CONTRIBUTING.md)", "](contributing.md)")
