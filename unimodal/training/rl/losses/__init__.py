"""Policy losses: ratios of probabilities and advantages become a loss for each token. One file each."""
