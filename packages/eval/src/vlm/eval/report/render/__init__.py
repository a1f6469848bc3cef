"""A report in files: HTML page, Markdown, CSV, figures."""
