"""The writers of a report: HTML, Markdown, CSV, figures."""
