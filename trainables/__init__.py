"""What runs in a worker: images, trainings and models. It imports nothing of `search`."""
