"""The tables of the READMEs, a module a README: TABLES maps a name to a function that returns Markdown."""
