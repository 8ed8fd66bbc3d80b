"""The run folder `results/<run>/` on disk, and its copy in shared storage."""
