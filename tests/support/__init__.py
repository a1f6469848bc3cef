"""Fixtures, fakes and worlds that several test files share: `from support import local_hub`."""
