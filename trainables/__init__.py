"""What runs inside one worker; knows nothing of `search`."""
