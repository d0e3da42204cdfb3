"""Patches as xarray, pictures and plots."""
