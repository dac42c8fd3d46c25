"""The experiments of `python -m reasoner.evaluate`, one a file: measure(models, examples, config) -> {run: its JSON}.

A model is a ReasonerTalker, a baseline (Coupled), or a control (NearestDecoder); all have `answer(prompts)`. The first
of `models` is the run that the others are compared with.
"""
