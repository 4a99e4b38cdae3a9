"""From --data_path to batches: data sets of every kind, file indexes, decoding, transforms, samplers and loader
processes."""
