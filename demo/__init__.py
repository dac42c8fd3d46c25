"""The page of `python main.py`, a tab a system. It stands above the systems; none of them imports it."""
