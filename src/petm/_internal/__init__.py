"""Private tools of several packages: files, progress, processes, counted operations."""
