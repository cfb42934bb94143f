"""From files on disk to training batches: datasets, splits, checks, augmentations, loaders, mixing."""
