"""Where errors come from when A makes none."""
