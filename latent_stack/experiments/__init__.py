"""The experiments of `latent_stack.evaluate`, one a file: `run(model, pairs, config)` prints, and returns the JSON."""
