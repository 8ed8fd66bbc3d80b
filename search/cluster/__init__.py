"""Ray sessions, nodes, resources, and what tasks on all nodes share."""
