"""Support for several test folders: builders of small inputs, command lines, runs that sample, a browser."""
