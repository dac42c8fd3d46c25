"""The latent stack: frozen encoder → idea vector → middle model → soft prefix → frozen language model."""
