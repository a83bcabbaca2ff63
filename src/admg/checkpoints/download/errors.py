"""Errors of downloads that the user can fix."""


class DownloadError(OSError):
    """A file cannot be downloaded, or has changed. The message says what to do."""


class DownloadRefusedError(DownloadError):
    """A source does not have a usable file, and trying again will not help."""
