"""Attention: backends within one process and over several, behind transformers' interface."""

from vlm.models.attention.interface import (
    BACKENDS,
    NAME,
    PACKED,
    attend,
    backend_of,
    check_name,
    check_packed,
    make_mask,
)
from vlm.models.attention.local import AttentionBackend, choose, flash, flash_problem, sdpa, varlen
from vlm.models.attention.segments import GivenUp, RowCache, Segments
from vlm.models.attention.storage import KV_DTYPES, KVStorage, StoredStates

__all__ = [
    "BACKENDS",
    "KV_DTYPES",
    "NAME",
    "PACKED",
    "AttentionBackend",
    "GivenUp",
    "KVStorage",
    "RowCache",
    "Segments",
    "StoredStates",
    "attend",
    "backend_of",
    "check_name",
    "check_packed",
    "choose",
    "flash",
    "flash_problem",
    "make_mask",
    "sdpa",
    "varlen",
]
