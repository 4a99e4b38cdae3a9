"""Checkpoints: the schema, safe reading and atomic writing of files, resuming and saving, weights of other libraries,
and loading weights into models.

The state itself belongs to the objects that have it (state_dict, load_state_dict), and when to save to util.training.
"""
