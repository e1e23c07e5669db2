"""Engine policies: what the next iteration of one engine may take; one file each."""
