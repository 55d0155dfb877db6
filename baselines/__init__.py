"""The methods, one file each; found through configs/method/, imported by nobody."""
