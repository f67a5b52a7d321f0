"""Measurements that the project's claims of speed rest on, taken side by side on the machine at hand."""
