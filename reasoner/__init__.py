"""JEPA-Reasoner: a Reasoner that thinks in a chain of latents, and a Talker that puts the finished chain into words."""
