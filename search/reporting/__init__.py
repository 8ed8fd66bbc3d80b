"""Write the report, figures, TensorBoard files and terminal summary."""
