"""Start Ray, list its nodes and resources, and share data between tasks on all nodes."""
