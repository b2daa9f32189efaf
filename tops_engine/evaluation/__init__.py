"""Parts that comparisons, the benchmark and calibration share: data sets, fidelity, tables and plotting."""
