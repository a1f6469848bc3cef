"""The report: gathered from run folders, built as data, rendered to files."""
