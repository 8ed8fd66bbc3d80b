"""Search for the best image classifier: commands, and the packages behind them."""
