"""The benchmark (`tops bench`): accuracy of the embedded model at each budget."""
