"""What models_mae.py and models_vit.py are built of or used through: building from flags, timm's parts, positions,
features, reconstructions, linear probing."""
