"""What several packages need and no user sees: files, progress, processes, counted operations."""
