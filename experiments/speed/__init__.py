"""What a second opinion costs: time, counted operations and memory, side by side with other ways to one."""
