"""Compare our selections with the official code of the papers.

Each module takes the path of a checkout of a repository, runs its selection and ours on the same random tensors, and
prints how many of the kept tokens differ. Nothing is downloaded, and none of that code is part of this repository. The
functions of the checkout are executed: read them first.
"""
