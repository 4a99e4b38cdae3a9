"""From --data_path to batches of uint8 pixels: datasets, file indexes, decoding, transforms, sampler, loader workers;
and what is computed from a batch on the device: normalization (transforms), mixing and erasing (batch_augmentation).

What runs in a loader worker for one sample: SeededDataset (loader), LazyImageDataset.__getitem__ and open_image
(lazy_image), a transform (transforms). Copies to the device are in util.devices, flags and statistics in util.config.
"""
