"""Parts and uses of the models in models_mae.py and models_vit.py: position embeddings, timm's layers, activation
checkpointing, feature extraction, reconstruction, linear probing, and building a model from flags.

Nothing here reads files or data, and only build.py imports models_mae and models_vit.
"""
