"""What can go wrong with a download that a person can mend."""


class DownloadError(OSError):
    """A file cannot be had, or is not what it was; the message says what can be done."""


class Refused(DownloadError):
    """What this source sends is of no use, now or later."""
