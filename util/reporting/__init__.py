"""What a run leaves for people: the output folder with its lock, log.txt and summary.json, TensorBoard, and the report
page with its parts (confusion matrix, reconstructions, thumbnails).

Only the main process writes here. Checkpoints and bad_images.txt are written by util.checkpoints and util.data; when to
log or report is decided by util.training.
"""
