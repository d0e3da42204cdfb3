"""Patch id <-> place, time and split of BigEarthNet v2.0: the public name of `reben_cloud.bigearthnet.grid`."""
