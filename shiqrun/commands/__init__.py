"""The commands of `shiqrun`, one file each."""
