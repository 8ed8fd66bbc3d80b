"""Write TensorBoard event files of trials and runs."""
