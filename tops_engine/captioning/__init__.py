"""Captions for many pictures: what is asked, many at a time, and a file that is continued."""
