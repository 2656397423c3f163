"""One file per format of image sets."""
