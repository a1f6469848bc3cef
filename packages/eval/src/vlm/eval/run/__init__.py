"""One evaluation: planned, divided, asked, scored, written."""
