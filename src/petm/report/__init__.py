"""Reports: HTML pages, figures, tables."""
