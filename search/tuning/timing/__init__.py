"""How long trainings take, and what is left of a run."""
