"""What the live display of a run is made of."""
