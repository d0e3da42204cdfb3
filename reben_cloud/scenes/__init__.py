"""The reBEN recipe on Sentinel products."""
