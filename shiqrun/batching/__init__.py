"""Batching turns the Examples of a data set into Trajectories and deals them to optimiser steps."""
