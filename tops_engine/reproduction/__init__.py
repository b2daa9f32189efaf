"""`tops reproduce`: the tables of the papers, run by lmms-eval on the user's machine."""
