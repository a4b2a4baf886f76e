"""Models with planted circuits, and the task that they solve."""
