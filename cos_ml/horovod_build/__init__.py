"""Builds and checks Horovod on this machine, for ``cos-ml install-horovod`` (driver side)."""
