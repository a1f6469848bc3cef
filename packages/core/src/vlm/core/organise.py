"""Turn downloaded sources into training sets: published `conversations` JSONL beside the images.

    organise("digits")      # dataset/digits/{images,train.jsonl,test.jsonl}

Paths in a record are relative to the folder of its JSONL file. The same options give the same bytes.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from vlm.core.catalogue import Entry, find_entry, load_catalogue
from vlm.core.config import Strict
from vlm.core.errors import ConfigError, DataError, UnknownName
from vlm.core.home import locked
from vlm.core.manifest import MANIFEST, PARTIAL, count_records, damaged_files, files_below, install, read_manifest
from vlm.core.records import dump_jsonl
from vlm.core.transfer import disk_errors
