"""BigEarthNet v2.0 (reBEN) as a cloud-native streaming dataset."""
