"""The version of nanoCaption, which every checkpoint, export and log tells."""

VERSION = "0.3.0"
